"""Convert RAE's YAML configurations (bytetriper/RAE): decoder training, transformer training, sampling.

RAE's times run from data (0) to noise (1), ours the other way.
"""

import math
import re
from pathlib import Path
from typing import Any

from vavae.checkpoints.published_keys import ConvertedRecipe, Keys
from vavae.config import flat
from vavae.errors import UserError
from vavae.transformer.ditdh import PREFIX, SIZES

_IMAGENET = 1_281_167
_SHIFT_BASE = 4096
_LAST = 0.999  # base times of training and sampling end here
_PATCH = 16  # of all published decoders
# Beginning of encoder_cls -> our teachers without their size, and their patch.
_ENCODERS = {"dinov2": ("dinov2-registers", 14), "siglip2": ("siglip2", 16), "mae": ("mae", 16)}
_TEACHER_SIZES = ("small", "base", "large", "giant", "huge", "so400m")
_SOLVERS = {name: name for name in ("euler", "midpoint", "rk4", "dopri5")} | {"heun2": "heun"}
_S1, _S2, _TRAIN, _DISC = "stage_1.params.", "stage_2.params.", "training.", "gan.disc."
_GUIDANCE_MODEL = "guidance.guidance_model."

_CLASS = "a class of the published code"
_BY_LATENTS = "comes from the latents"
_TOKENIZER = "comes with the tokenizer: 'vavae convert' its decoder, and pass --tokenizer"
_REASONS = {
    "stage_1.target": _CLASS,
    "stage_2.target": _CLASS,
    f"{_S1}normalization_stat_path": "statistics are measured after training, or come with the tokenizer",
    f"{_S1}encoder_config_path": "the teacher's name says it",
    f"{_TRAIN}num_workers": "write data.workers, or map latents",
    f"{_TRAIN}grad_accum_steps": "training.batch_size is the whole batch",
    f"{_TRAIN}sample_every": "samples are drawn with each checkpoint",
    f"{_TRAIN}checkpoint_interval": "write training.checkpoint_images",
    f"{_TRAIN}cfg_scale": "of samples during the training",
    f"{_TRAIN}random_flip": "'vavae encode' makes the latents of mirrored images",
    f"{_DISC}arch.dino_ckpt_path": "facebook/dino-vits8 has the same weights",
    "misc.num_classes": _BY_LATENTS,
    "misc.null_label": _BY_LATENTS,
    f"{_S2}num_classes": _BY_LATENTS,
    f"{_S2}in_channels": _BY_LATENTS,
    "sampler.params.atol": "the solver's own, which is the published 1e-6",
    "sampler.params.rtol": "the solver's own, which is the published 1e-3",
}


def rae_recipe(keys: Keys) -> ConvertedRecipe:
    """Return the recipe of one of RAE's configurations.

    Raises:
        UserError: A key has a value that cannot be converted, or is not known.
    """
    keys.fixed({f"{_S1}reshape_to_2d": True, f"{_S1}encoder_params.normalize": True})
    _class(keys, "stage_1.target", "RAE")
    if not any(key.startswith("stage_2.") for key in keys.values):
        return _decoder_training(keys)
    _class(keys, "stage_2.target", "DiTwDDTHead")
    if any(key.startswith(_TRAIN) for key in keys.values):
        return _transformer_training(keys)
    return _sampling_file(keys)


def _class(keys: Keys, key: str, wanted: str) -> None:
    if str(keys.values.get(key)).rpartition(".")[2] != wanted:
        raise UserError(f"{keys.source}: {key} must be {wanted}, got {keys.values.get(key)}")


def _teacher(keys: Keys) -> tuple[str, int, int]:
    """Return the encoder's name, its input size, and rows of its grid."""
    kind = keys.get(f"{_S1}encoder_cls", "Dinov2withNorm")
    known = next((pair for begin, pair in _ENCODERS.items() if kind.lower().startswith(begin)), None)
    if known is None:
        raise UserError(f"{keys.source}: {_S1}encoder_cls must begin with one of {', '.join(_ENCODERS)}, got {kind}")
    paths = [key for key in keys.values if key.startswith(f"{_S1}encoder_params.") and not key.endswith("normalize")]
    text = " ".join(str(keys.values[key]) for key in [*paths, f"{_S1}encoder_config_path"] if key in keys.values)
    keys.used += paths
    size = next((size for size in _TEACHER_SIZES if size in text.lower()), None)
    if size is None:
        keys.assumed["size of the encoder"] = size = "base"
    pixels = keys.get(f"{_S1}encoder_input_size", 224)
    return f"{known[0]}-{size}", pixels, pixels // known[1]


def _epochs(keys: Keys, key: str, default: int) -> int:
    keys.assumed["images of an epoch"] = _IMAGENET
    return round(keys.get(key, float(default)) * _IMAGENET)


def _optimizer(keys: Keys, before: str, decay: dict[str, Any]) -> dict[str, Any]:
    """Return AdamW's settings, in a section or among the flat keys of `training`, and a schedule."""
    flat_names = {"lr": "base_lr", "betas": "beta", "weight_decay": "wd"}
    nested = any(key.startswith(f"{before}optimizer.") for key in keys.values)

    def name(key: str) -> str:
        return f"{before}optimizer.{key}" if nested else before + flat_names[key]

    return {
        "kind": "adamw",
        "learning_rate": keys.get(name("lr"), 2e-4),
        "betas": keys.get(name("betas"), [0.9, 0.95]),
        "weight_decay": keys.get(name("weight_decay"), 0.0),
        "schedule": decay,
    }


def _schedule(keys: Keys, before: str, epochs: float, kind: str) -> tuple[dict[str, Any], float]:
    """Return the schedule of the learning rate, and the epochs of the run, which ends when its decay does."""
    nested = any(key.startswith(f"{before}scheduler.") for key in keys.values)
    within = f"{before}scheduler." if nested else before
    kind = keys.get(f"{within}type" if nested else f"{within}schedule_type", kind)
    if kind not in ("cosine", "linear"):
        raise UserError(f"{keys.source}: {within}type must be cosine or linear, got {kind}")
    rate = keys.get(f"{within}base_lr", 2e-4)
    keys.fixed({f"{before}optimizer.lr": rate} if nested else {})
    final = keys.get(f"{within}final_lr", 2e-5) / rate
    begin = keys.get(f"{within}warmup_epochs" if nested else f"{within}decay_start_epoch", 1.0 if nested else 40.0)
    rises = nested and keys.get(f"{within}warmup_from_zero", True)
    end = keys.get(f"{within}decay_end_epoch", float(epochs if kind == "cosine" else 800))
    if end < epochs:
        keys.assumed["epochs, where the learning rate has ended its decay,"] = f"{end:g} instead of {epochs:g}"
        epochs = end
    schedule: dict[str, Any] = {"kind": kind, "warmup_images": round(begin * _IMAGENET) if rises else 0}
    if begin >= epochs:
        return {**schedule, "kind": "constant"}, epochs
    if end > epochs:  # the run ends within the decay
        if kind == "cosine":
            raise UserError(f"{keys.source}: {within}decay_end_epoch must be the epochs {epochs:g}, got {end:g}")
        final = 1 + (final - 1) * (epochs - begin) / (end - begin)
    whole = {} if rises else {"decay_images": round((epochs - begin) * _IMAGENET)}
    return {**schedule, "final": final, **whole}, epochs


def _training(keys: Keys, images: int, batch: int, ema: float, precision: str) -> dict[str, Any]:
    keys.assumed["--precision"] = precision
    values = {
        "images": images,
        "batch_size": batch,
        "seed": keys.given(f"{_TRAIN}global_seed", 0),
        "precision": precision,
        "ema_decay": keys.get(f"{_TRAIN}ema_decay", ema),
        "ema_warmup": False,
    }
    for ours, published in (("log_images", ("log_every", "log_interval")), ("checkpoint_images", ("ckpt_every",))):
        for name in published:
            if _TRAIN + name in keys.values:
                values[ours] = keys.given(_TRAIN + name, 100) * batch
    return {f"training.{name}": value for name, value in values.items()}


def _decoder_training(keys: Keys) -> ConvertedRecipe:
    teacher, pixels, grid = _teacher(keys)
    named = keys.get(f"{_S1}decoder_config_path", "configs/decoder/ViTXL")
    size = re.search(r"ViT-?(XL|L|B)\b", named)
    if size is None:
        raise UserError(f"{keys.source}: {_S1}decoder_config_path must end with ViTB, ViTL or ViTXL, got {named}")
    keys.fixed(_FIXED_DISCRIMINATOR)
    epochs = keys.get(f"{_TRAIN}epochs", 16.0)
    schedule, epochs = _schedule(keys, _TRAIN, epochs, "cosine")
    own, end = _schedule(keys, _DISC, epochs, "cosine")
    if end != epochs:
        raise UserError(f"{keys.source}: {_DISC}scheduler.decay_end_epoch must be the epochs {epochs:g}, got {end:g}")
    augment = keys.get(f"{_DISC}augment.prob", 1.0)
    if augment not in (0.0, 1.0):
        raise UserError(f"{keys.source}: {_DISC}augment.prob must be 0 or 1, got {augment:g}")
    batch_key = f"{_TRAIN}batch_size" if f"{_TRAIN}batch_size" in keys.values else f"{_TRAIN}global_batch_size"
    keys.assumed["--data-path"] = "/data/imagenet"
    adversarial = {
        "weight": keys.get("gan.loss.disc_weight", 0.75),
        "start_images": _epochs(keys, "gan.loss.disc_start", 8),
        "discriminator_start_images": _epochs(keys, "gan.loss.disc_upd_start", 6),
        "maximum": keys.get("gan.loss.max_d_weight", 1e4),
        "augment": augment == 1.0,
        "discriminator": {"kind": "dino", "dino": "facebook/dino-vits8"},
    }
    values = {
        "output": f"runs/{Path(keys.source).stem}",
        "data": {"images": "/data/imagenet", "size": grid * _PATCH, "crop": "random"},
        "teacher": {"name": teacher, "input_size": pixels},
        "representation": {"size": size[1], "patch_size": _PATCH, "noise": keys.get(f"{_S1}noise_tau", 0.8)},
        "objective.reduction": "mean",
        "objective.pixel": {"kind": "l1", "weight": 0.5},  # on [0, 1], as published
        "objective.perceptual.weight": keys.get("gan.loss.perceptual_weight", 1.0),
        "objective.alignment.enabled": False,
        "objective.adversarial": adversarial,
        "optimizer": {**_optimizer(keys, _TRAIN, schedule), "gradient_clip": keys.given(_CLIP, 0.0) or None},
        "discriminator_optimizer": _optimizer(keys, _DISC, own),
        **_training(keys, round(epochs * _IMAGENET), keys.get(batch_key, 512), 0.9978, "bf16"),
    }
    for key in ("stage_1.ckpt", f"{_S1}pretrained_decoder_path"):
        if keys.values.get(key):
            values["initial"] = keys.given(key, "")
    return keys.recipe("train-tokenizer", values, _REASONS)


_CLIP = f"{_TRAIN}clip_grad"
_FIXED_DISCRIMINATOR: dict[str, Any] = {
    f"{_DISC}arch.ks": 9,
    f"{_DISC}arch.norm_type": "bn",
    f"{_DISC}arch.using_spec_norm": True,
    f"{_DISC}arch.recipe": "S_8",
    f"{_DISC}augment.cutout": 0.0,
    "gan.loss.disc_loss": "hinge",
    "gan.loss.gen_loss": "vanilla",
    "gan.loss.lpips_start": 0,
    "gan.loss.disc_updates": 1,
}


def _numbers(keys: Keys, key: str, default: list[int]) -> tuple[int, ...]:
    values = keys.get(key, default)
    if len(values) != len(default) or not all(isinstance(value, int) and value > 0 for value in values):
        raise UserError(f"{keys.source}: {key} must be {len(default)} whole numbers above 0, got {values}")
    return tuple(values)


def _shift(keys: Keys, grid: int) -> tuple[float, Any]:
    """Return the time shift as a number, and as our key: `dimension` if it follows from the latents."""
    channels, height, width = _numbers(keys, "misc.latent_size", [768, 16, 16])
    dimension = keys.get("misc.time_dist_shift_dim", channels * height * width)
    base = keys.get("misc.time_dist_shift_base", _SHIFT_BASE)
    size = keys.get(f"{_S2}input_size", height)
    if (size, height, width) != (grid, grid, grid):
        text = f"'dimension', {grid} x {grid} latents of encoder_input_size"
        keys.assumed["time shift"] = f"{text}, not input_size {size}, latent_size and the shift of {dimension}"
        dimension = channels * grid * grid
    if dimension < base:
        raise UserError(f"{keys.source}: misc.time_dist_shift_dim must be at least {base}, got {dimension}")
    number = math.sqrt(base / dimension)
    return number, "dimension" if (base, dimension) == (_SHIFT_BASE, channels * grid * grid) else number


def _transformer(keys: Keys) -> dict[str, Any]:
    """Return our keys of the transformer's shape."""
    keys.fixed({f"{_S2}{name}": value for name, value in _FIXED_TRANSFORMER.items()})
    pairs = {
        "widths": _numbers(keys, f"{_S2}hidden_size", [1152, 2048]),
        "depths": _numbers(keys, f"{_S2}depth", [28, 2]),
        "heads": _numbers(keys, f"{_S2}num_heads", [16, 16]),
    }
    named = next((size for size, numbers in SIZES.items() if numbers == pairs), None)
    shape: dict[str, Any] = {"size": PREFIX + (named or "XL")}
    if named is None:
        for ours, published in (("width", "widths"), ("depth", "depths"), ("heads", "heads")):
            shape[ours], shape[f"head_{ours}"] = pairs[published]
    switches = {name: keys.get(f"{_S2}use_{published}", name != "qk_norm") for name, published in _SWITCHES.items()}
    return {**shape, **switches, "label_dropout": keys.get(f"{_S2}class_dropout_prob", 0.1)}


_SWITCHES = {"qk_norm": "qknorm", "swiglu": "swiglu", "rope": "rope", "rmsnorm": "rmsnorm"}
_FIXED_TRANSFORMER = {"patch_size": 1, "mlp_ratio": 4.0, "wo_shift": False, "use_pos_embed": True}


def _times(keys: Keys, number: float, shift: Any) -> dict[str, Any]:
    named = keys.get("transport.params.time_dist_type", "uniform")
    first = round(1 - _LAST, 6)
    low = number * first / (1 + (number - 1) * first)
    found = re.fullmatch(r"logit-normal_(-?[\d.]+)_([\d.]+)", named)
    if named != "uniform" and found is None:
        raise UserError(
            f"{keys.source}: transport.params.time_dist_type must be uniform or logit-normal_MEAN_STD, got {named}"
        )
    times = {"kind": "uniform"} if found is None else {"mean": -float(found[1]) or 0.0, "std": float(found[2])}
    return {"kind": "logit_normal", **times, "shift": shift, "low": low}


def _sampling(keys: Keys, shift: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings of sampling, and reasons for the keys that have none."""
    keys.fixed({"sampler.mode": "ODE", "sampler.params.reverse": False})
    values = {
        "solver": keys.choose("sampler.params.sampling_method", "euler", _SOLVERS),
        "steps": keys.get("sampler.params.num_steps", 50),
        "shift": shift,
        "end": _LAST,
    }
    method, scale = keys.given("guidance.method", "cfg"), keys.given("guidance.scale", 1.0)
    ends = {}
    for name, default in (("min", 0.0), ("max", 1.0)):
        key = next((key for key in (f"guidance.t-{name}", f"guidance.t_{name}") if key in keys.values), "")
        ends[name] = keys.given(key, default)
    values |= {"guidance_start": 1 - ends["max"], "guidance_stop": 1 - ends["min"]}
    reasons = {}
    if method not in ("cfg", "autoguidance"):
        raise UserError(f"{keys.source}: guidance.method must be cfg or autoguidance, got {method}")
    if method == "autoguidance":
        model = f"{keys.values.get(f'{_GUIDANCE_MODEL}target')} {keys.values.get(f'{_GUIDANCE_MODEL}ckpt')}"
        text = f"autoguidance of scale {scale:g}: convert its weak model {model} too"
        reasons = {key: text for key in keys.values if re.match(r"guidance\.(?!t[-_]m)", key)}
        keys.used = [key for key in keys.used if key not in reasons]
    elif scale > 1:
        values["guidance_scale"] = scale
    return values, reasons


def _transformer_training(keys: Keys) -> ConvertedRecipe:
    _, _, grid = _teacher(keys)
    keys.fixed({"transport.params.path_type": "Linear", "transport.params.prediction": "velocity"})
    number, shift = _shift(keys, grid)
    sampling, reasons = _sampling(keys, shift)
    epochs = keys.get(f"{_TRAIN}epochs", 1400.0)
    schedule, epochs = _schedule(keys, _TRAIN, epochs, "linear")
    clip = keys.get(_CLIP, 1.0) or None
    keys.assumed["images of an epoch"] = _IMAGENET
    batch = keys.get(f"{_TRAIN}global_batch_size", 1024)
    values = {
        "output": f"runs/{Path(keys.source).stem}",
        "latents": "runs/latents",
        "transformer": _transformer(keys),
        "flow": {"direction_weight": 0.0, "times": _times(keys, number, shift)},
        "sampling": sampling,
        "optimizer": {**_optimizer(keys, _TRAIN, schedule), "gradient_clip": clip},
        **_training(keys, round(epochs * _IMAGENET), batch, 0.9995, "fp32"),
    }
    if keys.values.get("stage_2.ckpt"):
        values["initial"] = keys.given("stage_2.ckpt", "")
    return keys.recipe("train-dit", values, _below_stage_1(keys) | _REASONS | reasons)


def _sampling_file(keys: Keys) -> ConvertedRecipe:
    _, _, grid = _teacher(keys)
    number, _ = _shift(keys, grid)
    values, reasons = _sampling(keys, number)
    reasons |= {key: "comes from the generator" for key in flat(keys.content) if key.startswith(("stage_2", "transp"))}
    generator = keys.given("stage_2.ckpt", "generator")
    return keys.recipe("sample", {"generator": generator, **values}, _below_stage_1(keys) | _REASONS | reasons)


def _below_stage_1(keys: Keys) -> dict[str, str]:
    return {key: _TOKENIZER for key in keys.values if key.startswith("stage_1.")}
