"""Representation autoencoder ⇄ `AutoencoderRAE` of diffusers: configuration and weights.

diffusers need not be installed. The class takes images in [0, 1]. Its latents are
(latents − latents_mean) / (latents_std + 1e-5) · scaling_factor. No file stores the decoder's positions: the class
computes them, in units of a grid of 16 x 16.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vavae.checkpoints.folder import DIFFUSERS_RAE as CLASS
from vavae.checkpoints.folder import load_strictly
from vavae.checkpoints.published import Ignored, LoadReport
from vavae.checkpoints.statistics import scaled
from vavae.device import without_values
from vavae.errors import UserError, errors_name
from vavae.grids import sincos_embedding
from vavae.models.representation import RepresentationAutoencoder
from vavae.teachers import Normalization, Teacher
from vavae.teachers.base import CLIP, HALF, IMAGENET
from vavae.teachers.families import FAMILIES, build_backbone
from vavae.tokenizer import LatentStatistics, ViTDecoder

_STD_EPS = 1e-5
_HEAD_DIM = 64
_BASE_GRID = 16
_POSITIONS = "decoder.decoder_pos_embed"
# encoder_type -> our family, configuration of transformers, its image_size
_ENCODERS = {
    "dinov2": ("DINOv2 with registers", "Dinov2WithRegistersConfig", 518),
    "siglip2": ("SigLIP", "SiglipVisionConfig", 256),
    "mae": ("MAE", "ViTMAEConfig", 224),
}
# Settings of an encoder that do not show in the shapes of all its weights.
_ENCODER_SETTINGS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size", "num_register_tokens"),
    *("intermediate_size", "mlp_ratio", "hidden_act", "layer_norm_eps", "qkv_bias", "use_swiglu_ffn"),
)
_DECODER_NAMES = {
    ".attention.attention.query.": ".attention.to_q.",
    ".attention.attention.key.": ".attention.to_k.",
    ".attention.attention.value.": ".attention.to_v.",
    ".attention.output.dense.": ".attention.to_out.0.",
}
# The keys of the class with their defaults, and the only values of some of them.
_NUMBERS: dict[str, int] = {
    "encoder_hidden_size": 768,
    "encoder_patch_size": 14,
    "encoder_num_hidden_layers": 12,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
    "patch_size": 16,
    "encoder_input_size": 224,
}
_FIXED = {"num_channels": 3, "reshape_to_2d": True}
_OTHERS = ("encoder_type", "noise_tau", "scaling_factor", "image_size", "use_encoder_loss", "latents_mean")
_KNOWN = {*_NUMBERS, *_FIXED, *_OTHERS, "latents_std", "encoder_norm_mean", "encoder_norm_std"}


def to_diffusers(
    autoencoder: RepresentationAutoencoder, statistics: LatentStatistics
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the `config.json` and the weights of an `AutoencoderRAE` with the same outputs.

    Raises:
        UserError: Names the part that the class does not have.
    """
    teacher, decoder = autoencoder.encoder.teacher, autoencoder.decoder
    kind = _encoder_type(teacher)
    (side, width), patch = teacher.input_size, decoder.patch_size
    _require("teacher.input_size", side == width, "square", teacher.input_size)
    _require("representation.layers", autoencoder.encoder.layers == 1, 1, autoencoder.encoder.layers)
    _require(
        "the decoder's grid", decoder.grid == teacher.grid_size, f"the teacher's {teacher.grid_size}", decoder.grid
    )
    table = decoder.decoder_pos_embed.detach().cpu()
    computed = _positions(table.shape[2], decoder.grid[0]).to(table.dtype)
    _require(
        "decoder_pos_embed",
        torch.allclose(table, computed, rtol=0, atol=1e-6),
        f"the table that the class computes, in units of a grid of {_BASE_GRID} x {_BASE_GRID}",
        "another one (training changes it)",
    )
    mean, std = (values.view(len(values), *(statistics.grid or (1, 1))) for values in (statistics.mean, statistics.std))
    std = (std.double() - _STD_EPS).float()
    model, own = teacher.backbone.get_submodule("model"), teacher.normalization
    config = {
        "_class_name": CLASS,
        "_diffusers_version": "0.42.1",
        "encoder_type": kind,
        "encoder_hidden_size": teacher.width,
        "encoder_patch_size": teacher.patch,
        "encoder_num_hidden_layers": model.config.num_hidden_layers,  # type: ignore[union-attr]
        "decoder_hidden_size": decoder.shape["width"],
        "decoder_num_hidden_layers": decoder.shape["depth"],
        "decoder_num_attention_heads": decoder.shape["heads"],
        "decoder_intermediate_size": decoder.shape["mlp_width"],
        "patch_size": patch,
        "encoder_input_size": side,
        "image_size": patch * decoder.grid[0],
        "encoder_norm_mean": list(own.mean),
        "encoder_norm_std": list(own.std),
        "latents_mean": mean.tolist(),
        "latents_std": std.tolist(),
        "noise_tau": float(autoencoder.noise),
        "scaling_factor": 1.0,
        **_FIXED,
    }
    tensors = {"_latents_mean": mean, "_latents_std": std}
    tensors |= {f"encoder_{n}": torch.tensor(getattr(own, n)).view(1, 3, 1, 1) for n in ("mean", "std")}
    # With transformers before 5, the only ones with which diffusers 0.42 builds SigLIP, its names have this prefix.
    before = "vision_model." if kind == "siglip2" else ""
    tensors |= {
        f"encoder.{before}{name.removeprefix(before)}": value
        for name, value in model.state_dict().items()
        if not name.removeprefix(before).startswith(("layernorm.", "post_layernorm."))
    }
    names = decoder.state_dict().items()
    tensors |= {f"decoder.{_renamed(name, _DECODER_NAMES)}": value for name, value in names}
    del tensors[_POSITIONS]
    return config, tensors


def from_diffusers(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str | Path
) -> tuple[RepresentationAutoencoder, LatentStatistics, LoadReport]:
    """Return the autoencoder of an `AutoencoderRAE`, the statistics of its latents and what was left out.

    Raises:
        UserError: Names the key or tensor that is missing or wrong.
    """
    with errors_name(source):
        numbers = {key: _number(config, key, default) for key, default in _NUMBERS.items()}
        for key, wanted in _FIXED.items():
            _require(key, config.get(key, wanted) == wanted, wanted, config.get(key))
        kind = config.get("encoder_type", "dinov2")
        _require("encoder_type", kind in _ENCODERS, f"one of {', '.join(_ENCODERS)}", kind)
        side, patch = numbers["encoder_input_size"], numbers["encoder_patch_size"]
        _require("encoder_input_size", side % patch == 0, f"a multiple of encoder_patch_size {patch}", side)
        missing = {"encoder_mean", "encoder_std", "_latents_mean", "_latents_std"} - tensors.keys()
        if missing:
            raise UserError(f"missing {min(missing)}")
        family = next(family for family in FAMILIES if family.name == _ENCODERS[kind][0])
        encoder = _encoder_config(kind, numbers["encoder_hidden_size"], patch, numbers["encoder_num_hidden_layers"])
        backbone = build_backbone(family, encoder, _below(tensors, "encoder."), source)
        mean, std = (tuple(tensors[f"encoder_{name}"].flatten().tolist()) for name in ("mean", "std"))
        teacher = Teacher(kind, backbone, (side, side), _normalization(mean, std))
        decoder = _decoder(numbers, side // patch, _below(tensors, "decoder."), source)
        autoencoder = RepresentationAutoencoder(teacher, decoder, float(config.get("noise_tau", 0.0)))
        autoencoder.keep_teacher = True
        statistics = _statistics(config, tensors, numbers["encoder_hidden_size"])
    others = [key for key in config if key not in _KNOWN and not key.startswith("_")]
    ignored = [Ignored(key, 1, f"not a key of {CLASS}") for key in others]
    if _POSITIONS in tensors:
        ignored.append(Ignored(_POSITIONS, 1, f"{CLASS} computes this table"))
    parameters = [*autoencoder.encoder.parameters(), *decoder.parameters()]
    what = f"representation autoencoder of {kind}, {decoder.summary}"
    count = sum(parameter.numel() for parameter in parameters)
    report = LoadReport(str(source), what, len(parameters), count, ignored=tuple(ignored))
    return autoencoder.eval(), statistics, report


def _require(key: str, fits: bool, wanted: object, got: object) -> None:
    if not fits:
        raise UserError(f"{key} must be {wanted} for diffusers' {CLASS}, got {got}")


def _number(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{key} must be a whole number above 0, got {value!r}")
    return value


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for ours, other in names.items():
        name = name.replace(ours, other)
    return name


def _encoder_config(kind: str, width: int, patch: int, depth: int) -> Any:
    """Return the configuration of transformers that the class builds."""
    import transformers

    _require("the encoder's width", width >= _HEAD_DIM, f"at least {_HEAD_DIM}", width)
    _, name, side = _ENCODERS[kind]
    return getattr(transformers, name)(
        hidden_size=width,
        patch_size=patch,
        num_hidden_layers=depth,
        num_attention_heads=width // _HEAD_DIM,
        image_size=side,
        **({"mask_ratio": 0.0} if kind == "mae" else {}),
    )


def _encoder_type(teacher: Teacher) -> str:
    """Return the class's name for the architecture of a teacher.

    Raises:
        UserError: The class has no such encoder.
    """
    model = getattr(teacher.backbone, "model", None)
    own = getattr(model, "config", None)
    config_class = type(own).__name__
    kind = next((kind for kind, (_, name, _) in _ENCODERS.items() if name == config_class), None)
    if own is None or kind is None:
        raise UserError(
            f"teacher must be DINOv2 with registers, SigLIP or MAE for diffusers' {CLASS}, got {teacher.name}"
        )
    built = _encoder_config(kind, own.hidden_size, own.patch_size, own.num_hidden_layers)
    for key in _ENCODER_SETTINGS:
        wanted, got = getattr(built, key, None), getattr(own, key, None)
        _require(f"teacher {teacher.name}: {key}", wanted == got, wanted, got)
    return kind


def _positions(width: int, side: int) -> Tensor:
    """Return the position table that the class computes: (1, 1 + side², width) float32."""
    places = (torch.arange(side, dtype=torch.float32) / (side / _BASE_GRID)).double()
    table = sincos_embedding(width, places, places)
    return torch.cat((torch.zeros(1, width), table.float()))[None]


def _normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalization:
    """Return the normalization of float32 numbers, one of ours if they are its numbers."""
    for known in (IMAGENET, HALF, CLIP):
        if mean + std == tuple(torch.tensor(known.mean + known.std).tolist()):
            return known
    return Normalization("stated", (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _decoder(numbers: Mapping[str, int], side: int, tensors: dict[str, Tensor], source: str | Path) -> ViTDecoder:
    with without_values():
        decoder = ViTDecoder(
            numbers["encoder_hidden_size"],
            side,
            numbers["patch_size"],
            numbers["decoder_hidden_size"],
            numbers["decoder_num_hidden_layers"],
            numbers["decoder_num_attention_heads"],
            numbers["decoder_intermediate_size"],
        )
    ours = {other: name for name, other in _DECODER_NAMES.items()}
    renamed = {_renamed(name, ours): value for name, value in tensors.items()}
    renamed["decoder_pos_embed"] = _positions(numbers["decoder_hidden_size"], side)
    load_strictly(decoder, renamed, source)
    return decoder


def _statistics(config: Mapping[str, Any], tensors: Mapping[str, Tensor], channels: int) -> LatentStatistics:
    values = []
    for name in ("_latents_mean", "_latents_std"):
        value = tensors[name]
        if value.numel() > 1 and value.shape[-3:-2] != (channels,):
            raise UserError(f"{name} must have the shape ({channels}, h, w), got {tuple(value.shape)}")
        values.append(value.double().flatten().expand(channels) if value.numel() == 1 else value.double())
    scaling = config.get("scaling_factor", 1.0)
    if not isinstance(scaling, int | float):
        raise UserError(f"scaling_factor must be a number, got {scaling!r}")
    return scaled(LatentStatistics(values[0], values[1] + _STD_EPS), scaling)
