"""Read the shapes of RAE's published networks from their state dicts: ViT decoders and DiT^DH (bytetriper/RAE)."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vavae.checkpoints.shapes import any_name, count_of, shape_of
from vavae.config.image_size import scale_size
from vavae.errors import UserError, errors_name
from vavae.tokenizer import ViTDecoder
from vavae.tokenizer.vit_decoder import SIZES
from vavae.transformer import DiTDHConfig
from vavae.transformer.ditdh import SIZES as DITDH_SIZES

Tensors = Mapping[str, Tensor]


def decoder_of(tensors: Tensors, source: str | Path, heads: int | None = None) -> ViTDecoder:
    """Return a decoder of the shapes of a state dict; make it on the meta device and load the tensors.

    Args:
        tensors: Names and shapes of a published decoder.
        source: The file, for messages.
        heads: Attention heads, if width and depth are not those of a published size.

    Raises:
        UserError: A tensor that shows a number is missing or has an impossible shape, or the heads are unknown.
    """
    with errors_name(source):
        width, channels = shape_of(tensors, "decoder_embed.weight", 2)
        depth = count_of(tensors, r"decoder_layers\.(\d+)\.", "decoder_layers.0")
        mlp_width = shape_of(tensors, "decoder_layers.0.intermediate.dense.weight", 2)[0]
        patch = math.isqrt(shape_of(tensors, "decoder_pred.weight", 2)[0] // 3)
        side = math.isqrt(shape_of(tensors, "decoder_pos_embed", 3)[1] - 1)
        known = [size["heads"] for size in SIZES.values() if (size["width"], size["depth"]) == (width, depth)]
        if heads is None and not known:
            raise UserError(f"pass heads: they do not show in a decoder of width {width} and depth {depth}")
        return ViTDecoder(channels, side, patch, width, depth, heads or known[0], mlp_width)


def infer_ditdh(tensors: Tensors, source: str | Path) -> DiTDHConfig:
    """Return the configuration of a DiT^DH, from its published names and shapes.

    Raises:
        UserError: A tensor that shows a number is missing or has an impossible shape, or the heads are unknown.
    """
    with errors_name(source):
        narrow, channels, patch, _ = shape_of(tensors, "s_embedder.proj.weight", 4)
        wide = shape_of(tensors, "x_embedder.proj.weight", 4)[0]
        depth = count_of(tensors, r"blocks\.(\d+)\.", "blocks.0")
        side = math.isqrt(shape_of(tensors, "pos_embed", 3)[1])
        widths = [shape_of(tensors, f"blocks.{i}.attn.qkv.weight", 2)[1] for i in range(depth)]
        if narrow == wide:
            raise UserError(f"widths must differ to show where the head begins, got {narrow} twice")
        encoder = widths.count(narrow)
        return DiTDHConfig(
            latent_size=scale_size((side, side), patch),
            patch_size=patch,
            latent_channels=channels,
            widths=(narrow, wide),
            depths=(encoder, depth - encoder),
            heads=(_heads(tensors, "enc", narrow), _heads(tensors, "dec", wide)),
            num_classes=shape_of(tensors, "y_embedder.embedding_table.weight", 2)[0] - 1,
            swiglu=any_name(tensors, r"blocks\.\d+\.mlp\.w(12|3)\."),
            rope=any_name(tensors, r"enc_feat_rope\."),
            rmsnorm=any_name(tensors, r"(blocks\.\d+\.norm[12]|final_layer\.norm_final)\.weight$"),
            qk_norm=any_name(tensors, r"blocks\.\d+\.attn\.[qk]_norm\."),
        )


def _heads(tensors: Tensors, part: str, width: int) -> int:
    """Return the heads of encoder ("enc") or head ("dec"), from its rotary table or the published sizes."""
    name = f"{part}_feat_rope.freqs_cos"
    if name in tensors:
        head_dim = shape_of(tensors, name, 2)[1]
        if width % head_dim:
            raise UserError(f"{name} has {head_dim} channels, which do not divide the width {width}")
        return width // head_dim
    place = 0 if part == "enc" else 1
    known = [size["heads"][place] for size in DITDH_SIZES.values() if size["widths"][place] == width]
    if not known:
        raise UserError(f"the number of heads does not show: neither {name} nor a published width, but {width}")
    return known[0]


def is_ditdh(tensors: Tensors) -> bool:
    """Return whether names are those of a DiT^DH."""
    return any_name(tensors, r"s_embedder\.")
