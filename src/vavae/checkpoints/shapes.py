"""Read the configuration of a network from the names and shapes of its published state dict."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vavae.config.image_size import scale_size
from vavae.errors import UserError, errors_name
from vavae.grids import sincos_embedding
from vavae.tokenizer import AutoencoderConfig
from vavae.transformer import LightningDiTConfig
from vavae.transformer.sizes import SIZES

Tensors = Mapping[str, Tensor]
C = TypeVar("C", AutoencoderConfig, LightningDiTConfig)


def infer_autoencoder(tensors: Tensors, source: str | Path, unshuffle: int = 1) -> AutoencoderConfig:
    """Return the configuration of an autoencoder, from its published names and shapes.

    `unshuffle` does not show in them.

    Raises:
        UserError: A tensor that shows it is missing or has an impossible shape.
    """
    with errors_name(source):
        base = shape_of(tensors, "encoder.conv_in.weight", 4)[0]
        levels = range(count_of(tensors, r"encoder\.down\.(\d+)\.", "encoder.down.0"))
        widths = [shape_of(tensors, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels]
        if any(width % base for width in widths):
            raise UserError(
                f"level widths (encoder.down.*.block.0.conv1.weight) must be multiples of {base} "
                f"(encoder.conv_in.weight), got {widths}"
            )
        attention = tuple(i for i in levels if any_name(tensors, rf"encoder\.down\.{i}\.attn\."))
        return AutoencoderConfig(
            latent_channels=shape_of(tensors, "decoder.conv_in.weight", 4)[1] * unshuffle**2,
            base_channels=base,
            channel_multipliers=tuple(width // base for width in widths),
            blocks_per_level=count_of(tensors, r"encoder\.down\.0\.block\.(\d+)\.", "encoder.down.0.block.0"),
            attention_levels=attention,
            decoder_attention=not attention or any_name(tensors, r"decoder\.up\.\d+\.attn\."),
            unshuffle=unshuffle,
        )


def infer_transformer(tensors: Tensors, source: str | Path, heads: int | None = None) -> LightningDiTConfig:
    """Return the configuration of a LightningDiT, from its published names and shapes.

    The shapes show all but the number of heads. A rotary embedding or a norm of queries shows it too; else it is
    `heads`, or the number of heads of the published size with this width and depth.

    Raises:
        UserError: A tensor that shows it is missing or has an impossible shape, or the number of heads is unknown.
    """
    with errors_name(source):
        width, channels, patch, _ = shape_of(tensors, "x_embedder.proj.weight", 4)
        depth = count_of(tensors, r"blocks\.(\d+)\.", "blocks.0")
        return LightningDiTConfig(
            latent_size=scale_size(_grid(tensors), patch),
            patch_size=patch,
            latent_channels=channels,
            width=width,
            depth=depth,
            heads=_heads(tensors, width, depth, heads),
            num_classes=shape_of(tensors, "y_embedder.embedding_table.weight", 2)[0] - 1,
            swiglu=any_name(tensors, r"blocks\.\d+\.mlp\.w(12|3)\."),
            rope=any_name(tensors, r"feat_rope\."),
            rmsnorm=any_name(tensors, r"(blocks\.\d+\.norm[12]|final_layer\.norm_final)\.weight$"),
            qk_norm=any_name(tensors, r"blocks\.\d+\.attn\.[qk]_norm\."),
            adaln_shift=shape_of(tensors, "blocks.0.adaLN_modulation.1.weight", 2)[0] == 6 * width,
            learn_sigma=shape_of(tensors, "final_layer.linear.weight", 2)[0] == 2 * patch**2 * channels,
            class_token=shape_of(tensors, token, 2)[1] if (token := "cls_projectors2.weight") in tensors else None,
        )


def check_autoencoder(config: AutoencoderConfig, tensors: Tensors, source: str | Path) -> None:
    """Compare a configuration with the names and shapes of the weights, before the network is built.

    Raises:
        UserError: Names the first key that differs.
    """
    held = infer_autoencoder(tensors, source, config.unshuffle)
    stated = dataclasses.replace(config, attention_levels=tuple(sorted(set(config.attention_levels))))
    if not config.attention_levels:  # the decoder has none either
        stated = dataclasses.replace(stated, decoder_attention=held.decoder_attention)
    _compare(stated, held, source)


def check_transformer(config: LightningDiTConfig, tensors: Tensors, source: str | Path) -> None:
    """Compare a configuration with the names and shapes of the weights, before the network is built.

    Raises:
        UserError: Names the first key that differs.
    """
    held = infer_transformer(tensors, source, config.heads)
    # Loading reports missing layers of head and routing; their blocks do not show in the weights.
    unseen = {name: getattr(held, name) for name in ("label_dropout", "positions", "auxiliary_block", "routing")}
    stated = dataclasses.replace(config, latent_size=scale_size(config.latent_hw, 1), **unseen)
    _compare(stated, held, source)


def _compare(stated: C, held: C, source: str | Path) -> None:
    for field in dataclasses.fields(stated):
        wanted, found = getattr(stated, field.name), getattr(held, field.name)
        if wanted != found:
            raise UserError(f"{source}: its weights have {field.name} {found}, its configuration says {wanted}")


def size_name(config: LightningDiTConfig) -> str:
    """Return the published name of a configuration, for example `XL/1`, or its numbers."""
    for name, size in SIZES.items():
        if (size.depth, size.width, size.heads) == (config.depth, config.width, config.heads):
            return f"{name}/{config.patch_size}"
    return f"depth {config.depth}, width {config.width}, {config.heads} heads, patch {config.patch_size}"


def shape_of(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a tensor.

    Raises:
        UserError: It is missing, empty or has another number of dimensions.
    """
    if name not in tensors:
        raise UserError(f"missing {name}")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or min(shape) < 1:
        raise UserError(f"{name} has shape {shape}, not {dimensions} dimensions")
    return shape


def any_name(tensors: Tensors, pattern: str) -> bool:
    """Return whether any name matches: if a part has a single tensor, the others are reported as missing."""
    return any(re.match(pattern, name) for name in tensors)


def count_of(tensors: Tensors, pattern: str, first: str) -> int:
    """Return how many numbers a pattern's group has in the names.

    Raises:
        UserError: There are none, or one is missing in between.
    """
    numbers = {int(found[1]) for name in tensors if (found := re.match(pattern, name))}
    if not numbers:
        raise UserError(f"missing {first}.*")
    if len(numbers) <= max(numbers):
        gap = next(i for i in range(len(numbers)) if i not in numbers)
        raise UserError(f"missing {first.removesuffix('0')}{gap}.*, but number {max(numbers)} is there")
    return len(numbers)


def _grid(tensors: Tensors) -> tuple[int, int]:
    """Return rows and columns of the grid whose embedding has the greatest cosine with the table.

    The table may be no embedding exactly: REPA-E's training changes it.
    """
    width = shape_of(tensors, "pos_embed", 3)[2]
    first, half = int("cls_projectors2.weight" in tensors), width // 2  # a class token comes before the patches
    table = tensors["pos_embed"][0, first:].double()
    count, cosines = len(table), dict[int, float]()
    if count and width % 4 == 0:
        places = torch.arange(count, dtype=table.dtype, device=table.device)
        encoded = sincos_embedding(width, places, places[:1])[:, half:]  # (T, half) of each row or column
        length = table.norm() * (count * half) ** 0.5
        for columns in (number for number in range(1, count + 1) if count % number == 0):
            grid = table.unflatten(0, (-1, columns))  # (h, w, width)
            by_column, by_row = grid[..., :half].sum(0), grid[..., half:].sum(1)
            product = (by_column * encoded[:columns]).sum() + (by_row * encoded[: len(grid)]).sum()
            cosines[columns] = float(product / length)
    columns = max(cosines, key=lambda columns: cosines[columns], default=1)
    if not cosines.get(columns, 0) > 0.5:
        raise UserError("pos_embed must be the embedding of a grid of rows and columns")
    return count // columns, columns


def _heads(tensors: Tensors, width: int, depth: int, given: int | None) -> int:
    for name in ("feat_rope.freqs_cos", "feat_rope.freqs_sin", "blocks.0.attn.q_norm.weight"):
        if name in tensors:
            head_dim = int(tensors[name].shape[-1]) if tensors[name].ndim else 0
            if head_dim < 1 or width % head_dim or (name.startswith("feat_rope.") and head_dim % 4):
                raise UserError(f"{name} has shape {tuple(tensors[name].shape)}, which does not fit width {width}")
            if given not in (None, width // head_dim):
                raise UserError(f"heads must be {width // head_dim}, as its weights show, got {given}")
            return width // head_dim
    known = [size.heads for size in SIZES.values() if (size.width, size.depth) == (width, depth)]
    if given is None and not known:
        raise UserError(
            "pass heads: their number does not show in these weights, which have neither a rotary embedding nor the "
            f"width and depth of a published size, but {width} and {depth}"
        )
    return given if given is not None else known[0]
