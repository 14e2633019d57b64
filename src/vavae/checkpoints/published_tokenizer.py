"""Convert published configurations of autoencoders (LDM, VA-VAE) to recipes of ours."""

import math
from pathlib import Path
from typing import Any

from vavae.checkpoints.published_keys import PRECISIONS, ConvertedRecipe, Keys
from vavae.errors import UserError

_TEACHERS = {"dinov2": "dinov2-large", "mae": "mae-large"}
# The published image set: ImageNet's training images without one file.
_IMAGENET = 1_281_166
# Our keys -> keys of LDM's and VA-VAE's configurations, and the defaults of LDM's constructors.
_SHAPE, _LOSS, _DATA, _TRAINER = (
    "model.params.ddconfig.",
    "model.params.lossconfig.params.",
    "data.params.",
    "lightning.trainer.",
)
_TOKENIZER: dict[str, tuple[str, Any]] = {
    "tokenizer.base_channels": (f"{_SHAPE}ch", 128),
    "tokenizer.blocks_per_level": (f"{_SHAPE}num_res_blocks", 2),
    "objective.perceptual.weight": (f"{_LOSS}perceptual_weight", 1.0),
    "objective.kl.weight": (f"{_LOSS}kl_weight", 1.0),
    "objective.adversarial.weight": (f"{_LOSS}disc_weight", 1.0),
    "objective.adversarial.discriminator.layers": (f"{_LOSS}disc_num_layers", 3),
}
_ALIGNMENT: dict[str, tuple[str, Any]] = {
    "objective.alignment.weight": (f"{_LOSS}vf_weight", 100.0),
    "objective.alignment.adaptive": (f"{_LOSS}adaptive_vf", False),
    "objective.alignment.cos_margin": (f"{_LOSS}cos_margin", 0.0),
    "objective.alignment.distance_margin": (f"{_LOSS}distmat_margin", 0.0),
    "objective.alignment.cos_weight": (f"{_LOSS}cos_weight", 1.0),
    "objective.alignment.distance_weight": (f"{_LOSS}distmat_weight", 1.0),
}
_ALIGNED_ONLY = ("model.params.reverse_proj", "model.params.proj_fix", *(key for key, _ in _ALIGNMENT.values()))
_TOKENIZER_FIXED: dict[str, Any] = {
    f"{_SHAPE}double_z": True,
    f"{_SHAPE}in_channels": 3,
    f"{_SHAPE}out_ch": 3,
    f"{_SHAPE}dropout": 0.0,
    f"{_SHAPE}attn_type": "vanilla",
    f"{_SHAPE}resamp_with_conv": True,
    f"{_SHAPE}use_linear_attn": False,
    f"{_SHAPE}tanh_out": False,
    f"{_SHAPE}give_pre_end": False,
    f"{_LOSS}disc_factor": 1.0,
    f"{_LOSS}disc_in_channels": 3,
    f"{_LOSS}disc_conditional": False,
    f"{_LOSS}use_actnorm": False,
    f"{_LOSS}disc_loss": "hinge",
    f"{_LOSS}logvar_init": 0.0,
}
_CLASS = "a class of the published code"
_TOKENIZER_REASONS = {
    "ckpt_path": "a checkpoint to evaluate: 'vavae convert' it, then 'vavae evaluate'",
    "model.target": _CLASS,
    "model.params.lossconfig.target": _CLASS,
    "data.target": _CLASS,
    f"{_DATA}train.target": f"{_CLASS}; data.images says which images",
    f"{_DATA}num_workers": "write data.workers",
    f"{_DATA}wrap": "repeats a small set within an epoch",
    f"{_DATA}train.params.degradation": "makes small images, which an autoencoder does not use",
    "model.params.monitor": "checkpoints are kept by age",
    "model.params.image_key": "a name within the published code",
    f"{_LOSS}pixelloss_weight": "never used by the published code",
}
_IMAGE_FOLDERS = ("data_root", "root", "folder", "image_dir", "data_dir", "data_path")


def tokenizer_recipe(keys: Keys) -> ConvertedRecipe:
    """Return the recipe of a configuration whose model is LDM's AutoencoderKL.

    Raises:
        UserError: A key has a value that cannot be converted.
    """
    for key, wanted in (
        ("model.target", "AutoencoderKL"),
        ("model.params.lossconfig.target", "LPIPSWithDiscriminator"),
    ):
        if str(keys.values.get(key, wanted)).rpartition(".")[2] != wanted:
            raise UserError(f"{keys.source}: {key} must be {wanted}, got {keys.values[key]}")
    keys.fixed(_TOKENIZER_FIXED)
    embed, latent = keys.get("model.params.embed_dim", 32), keys.get(f"{_SHAPE}z_channels", 32)
    if embed != latent:
        raise UserError(f"{keys.source}: model.params.embed_dim must be ddconfig.z_channels {latent}, got {embed}")
    multipliers = keys.get(f"{_SHAPE}ch_mult", [1, 1, 2, 2, 4])
    resolution = keys.get(f"{_SHAPE}resolution", 256)
    levels = {resolution // 2**i: i for i in range(len(multipliers))}
    keys.fixed({f"{_DATA}train.params.{name}": resolution for name in ("size", "config.size", "resolution")})
    batch = _batch(keys)
    rate = keys.get("model.base_learning_rate", 1e-4)
    values = {
        "output": f"runs/{Path(keys.source).stem}",
        "data.images": _images(keys),
        "data.size": resolution,
        "data.crop": "random" if keys.get(f"{_DATA}train.params.random_crop", True) else "center",
        "tokenizer.latent_channels": latent,
        "tokenizer.channel_multipliers": multipliers,
        "tokenizer.attention_levels": [
            levels[at] for at in keys.get(f"{_SHAPE}attn_resolutions", [16]) if at in levels
        ],
        **keys.table(_TOKENIZER),
        # The published counter grows by two per batch, from one.
        "objective.adversarial.start_images": keys.get(f"{_LOSS}disc_start", 5001) // 2 * batch,
        **_aligned(keys, resolution),
        "training.images": keys.get(f"{_TRAINER}max_epochs", 50) * _IMAGENET,
        "training.batch_size": batch,
        "training.precision": _precision(keys),
        "training.checkpoint_images": _IMAGENET,
    }
    for name in ("optimizer", "discriminator_optimizer"):
        values |= {f"{name}.kind": "adam", f"{name}.learning_rate": rate, f"{name}.betas": [0.5, 0.9]}
    initial = [key for key in ("weight_init", "init_weight", "model.params.ckpt_path") if keys.values.get(key)]
    if len({keys.values[key] for key in initial}) > 1:
        raise UserError(f"{keys.source}: give only one of {', '.join(initial)}: they are all starting weights")
    if "model.params.ema_decay" in keys.values:
        values["training.ema_decay"] = keys.given("model.params.ema_decay", 0.0)
    for key in initial:
        values["initial"] = keys.given(key, "")
    keys.assumed["images of an epoch"] = _IMAGENET
    keys.assumed["steps that disc_start counts for a batch"] = 2
    if not keys.values.get("model.params.use_vf"):
        keys.assumed["factor of base_learning_rate"] = "1 (--scale_lr false in LDM)"
    reasons = _TOKENIZER_REASONS | dict.fromkeys(_ALIGNED_ONLY, "without use_vf nothing is aligned")
    return keys.recipe("train-tokenizer", values, reasons)


def _precision(keys: Keys) -> str:
    key = f"{_TRAINER}precision"
    value = str(keys.values.get(key, 32))
    if value not in PRECISIONS:
        raise UserError(f"{keys.source}: {key} must be 32 or bf16, got {value}")
    keys.used += [key] if key in keys.values else []
    return PRECISIONS[value]


def _batch(keys: Keys) -> int:
    """Return the images of one optimizer step: batch × devices × nodes × accumulated batches."""
    given = [key for key in (f"{_TRAINER}gpus", f"{_TRAINER}devices") if key in keys.values]
    devices = keys.values[given[0]] if given else None
    if isinstance(devices, list) or (isinstance(devices, str) and "," in devices):  # "0,1,"
        devices = len([each for each in (devices.split(",") if isinstance(devices, str) else devices) if each != ""])
        keys.used += given
    else:
        devices = keys.get(given[0] if given else f"{_TRAINER}devices", 1)
    counts = (
        keys.get(f"{_DATA}batch_size", 8),
        devices,
        keys.get(f"{_TRAINER}num_nodes", 1),
        keys.given(f"{_TRAINER}accumulate_grad_batches", 1),
    )
    if min(counts) < 1:
        raise UserError(
            f"{keys.source}: batch size, devices, nodes and accumulated batches must be positive, got {counts}"
        )
    return math.prod(counts)


def _images(keys: Keys) -> str:
    """Return the folder of the training images."""
    for before in (f"{_DATA}train.params.", f"{_DATA}train.params.config.", _DATA):
        for name in _IMAGE_FOLDERS:
            if before + name in keys.values:
                return str(keys.given(before + name, ""))
    return str(keys.get(f"{_DATA}train.params.data_root", "/data/imagenet"))


def _aligned(keys: Keys, resolution: int) -> dict[str, Any]:
    """Return our keys of the alignment and the teacher."""
    teacher = keys.given("model.params.use_vf", "") if keys.values.get("model.params.use_vf") is not None else ""
    if not teacher:
        return {"objective.alignment.enabled": False}
    if teacher not in _TEACHERS:
        raise UserError(f"{keys.source}: model.params.use_vf must be one of {', '.join(_TEACHERS)}, got {teacher}")
    reverse, fixed = keys.get("model.params.reverse_proj", False), keys.get("model.params.proj_fix", False)
    return keys.table(_ALIGNMENT) | {
        "objective.alignment.projection": "latent_to_teacher" if reverse else "teacher_to_latent",
        "objective.alignment.train_projection": not fixed,
        "teacher.name": _TEACHERS[teacher],
        # As published: DINOv2 gets 224 pixels, MAE the image's own size, both without ImageNet's normalization.
        "teacher.input_size": 224 if teacher == "dinov2" else resolution,
        "teacher.normalization": "published",
    }
