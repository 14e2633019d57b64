"""Convert published YAML configurations to recipes of ours, as plain values.

Every key of a file is used, ignored with a reason because it does not change the training, or refused. A missing key is
assumed, and listed with its value.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vavae.checkpoints.published import Ignored
from vavae.checkpoints.published_keys import DISCRETE, PRECISIONS, ConvertedRecipe, Keys, plain
from vavae.checkpoints.published_rae_recipes import rae_recipe
from vavae.checkpoints.published_tokenizer import tokenizer_recipe
from vavae.config import flat
from vavae.errors import UserError
from vavae.flow import PathName, Prediction
from vavae.flow.loss import NO_SCORE
from vavae.io.yaml_files import read_yaml
from vavae.transformer.sizes import parse_size

_PATHS: dict[str, PathName] = {"linear": "linear", "gvp": "cosine", "vp": "vp"}
_PREDICTIONS: dict[str, Prediction] = {"velocity": "velocity", "noise": "noise", "score": "score"}
# In options of checkpoints also REPA's words; `published_repa` converts its velocity.
_RECORDED_PATHS: dict[str, PathName] = _PATHS | {"cosine": "cosine"}
_RECORDED_PREDICTIONS: dict[str, Prediction] = _PREDICTIONS | {"v": "velocity"}
_SOLVERS = {name: name for name in ("euler", "midpoint", "rk4", "dopri5")} | {"heun2": "heun"}
_PUBLISHED_PATHS: dict[PathName, str] = {"linear": "Linear", "cosine": "GVP", "vp": "VP"}
# The default factor of latents.
PUBLISHED_MULTIPLIER = 0.18215
# The published sampler guides this many leading channels.
_GUIDED_CHANNELS = 3

# Our keys -> keys of LightningDiT's configurations, and the defaults of its code.
_TRANSFORMER: dict[str, tuple[str, Any]] = {
    "latents": ("data.data_path", "runs/latents"),
    "transformer.swiglu": ("model.use_swiglu", False),
    "transformer.rope": ("model.use_rope", False),
    "transformer.rmsnorm": ("model.use_rmsnorm", False),
    "transformer.qk_norm": ("model.use_qknorm", False),
    "transformer.label_dropout": ("model.class_dropout_prob", 0.1),
    "flow.times.std": ("transport.lognorm_sigma", 1.0),
    "optimizer.learning_rate": ("optimizer.lr", 2e-4),
    "optimizer.weight_decay": ("optimizer.weight_decay", 0.0),
    "optimizer.eps": ("optimizer.eps", 1e-8),
    "training.seed": ("train.global_seed", 0),
    "training.ema_decay": ("train.ema_decay", 0.9999),
}
_BY_LATENTS = "comes from the latents"
_OWN_FOLDER = "a run resumes from its own output folder"
_TRANSFORMER_REASONS = {
    "ckpt_path": "a checkpoint to sample from: 'vavae convert' it, then 'vavae sample'",
    "data.image_size": _BY_LATENTS,
    "data.num_classes": _BY_LATENTS,
    "data.num_workers": "latents are mapped, not loaded by workers",
    "data.fid_reference_file": "belongs to 'vavae evaluate'",
    "data.valid_path": "the published validation never ran",
    "vae.model_name": "pass --tokenizer",
    "vae.downsample_ratio": "comes from the tokenizer",
    "model.in_chans": _BY_LATENTS,
    "model.learn_sigma": "never trained",
    "train.ckpt": _OWN_FOLDER,
    "train.resume": _OWN_FOLDER,
    "train.use_checkpoint": "changed a log line only",
    "sample.per_proc_batch_size": "'vavae sample --batch_size'; images do not depend on it",
    "sample.fid_num": "'vavae sample --count'",
    "sample.atol": "the solver's own, which is the published 1e-6",
    "sample.rtol": "the solver's own, which is the published 1e-3",
    "sample.using_cfg": "follows from the scale",
    "sample.reverse": "sampling goes from noise to data",
    "sample.likelihood": "likelihoods are not computed",
}


def convert_recipe(path: Path) -> ConvertedRecipe:
    """Return a recipe of ours from a published YAML file.

    Raises:
        UserError: The file is not YAML, is the configuration of another system, or has a key with a value that cannot
            be converted.
    """
    values = read_yaml(path)
    keys, model = Keys(values, path), values.get("model") or {}
    if "stage_1" in values:
        return rae_recipe(keys)
    if "model_type" in model:
        return _transformer(keys)
    if "params" in model or "target" in model:
        return tokenizer_recipe(keys)
    for key, value in keys.values.items():
        if key.rpartition(".")[2] in ("target", "_target_", "class_name", "_class_name"):
            raise UserError(
                f"{path}: {key} must be a LightningDiT (model.model_type) or LDM's AutoencoderKL (model.target), "
                f"got {value}"
            )
    if "transport" in values:
        raise UserError(f"{path}: model.model_type is missing; it must be LightningDiT-XL/1 or another of its sizes")
    raise UserError(f"{path}: must be a configuration of LightningDiT training, of VA-VAE training or of RAE")


def published_sampling(training: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the sampling settings of a training configuration, and a text with the assumed ones.

    By default LightningDiT's sampler shifts times, and SiT's sampler (with flat `args`) does not. REPA's numbers are of
    its stochastic sampler.
    """
    keys = Keys({"sample": training.get("sample")}, "config")
    stochastic = (training.get("transport") or {}).get("prediction") == "v"
    values = _sampling(keys, 0.0 if "args" in training else 0.3, stochastic)
    return values, ", ".join(f"{key.removeprefix('sample.')} {plain(value)}" for key, value in keys.assumed.items())


def published_scaling(training: Mapping[str, Any]) -> tuple[bool, float] | None:
    """Return whether statistics normalized the latents of a training, and the multiplier on top.

    None means that the configuration lacks the section `data`.
    """
    if not isinstance(training.get("data"), Mapping):
        return None
    return _scaling(Keys({"data": training["data"]}, "config"))


def recorded_flow(training: Mapping[str, Any], source: str | Path) -> tuple[PathName | None, Prediction | None]:
    """Return path and prediction of the training configuration in `source`; None where it records none.

    Raises:
        UserError: One is unknown.
    """
    recorded = training.get("transport") or {}
    section = "args" if "args" in training else "transport"
    keys = Keys({section: recorded}, source)
    path = keys.choose(f"{section}.path_type", "Linear", _RECORDED_PATHS) if "path_type" in recorded else None
    named = "prediction" in recorded
    return path, keys.choose(f"{section}.prediction", "velocity", _RECORDED_PREDICTIONS) if named else None


def published_flow(
    training: Mapping[str, Any], source: str | Path, path: PathName | None, prediction: Prediction | None
) -> tuple[PathName, Prediction, list[str]]:
    """Return path and prediction of a published transformer, and a note if one of them is assumed.

    `path` and `prediction` are the user's.

    Raises:
        UserError: The file and the user differ, or the file was trained on discrete steps or by another system.
    """
    recorded = training.get("transport") or {}
    discrete = _discrete_key(training)
    if not recorded and discrete and (path is None or prediction is None):
        raise UserError(
            f"{source}: {discrete}, and only flows are sampled here; if it was trained as a flow, give path and "
            "prediction"
        )
    own_path, own_prediction = recorded_flow(training, source)
    for name, own, given in (("path", own_path, path), ("prediction", own_prediction, prediction)):
        if own is not None and given not in (None, own):
            raise UserError(f"{source}: {name} must be {own}, as its file says, got {given}")
    flow = own_path or path or "linear", own_prediction or prediction or "velocity"
    assumed = [f"path {flow[0]}"] if own_path is None and path is None else []
    assumed += [f"prediction {flow[1]}"] if own_prediction is None and prediction is None else []
    notes = [f"assumed, as the file does not say: {', '.join(assumed)}"] if assumed else []
    if own_path and own_prediction and "args" in training:
        notes.append(f"taken from its args: path {own_path}, prediction {own_prediction}")
    return *flow, notes


def _discrete_key(training: Mapping[str, Any]) -> str:
    """Return in words a key of diffusion with discrete steps, or of another system; "" if there is none."""
    for key, value in flat(training).items():
        if key.rpartition(".")[2] in DISCRETE and value:
            return f"{key} {value} is of a diffusion of discrete steps"
        if key in ("args.model", "model.model_type") and not str(value).startswith(("SiT-", "LightningDiT-")):
            return f"{key} {value} is not known as a flow"
    return ""


def published_training(
    sampling: Mapping[str, Any], path: PathName, prediction: Prediction = "velocity"
) -> tuple[dict[str, Any], list[str]]:
    """Return the part of a configuration that `published_sampling` and `published_flow` read, to save with weights.

    The notes name settings that it cannot express.

    Raises:
        UserError: The published sampler does not support the prediction.
    """
    if prediction not in _PREDICTIONS.values():
        raise UserError(f"prediction must be one of {', '.join(_PREDICTIONS)} in published files, got {prediction}")
    solvers = {ours: name for name, ours in _SOLVERS.items()}
    solver, scale, notes = sampling["solver"], sampling["guidance_scale"], []
    if solver not in solvers:
        notes.append(f"the published sampler solves the ODE; the solver {solver} is not taken over")
    if sampling["end"] != 1:
        notes.append(f"the published sampler ends at data; the end {sampling['end']} is not taken over")
    usual = {"guidance_channels": _GUIDED_CHANNELS, "guidance_stop": 1.0, "guidance_kind": "cfg"}
    as_published = scale > 1 and all(sampling[key] == value for key, value in usual.items())
    if scale != 1 and not as_published:
        notes.append(
            f"the published sampler guides {_GUIDED_CHANNELS} channels from a time on, by a scale above 1 and without "
            "label; the guidance is not taken over"
        )
    sample = {
        "sampling_method": solvers.get(solver, "euler"),
        "num_sampling_steps": sampling["steps"],
        "timestep_shift": sampling["shift"],
        "cfg_scale": scale if as_published else 1.0,
        "cfg_interval_start": sampling["guidance_start"],
    }
    return {"transport": {"path_type": _PUBLISHED_PATHS[path], "prediction": prediction}, "sample": sample}, notes


def _scaling(keys: Keys) -> tuple[bool, float]:
    return keys.get("data.latent_norm", False), keys.get("data.latent_multiplier", PUBLISHED_MULTIPLIER)


def _sampling(keys: Keys, shift: float = 0.3, stochastic: bool = False) -> dict[str, Any]:
    silent = not any(key.startswith("sample.") for key in keys.values)
    scale = keys.get("sample.cfg_scale", 1.0)
    solver = keys.choose("sample.sampling_method", "euler", _SOLVERS)
    mode = (keys.get("sample.mode", "SDE") if stochastic else keys.given("sample.mode", "ODE")).upper()
    if mode not in ("ODE", "SDE") or (mode == "SDE" and solver != "euler"):
        raise UserError(f"{keys.source}: sample.mode must be ODE, or SDE with Euler, got {mode} with {solver}")
    values = {
        "solver": "euler_maruyama" if mode == "SDE" else solver,
        "steps": keys.get("sample.num_sampling_steps", 250),
        "shift": keys.get("sample.timestep_shift", shift if silent else 0.0),
        "guidance_scale": max(scale, 1.0),
    }
    # At 1 and below the published sampler does not guide.
    start = keys.get if scale > 1.0 else keys.given
    values["guidance_start"] = start("sample.cfg_interval_start", 0.125 if silent else 0.0)
    if "sample.cfg_interval_end" in keys.values:
        values["guidance_stop"] = keys.given("sample.cfg_interval_end", 1.0)
    return values | ({"guidance_channels": _GUIDED_CHANNELS} if scale > 1.0 else {})


def _transformer(keys: Keys) -> ConvertedRecipe:
    size = keys.get("model.model_type", "LightningDiT-XL/1")
    if not size.startswith("LightningDiT-"):
        raise UserError(f"{keys.source}: model.model_type must begin with LightningDiT-, got {size}")
    size = size.removeprefix("LightningDiT-")
    parse_size(size)
    keys.fixed({"model.mlp_ratio": 4.0})
    prediction: Prediction = keys.choose("transport.prediction", "velocity", _PREDICTIONS)
    if prediction == "score":
        raise UserError(f"{keys.source}: transport.prediction: {NO_SCORE}")
    batch = keys.get("train.global_batch_size", 1024)
    normalized, multiplier = _scaling(keys)
    if normalized and multiplier != 1.0:
        raise UserError(
            f"{keys.source}: data.latent_multiplier must be 1.0 together with latent_norm, got {multiplier} "
            f"({PUBLISHED_MULTIPLIER} is the published default)"
        )
    lognormal = keys.get("transport.use_lognorm", False)
    shifted = keys.given("transport.shift_lg", False)
    mean = ("transport.shifted_mu", 0.0) if shifted else ("transport.lognorm_mu", 0.0)
    output = Path(keys.get("train.output_dir", "output")) / keys.get("train.exp_name", Path(keys.source).stem)
    values = {
        "output": str(output),
        "normalization": "latents" if normalized else "tokenizer",
        "transformer.size": size,
        **keys.table(_TRANSFORMER),
        "transformer.adaln_shift": not keys.get("model.wo_shift", False),
        "transformer.activation_checkpointing": "full" if keys.given("model.use_checkpoint", False) else "none",
        "flow.path": keys.choose("transport.path_type", "Linear", _PATHS),
        "flow.prediction": prediction,
        "flow.times.kind": "logit_normal" if lognormal else "uniform",
        "flow.times.mean": keys.get(*mean),
        # 0 turns the shift off.
        "flow.times.shift": keys.get("transport.train_timestep_shift", 0.0) or 1.0,
        "flow.direction_weight": 1.0 if keys.get("transport.use_cosine_loss", False) else 0.0,
        **{f"sampling.{name}": value for name, value in _sampling(keys).items()},
        "optimizer.kind": "adamw",
        "optimizer.betas": [keys.get("optimizer.beta1", 0.9), keys.get("optimizer.beta2", 0.95)],
        "optimizer.gradient_clip": keys.given("optimizer.max_grad_norm", 0.0) or None,
        "training.images": keys.get("train.max_steps", 80_000) * batch,
        "training.batch_size": batch,
        "training.precision": keys.choose("train.mixed_precision", "bf16", PRECISIONS),
        "training.ema_warmup": False,
        "training.log_images": keys.get("train.log_every", 100) * batch,
        "training.checkpoint_images": keys.get("train.ckpt_every", 20_000) * batch,
    }
    for key in ("data.random_flip", "data.use_flip"):
        if key in keys.values:
            values["flip"] = keys.given(key, True)
    if keys.values.get("train.weight_init"):
        values["initial"] = keys.given("train.weight_init", "")
    recipe = keys.recipe("train-dit", values, _TRANSFORMER_REASONS)
    if normalized:
        return recipe
    factor = Ignored("data.latent_multiplier", 1, f"{multiplier:g} must be the tokenizer's: --scaling_factor")
    return replace(recipe, ignored=(*recipe.ignored, factor))
