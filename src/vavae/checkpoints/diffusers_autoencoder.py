"""Our autoencoder ⇄ the `AutoencoderKL` of diffusers: names, shapes, configuration. diffusers need not be installed.

The names differ, and the projections of attention: 1×1 convolutions here, linear layers in diffusers. The decoder's
levels are stored from full resolution down here, and in the order of computation in diffusers.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vavae.checkpoints.statistics import scaled, scaling_statistics
from vavae.errors import UserError
from vavae.tokenizer import AutoencoderConfig, LatentStatistics

# The default of diffusers.
_DEFAULT_SCALING = 0.18215
_GROUPS = 32

_PARTS = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "resnets": "block",
    "attentions": "attn",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
}
# A layer of attention: the text before its name, and its name.
_IN_ATTENTION = re.compile(r"(\.attn(?:_1|\.\d+)\.)(to_out\.0|[^.]+)(?=\.)")
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# The second line has the names of files saved by diffusers before 0.15.
_ATTENTION_TO_OURS = _ATTENTION | {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}
_ATTENTION_TO_DIFFUSERS = {ours: name for name, ours in _ATTENTION.items()}


def is_diffusers(tensors: Mapping[str, Any]) -> bool:
    """Return whether an autoencoder's state dict has diffusers' names."""
    return any(
        name.startswith(("encoder.down_blocks.", "decoder.up_blocks.", "encoder.mid_block.")) for name in tensors
    )


def from_diffusers_names(tensors: Mapping[str, Tensor], source: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """Rename a state dict of diffusers; return it, and the note of `add_quant_conv`."""
    ups = {int(found[1]) for name in tensors if (found := re.match(r"decoder\.up_blocks\.(\d+)\.", name))}
    last = max(ups, default=0)
    ours: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = _to_ours(name, last)
        if new in ours:
            raise UserError(f"{source}: holds {name} under its old and its new name")
        if re.search(r"\.attn(\.\d+|_1)\.(q|k|v|proj_out)\.weight$", new) and value.ndim == 2:
            value = value[:, :, None, None]
        ours[new] = value
    return ours, add_quant_conv(ours)


def add_quant_conv(tensors: dict[str, Tensor]) -> list[str]:
    """Add identities for the 1×1 convolutions around the latent if a file has none, and return a note if so."""
    names = ("quant_conv", "post_quant_conv")
    if "decoder.conv_in.weight" not in tensors or any(key.partition(".")[0] in names for key in tensors):
        return []
    channels = tensors["decoder.conv_in.weight"].shape[1]
    for name, width in zip(names, (2 * channels, channels), strict=True):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.eye(width)[:, :, None, None], torch.zeros(width)
    return ["it has no quant_conv: identities were added"]


def _to_ours(name: str, last: int) -> str:
    name = re.sub(r"\bdown_blocks\.", "down.", name)
    name = re.sub(r"\bup_blocks\.(\d+)\.", lambda found: f"up.{last - int(found[1])}.", name)
    for part, ours in _PARTS.items():
        name = name.replace(f".{part}.", f".{ours}.")
    return _IN_ATTENTION.sub(lambda found: found[1] + _ATTENTION_TO_OURS.get(found[2], found[2]), name)


def to_diffusers_names(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Rename a state dict of an autoencoder of ours with this number of levels for diffusers."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if _IN_ATTENTION.search(name) and value.ndim == 4:
            value = value[:, :, 0, 0]
        name = _IN_ATTENTION.sub(lambda found: found[1] + _ATTENTION_TO_DIFFUSERS[found[2]], name)
        for part, ours in _PARTS.items():
            name = name.replace(f".{ours}.", f".{part}.")
        name = re.sub(r"^encoder\.down\.", "encoder.down_blocks.", name)
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up_blocks.{levels - 1 - int(found[1])}.", name)
        renamed[name] = value
    return renamed


def diffusers_config(config: AutoencoderConfig, statistics: LatentStatistics) -> dict[str, Any]:
    """Return the `config.json` of diffusers' `AutoencoderKL`.

    Statistics become `scaling_factor` and `shift_factor` if all channels share them, else `latents_mean` and
    `latents_std`. They are never both written: diffusers would multiply them.

    Raises:
        UserError: diffusers cannot build such an autoencoder.
    """
    if config.unshuffle != 1:
        raise UserError(
            f"autoencoder: unshuffle must be 1 for diffusers' AutoencoderKL, got {config.unshuffle}; keep our folder"
        )
    groups = {math.gcd(_GROUPS, width) for width in (config.base_channels, *config.widths)}
    if config.channel_multipliers[0] != 1 or len(groups) != 1:
        raise UserError(
            f"autoencoder: diffusers cannot build channel_multipliers {config.channel_multipliers} of "
            f"{config.base_channels} channels: the first must be 1, and all widths must have one number of groups"
        )
    levels = len(config.widths)
    attention = [i in config.attention_levels for i in range(levels)]
    upward = [has and config.decoder_attention for has in reversed(attention)]
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.35.0",
        "act_fn": "silu",
        "block_out_channels": list(config.widths),
        "down_block_types": ["AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attention],
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks_per_level,
        "mid_block_add_attention": True,
        "norm_num_groups": groups.pop(),
        "out_channels": 3,
        "sample_size": 16 * config.factor,
        **_scaling(statistics),
        "up_block_types": ["AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in upward],
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }


def _scaling(statistics: LatentStatistics) -> dict[str, Any]:
    mean, std = statistics.mean, statistics.std
    if statistics.grid is not None:
        raise UserError("statistics must be one number per channel for diffusers, got one per position of each channel")
    if not bool((mean == mean[0]).all() and (std == std[0]).all()):
        whole = {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
        return whole | {"scaling_factor": 1.0, "shift_factor": None}
    # With seven digits: 0.18215 is stored as the float32 of its inverse, and must be written as 0.18215.
    shift = float(mean[0])
    return {"scaling_factor": float(f"{1.0 / float(std[0]):.7g}"), "shift_factor": shift if shift != 0 else None}


def check_diffusers_config(config: Mapping[str, Any], shape: AutoencoderConfig, source: str | Path) -> None:
    """Check the keys that do not show in names and shapes of weights.

    Raises:
        UserError: Names the key whose value our autoencoder does not have.
    """
    groups = math.gcd(_GROUPS, shape.base_channels)
    expected: dict[str, Any] = {"act_fn": "silu", "norm_num_groups": groups, "in_channels": 3, "out_channels": 3}
    if shape.unshuffle > 1:
        expected |= {"batch_norm_eps": 1e-4, "patch_size": [shape.unshuffle] * 2}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise UserError(f"{source}: {key} must be {value!r}, got {config[key]!r}")


def diffusers_statistics(config: Mapping[str, Any], channels: int, source: str | Path) -> LatentStatistics:
    """Return the statistics of the latents in a configuration of diffusers.

    The networks of diffusers get (latents − shift_factor) · scaling_factor, or, if the configuration has means and
    deviations, (latents − latents_mean) · scaling_factor / latents_std.

    Raises:
        UserError: One of the keys is not a usable number.
    """
    mean, std = config.get("latents_mean"), config.get("latents_std")
    try:
        scaling, shift = float(config.get("scaling_factor", _DEFAULT_SCALING)), config.get("shift_factor") or 0.0
        if (mean is None) != (std is None):
            raise UserError("must have both latents_mean and latents_std, or neither")
        if mean is not None and std is not None:
            return scaled(LatentStatistics(torch.tensor(mean), torch.tensor(std)), scaling)
        return scaling_statistics(channels, scaling, float(shift))
    except (TypeError, ValueError, OverflowError, RuntimeError, UserError) as error:
        raise UserError(f"{source}: latents_mean, latents_std, scaling_factor or shift_factor: {error}") from error
