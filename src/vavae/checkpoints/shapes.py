"""The configuration of a network, read from the names and shapes of its published state dict."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from vavae.config.image_size import scale_size
from vavae.errors import UserError
from vavae.tokenizer import AutoencoderConfig
from vavae.transformer import LightningDiTConfig
from vavae.transformer.sizes import SIZES

Tensors = Mapping[str, Tensor]
C = TypeVar("C", AutoencoderConfig, LightningDiTConfig)


def infer_autoencoder(tensors: Tensors, source: str | Path) -> AutoencoderConfig:
    """Return the configuration of an autoencoder, from its published names and shapes.

    Raises:
        UserError: A tensor that decides it is missing or has an impossible shape.
    """
    base = _shape(tensors, "encoder.conv_in.weight", 4, source)[0]
    levels = _count(tensors, r"encoder\.down\.(\d+)\.", "encoder.down.0", source)
    widths = [_shape(tensors, f"encoder.down.{i}.block.0.conv1.weight", 4, source)[0] for i in range(levels)]
    if any(width % base for width in widths):
        raise UserError(
            f"{source}: level widths {widths} (encoder.down.*.block.0.conv1.weight) are no multiples of the first, "
            f"{base} (encoder.conv_in.weight)"
        )
    attention = tuple(i for i in range(levels) if _any(tensors, rf"encoder\.down\.{i}\.attn\."))
    return _within_bounds(
        source,
        AutoencoderConfig,
        latent_channels=_shape(tensors, "decoder.conv_in.weight", 4, source)[1],
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        blocks_per_level=_count(tensors, r"encoder\.down\.0\.block\.(\d+)\.", "encoder.down.0.block.0", source),
        attention_levels=attention,
        decoder_attention=not attention or _any(tensors, r"decoder\.up\.\d+\.attn\."),
    )


def infer_transformer(tensors: Tensors, source: str | Path, heads: int | None = None) -> LightningDiTConfig:
    """Return the configuration of a LightningDiT, from its published names and shapes.

    The shapes show everything but the number of heads. A rotary embedding or a norm of queries shows it too;
    otherwise it is `heads`, or the number in the published size with this width and depth.

    Raises:
        UserError: A tensor that decides it is missing or has an impossible shape, or the heads cannot be known.
    """
    width, channels, patch, _ = _shape(tensors, "x_embedder.proj.weight", 4, source)
    depth = _count(tensors, r"blocks\.(\d+)\.", "blocks.0", source)
    rows, columns = _grid(tensors, source)
    out = _shape(tensors, "final_layer.linear.weight", 2, source)[0]
    modulations = _shape(tensors, "blocks.0.adaLN_modulation.1.weight", 2, source)[0]
    return _within_bounds(
        source,
        LightningDiTConfig,
        latent_size=scale_size((rows, columns), patch),
        patch_size=patch,
        latent_channels=channels,
        width=width,
        depth=depth,
        heads=_heads(tensors, width, depth, heads, source),
        num_classes=_shape(tensors, "y_embedder.embedding_table.weight", 2, source)[0] - 1,
        swiglu=_any(tensors, r"blocks\.\d+\.mlp\.w(12|3)\."),
        rope=_any(tensors, r"feat_rope\."),
        rmsnorm=_any(tensors, r"(blocks\.\d+\.norm[12]|final_layer\.norm_final)\.weight$"),
        qk_norm=_any(tensors, r"blocks\.\d+\.attn\.[qk]_norm\."),
        adaln_shift=modulations == 6 * width,
        learn_sigma=out == 2 * patch**2 * channels,
    )


def _within_bounds(source: str | Path, kind: Callable[..., C], **values: Any) -> C:
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def check_autoencoder(config: AutoencoderConfig, tensors: Tensors, source: str | Path) -> None:
    """Compare a configuration with the names and shapes of the weights, before anything of its size is built.

    Raises:
        UserError: Names the first key that differs.
    """
    held = infer_autoencoder(tensors, source)
    said = dataclasses.replace(config, attention_levels=tuple(sorted(set(config.attention_levels))))
    if not config.attention_levels:  # then there is none to see in the decoder
        said = dataclasses.replace(said, decoder_attention=held.decoder_attention)
    _compare(said, held, source)


def check_transformer(config: LightningDiTConfig, tensors: Tensors, source: str | Path) -> None:
    """Compare a configuration with the names and shapes of the weights, before anything of its size is built.

    Raises:
        UserError: Names the first key that differs.
    """
    held = infer_transformer(tensors, source, config.heads)
    said = dataclasses.replace(
        config, latent_size=scale_size(config.latent_hw, 1), label_dropout=held.label_dropout, positions=held.positions
    )
    _compare(said, held, source)


def _compare(said: C, held: C, source: str | Path) -> None:
    for field in dataclasses.fields(said):
        asked, found = getattr(said, field.name), getattr(held, field.name)
        if asked != found:
            raise UserError(f"{source}: the weights are of {field.name} {found}; the configuration says {asked}")


def size_name(config: LightningDiTConfig) -> str:
    """Return the published name of a configuration, such as `XL/1`, or its numbers."""
    for name, size in SIZES.items():
        if (size.depth, size.width, size.heads) == (config.depth, config.width, config.heads):
            return f"{name}/{config.patch_size}"
    return f"depth {config.depth}, width {config.width}, {config.heads} heads, patch {config.patch_size}"


def _shape(tensors: Tensors, name: str, dimensions: int, source: str | Path) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(f"{source}: missing {name}")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or min(shape) < 1:
        raise UserError(f"{source}: {name} has shape {shape}, not {dimensions} dimensions")
    return shape


def _any(tensors: Tensors, pattern: str) -> bool:
    """Return whether any name matches. A single tensor of a part is enough: the others are then reported missing."""
    return any(re.match(pattern, name) for name in tensors)


def _count(tensors: Tensors, pattern: str, first: str, source: str | Path) -> int:
    numbers = {int(found[1]) for name in tensors if (found := re.match(pattern, name))}
    if not numbers:
        raise UserError(f"{source}: missing {first}.*")
    if len(numbers) <= max(numbers):
        gap = next(i for i in range(len(numbers)) if i not in numbers)
        raise UserError(f"{source}: missing {first.removesuffix('0')}{gap}.*, though there is {max(numbers)}")
    return len(numbers)


def _grid(tensors: Tensors, source: str | Path) -> tuple[int, int]:
    """Return rows and columns: the second half of the embedding encodes the row, so a row ends where it changes."""
    _, tokens, width = _shape(tensors, "pos_embed", 3, source)
    row = tensors["pos_embed"][0, :, width // 2 :]
    same = (row == row[0]).all(dim=1)
    columns = tokens if bool(same.all()) else int(same.logical_not().int().argmax())
    if columns == 0 or tokens % columns:
        raise UserError(f"{source}: pos_embed must be the embedding of a grid of rows and columns")
    return tokens // columns, columns


def _heads(tensors: Tensors, width: int, depth: int, given: int | None, source: str | Path) -> int:
    for name in ("feat_rope.freqs_cos", "feat_rope.freqs_sin", "blocks.0.attn.q_norm.weight"):
        if name in tensors:
            head_dim = int(tensors[name].shape[-1]) if tensors[name].ndim else 0
            if head_dim < 1 or width % head_dim or (name.startswith("feat_rope.") and head_dim % 4):
                raise UserError(f"{source}: {name} has shape {tuple(tensors[name].shape)}, for width {width}")
            if given not in (None, width // head_dim):
                raise UserError(f"{source}: heads: {given} is not what its weights say, {width // head_dim}")
            return width // head_dim
    if given is not None:
        return given
    for size in SIZES.values():
        if (size.width, size.depth) == (width, depth):
            return size.heads
    raise UserError(
        f"{source}: width {width} and depth {depth} are no published size, and without a rotary embedding the "
        "number of attention heads does not show: pass heads"
    )
