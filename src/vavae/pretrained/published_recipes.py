"""Published YAML configurations -> recipes of ours, as plain values, with what was left aside and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vavae.errors import UserError
from vavae.flow import PathName, Prediction
from vavae.flow.loss import NO_SCORE
from vavae.pretrained.published import LeftAside
from vavae.yaml_files import read_yaml

_PATHS: dict[str, PathName] = {"linear": "linear", "gvp": "cosine", "vp": "vp"}
_PREDICTIONS: dict[str, Prediction] = {"velocity": "velocity", "noise": "noise", "score": "score"}
_SOLVERS = {name: name for name in ("euler", "midpoint", "rk4", "dopri5")} | {"heun2": "heun"}
_PUBLISHED_PATHS: dict[PathName, str] = {"linear": "Linear", "cosine": "GVP", "vp": "VP"}
_TEACHERS = {"dinov2": "dinov2-large", "mae": "mae-large"}
# The published image set: ImageNet's training images without one file.
_IMAGENET = 1_281_166
# What latents are multiplied with where a configuration does not say.
PUBLISHED_MULTIPLIER = 0.18215
# Guidance acts on these leading channels in the published sampler, whatever the number of channels.
_GUIDED_CHANNELS = 3


@dataclass(frozen=True)
class ConvertedRecipe:
    """A recipe of ours from a published configuration.

    Attributes:
        command: The command it is for.
        values: Its keys and values.
        left_aside: Keys that have no counterpart.
    """

    command: Literal["train-dit", "train-tokenizer"]
    values: dict[str, Any]
    left_aside: tuple[LeftAside, ...]


class _Section:
    """A part of a configuration that knows which of its keys were used.

    Args:
        values: The keys and values.
        name: Its dotted name, with a dot at the end.
        source: The file, for messages.
    """

    def __init__(self, values: Any, name: str, source: str | Path) -> None:
        if values is not None and not isinstance(values, Mapping):
            raise UserError(f"{source}: {name.rstrip('.')} holds {values!r}, not keys")
        self.values = dict(values or {})
        self.name = name
        self.source = source
        self.unused = {str(key): value for key, value in self.values.items()}

    def section(self, key: str) -> "_Section":
        self.unused.pop(key, None)
        return _Section(self.values.get(key), f"{self.name}{key}.", self.source)

    def get(self, key: str, default: Any) -> Any:
        """A value of the default's type; a blank one is an error, as nobody can say what was meant."""
        self.unused.pop(key, None)
        if key not in self.values:
            return default
        value = self.values[key]
        wanted = type(default)
        try:
            if value is None or isinstance(value, str) != isinstance(default, str):
                # YAML reads 1e-4 as text.
                if isinstance(value, str) and wanted in (int, float):
                    return wanted(float(value))
                raise TypeError
            return wanted(value)
        except (TypeError, ValueError) as error:
            said = "is blank" if value is None else f"is {value!r}, not a {wanted.__name__}"
            raise UserError(f"{self.source}: {self.name}{key} {said}") from error

    def choose(self, key: str, default: str, names: Mapping[str, Any]) -> Any:
        value = self.get(key, default).lower()
        if value not in names:
            raise UserError(f"{self.source}: {self.name}{key}: {value!r} is not one of {', '.join(names)}")
        return names[value]

    def rest(self, reasons: Mapping[str, str]) -> list[LeftAside]:
        """What was not used and says something."""
        said = {key: value for key, value in self.unused.items() if value is not None}
        return [LeftAside(self.name + key, 1, reasons.get(key, "has no counterpart")) for key in said]


def convert_recipe(path: Path) -> ConvertedRecipe:
    """A recipe of ours from a published YAML file.

    Raises:
        UserError: It is no YAML, none of the published kinds, or a key holds what cannot be done.
    """
    root = _Section(read_yaml(path), "", path)
    if "transport" in root.values or "model_type" in root.section("model").values:
        return _transformer(root)
    if "params" in root.section("model").values:
        return _tokenizer(root)
    raise UserError(f"{path}: neither a configuration of LightningDiT training nor of VA-VAE training")


def published_sampling(training: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings out of a configuration of LightningDiT; the published defaults where it says nothing."""
    return _sampling(_Section(training.get("sample"), "sample.", "config"))


def published_scaling(training: Mapping[str, Any]) -> tuple[bool, float] | None:
    """Whether the latents of a training were normalised by statistics, and what they were multiplied with then.

    None where the configuration says nothing of its latents.
    """
    if not isinstance(training.get("data"), Mapping):
        return None
    return _scaling(_Section(training["data"], "data.", "config"))


def published_path(training: Mapping[str, Any]) -> PathName:
    """The path out of a configuration of LightningDiT; straight lines where it says nothing."""
    section = _Section(training.get("transport"), "transport.", "config")
    return section.choose("path_type", "Linear", _PATHS)


def published_prediction(training: Mapping[str, Any]) -> Prediction:
    """What the network predicts, out of a configuration of LightningDiT; velocity where it says nothing."""
    section = _Section(training.get("transport"), "transport.", "config")
    return section.choose("prediction", "velocity", _PREDICTIONS)


def published_training(
    sampling: Mapping[str, Any], path: PathName, prediction: Prediction = "velocity"
) -> tuple[dict[str, Any], list[str]]:
    """What `published_sampling`, `published_path` and `published_prediction` read, to lie beside weights.

    Args:
        sampling: Values of a `SamplingConfig`.
        path: The path between noise and data.
        prediction: What the network predicts.

    Returns:
        A part of a published configuration, and notes on what it cannot say.

    Raises:
        UserError: The published sampler knows no network that predicts this.
    """
    if prediction not in _PREDICTIONS.values():
        known = ", ".join(_PREDICTIONS)
        raise UserError(f"prediction: {prediction}; published files know only {known}")
    solvers = {ours: theirs for theirs, ours in _SOLVERS.items()}
    solver, scale, notes = sampling["solver"], sampling["guidance_scale"], []
    if solver not in solvers:
        notes.append(f"the published sampler solves the ODE; the solver {solver} is not taken over")
    as_published = sampling["guidance_channels"] == _GUIDED_CHANNELS and sampling["guidance_stop"] == 1.0 and scale > 1
    if scale != 1 and not as_published:
        notes.append(
            f"the published sampler guides {_GUIDED_CHANNELS} channels from a time on, by a scale above 1; "
            "the guidance is not taken over"
        )
    sample = {
        "sampling_method": solvers.get(solver, "euler"),
        "num_sampling_steps": sampling["steps"],
        "timestep_shift": sampling["shift"],
        "cfg_scale": scale if as_published else 1.0,
        "cfg_interval_start": sampling["guidance_start"],
    }
    return {"transport": {"path_type": _PUBLISHED_PATHS[path], "prediction": prediction}, "sample": sample}, notes


def _scaling(data: _Section) -> tuple[bool, float]:
    return data.get("latent_norm", False), data.get("latent_multiplier", PUBLISHED_MULTIPLIER)


def _sampling(sample: _Section) -> dict[str, Any]:
    scale = sample.get("cfg_scale", 1.0)
    sampling = {
        "solver": sample.choose("sampling_method", "euler", _SOLVERS),
        "steps": sample.get("num_sampling_steps", 250),
        "shift": sample.get("timestep_shift", 0.3 if not sample.values else 0.0),
        "guidance_scale": max(scale, 1.0),
        "guidance_start": sample.get("cfg_interval_start", 0.0 if sample.values else 0.125),
    }
    # Below or at 1 the published sampler does not guide.
    return sampling | ({"guidance_channels": _GUIDED_CHANNELS} if scale > 1.0 else {})


def _transformer(root: _Section) -> ConvertedRecipe:
    data, vae, model = root.section("data"), root.section("vae"), root.section("model")
    train, optimizer, transport = root.section("train"), root.section("optimizer"), root.section("transport")
    sample = root.section("sample")
    prediction: Prediction = transport.choose("prediction", "velocity", _PREDICTIONS)
    if prediction == "score":
        raise UserError(f"{root.source}: transport.prediction: {NO_SCORE}")
    batch = train.get("global_batch_size", 1024)
    clip = optimizer.get("max_grad_norm", 0.0)
    normalised, multiplier = _scaling(data)
    if normalised and multiplier != 1.0:
        raise UserError(
            f"{root.source}: data.latent_multiplier: {multiplier} on top of latent_norm cannot be trained with "
            f"({PUBLISHED_MULTIPLIER} is the published default; write 1.0 for none)"
        )
    name = Path(train.get("output_dir", "output")) / train.get("exp_name", Path(root.source).stem)
    values = {
        "output": str(name),
        "latents": data.get("data_path", "runs/latents"),
        "normalisation": "latents" if normalised else "tokenizer",
        "transformer": {
            "size": model.get("model_type", "LightningDiT-XL/1").removeprefix("LightningDiT-"),
            "swiglu": model.get("use_swiglu", False),
            "rope": model.get("use_rope", False),
            "rmsnorm": model.get("use_rmsnorm", False),
            "qk_norm": model.get("use_qknorm", False),
            "adaln_shift": not model.get("wo_shift", False),
            "activation_checkpointing": "full" if model.get("use_checkpoint", False) else "none",
        },
        "flow": {
            "path": transport.choose("path_type", "Linear", _PATHS),
            "prediction": prediction,
            "times": {"kind": "logit_normal" if transport.get("use_lognorm", False) else "uniform"},
            "direction_weight": 1.0 if transport.get("use_cosine_loss", False) else 0.0,
        },
        "sampling": _sampling(sample),
        "optimizer": {
            "kind": "adamw",
            "learning_rate": optimizer.get("lr", 2e-4),
            "betas": [0.9, optimizer.get("beta2", 0.95)],
            "gradient_clip": clip or None,
        },
        "training": {
            "images": train.get("max_steps", 80_000) * batch,
            "batch_size": batch,
            "seed": train.get("global_seed", 0),
            "precision": "bf16",
            "ema_decay": 0.9999,
            "ema_warmup": False,
            "log_images": train.get("log_every", 100) * batch,
            "checkpoint_images": train.get("ckpt_every", 20_000) * batch,
        },
    }
    by_latents = "comes from the latents"
    reasons = {
        "ckpt_path": "a checkpoint to sample from: 'vavae convert' it, then 'vavae sample'",
        "data.image_size": by_latents,
        "data.num_classes": by_latents,
        "data.num_workers": "latents are mapped, not loaded by workers",
        "data.fid_reference_file": "belongs to 'vavae evaluate'",
        "data.valid_path": "the published validation never ran",
        "vae.model_name": "pass --tokenizer",
        "vae.downsample_ratio": "comes from the tokenizer",
        "model.in_chans": by_latents,
        "model.learn_sigma": "never trained",
        "train.ckpt": "a run resumes from its own output folder",
        "train.resume": "a run resumes from its own output folder",
        "train.weight_init": "starting weights are not taken over",
        "train.use_checkpoint": "changed a log line only",
        "sample.per_proc_batch_size": "'vavae sample --batch_size'; images do not depend on it",
        "sample.fid_num": "'vavae sample --count'",
        "sample.mode": "the ODE is what the published sampler runs",
        "sample.atol": "the solver's own, which is the published 1e-6",
        "sample.rtol": "the solver's own, which is the published 1e-3",
        "sample.using_cfg": "follows from the scale",
        "sample.reverse": "sampling goes from noise to data",
        "sample.likelihood": "likelihoods are not computed",
    }
    aside = []
    for section in (root, data, vae, model, train, optimizer, transport, sample):
        short = {key.removeprefix(section.name): why for key, why in reasons.items() if key.startswith(section.name)}
        aside += section.rest(short)
    if not normalised:
        aside.append(
            LeftAside("data.latent_multiplier", 1, f"{multiplier:g} must be the tokenizer's: --scaling_factor")
        )
    return ConvertedRecipe("train-dit", values, tuple(aside))


def _tokenizer(root: _Section) -> ConvertedRecipe:
    model, data, lightning = root.section("model"), root.section("data"), root.section("lightning")
    params, trainer = model.section("params"), lightning.section("trainer")
    shape, loss = params.section("ddconfig"), params.section("lossconfig")
    terms, loading = loss.section("params"), data.section("params")
    devices, nodes = trainer.get("devices", 8), trainer.get("num_nodes", 4)
    batch = loading.get("batch_size", 8) * devices * nodes
    embed, latent = params.get("embed_dim", 32), shape.get("z_channels", 32)
    if embed != latent:
        raise UserError(f"{root.source}: model.params.embed_dim {embed} is not ddconfig.z_channels {latent}")
    multipliers = shape.get("ch_mult", [1, 1, 2, 2, 4])
    resolution = shape.get("resolution", 256)
    levels = {resolution // 2**i: i for i in range(len(multipliers))}
    teacher = params.get("use_vf", "") if params.values.get("use_vf") is not None else ""
    params.unused.pop("use_vf", None)
    if teacher and teacher not in _TEACHERS:
        raise UserError(f"{root.source}: model.params.use_vf: {teacher!r} is not one of {', '.join(_TEACHERS)}")
    rate = model.get("base_learning_rate", 1e-4)
    optimizer = {"kind": "adam", "learning_rate": rate, "betas": [0.5, 0.9]}
    initial = root.get("weight_init", "") if root.values.get("weight_init") else ""
    values: dict[str, Any] = {
        "output": f"runs/{Path(root.source).stem}",
        "data": {"images": "/data/imagenet", "size": resolution, "crop": "random"},
        "tokenizer": {
            "latent_channels": latent,
            "base_channels": shape.get("ch", 128),
            "channel_multipliers": multipliers,
            "blocks_per_level": shape.get("num_res_blocks", 2),
            "attention_levels": [levels[at] for at in shape.get("attn_resolutions", [16]) if at in levels],
        },
        "objective": {
            "perceptual": {"weight": terms.get("perceptual_weight", 1.0)},
            "kl": {"weight": terms.get("kl_weight", 1e-6)},
            "adversarial": {
                "weight": terms.get("disc_weight", 0.5),
                # The published counter grows by two per batch; the first batch already counts as one.
                "start_images": terms.get("disc_start", 5001) // 2 * batch,
            },
            "alignment": _alignment(bool(teacher), params, terms),
        },
        "optimizer": optimizer,
        "discriminator_optimizer": optimizer,
        "training": {
            "images": trainer.get("max_epochs", 50) * _IMAGENET,
            "batch_size": batch,
            "precision": "fp32",
            "checkpoint_images": _IMAGENET,
        },
    }
    if teacher:
        # As published: DINOv2 sees 224 pixels, MAE the image as it is, both without ImageNet's normalisation.
        size = 224 if teacher == "dinov2" else resolution
        values["teacher"] = {"name": _TEACHERS[teacher], "input_size": size, "normalisation": "published"}
    if initial:
        values["initial"] = initial
    sections = (root, model, params, shape, loss, terms, data, loading, lightning, trainer)
    reasons = {
        "ckpt_path": "a checkpoint to evaluate: 'vavae convert' it, then 'vavae evaluate'",
        "init_weight": "starting weights: pass --initial",
        "target": "names a class of the published code",
        "monitor": "checkpoints are kept by age",
        "double_z": "always so",
        "in_channels": "always 3",
        "out_ch": "always 3",
        "dropout": "never used",
        "precision": "written as fp32, the published one",
    }
    aside = [part for section in sections for part in section.rest(reasons)]
    return ConvertedRecipe("train-tokenizer", values, tuple(aside))


def _alignment(enabled: bool, params: _Section, terms: _Section) -> dict[str, Any]:
    keys = ("vf_weight", "adaptive_vf", "cos_margin", "distmat_margin", "cos_weight", "distmat_weight")
    reverse, fixed = params.get("reverse_proj", False), params.get("proj_fix", False)
    if not enabled:
        for key in keys:
            terms.unused.pop(key, None)
        return {"enabled": False}
    return {
        "weight": terms.get("vf_weight", 100.0),
        "adaptive": terms.get("adaptive_vf", False),
        "cos_margin": terms.get("cos_margin", 0.0),
        "distance_margin": terms.get("distmat_margin", 0.0),
        "cos_weight": terms.get("cos_weight", 1.0),
        "distance_weight": terms.get("distmat_weight", 1.0),
        "projection": "latent_to_teacher" if reverse else "teacher_to_latent",
        "train_projection": not fixed,
    }
