"""Named sizes of LightningDiT.

A name is SIZE/PATCH, for example "XL/1". The sizes are the published family plus "S" and "L/1", which are ours;
"S" has heads of 64 channels like "B".
"""

from dataclasses import dataclass

from vavae.errors import UserError

PATCH_SIZES = (1, 2)


@dataclass(frozen=True)
class TransformerSize:
    """Depth, width and heads of one size."""

    depth: int  # number of transformer blocks
    width: int  # channels of a token (`hidden_size` in the published code)
    heads: int  # attention heads (`num_heads`) of width / heads channels each


SIZES = {
    "S": TransformerSize(depth=12, width=384, heads=6),
    "B": TransformerSize(depth=12, width=768, heads=12),
    "L": TransformerSize(depth=24, width=1024, heads=16),
    "XL": TransformerSize(depth=28, width=1152, heads=16),
    "1p0B": TransformerSize(depth=24, width=1536, heads=24),
    "1p6B": TransformerSize(depth=28, width=1792, heads=28),
}


def size_names() -> list[str]:
    """Return every name that `parse_size` accepts."""
    return [f"{size}/{patch}" for size in SIZES for patch in PATCH_SIZES]


def parse_size(name: str) -> tuple[TransformerSize, int]:
    """Return size and patch size of a name such as "XL/1" or "LightningDiT-XL/1".

    Raises:
        UserError: The name is not in `size_names`.
    """
    short = name.removeprefix("LightningDiT-")
    if short not in size_names():
        raise UserError(f"size must be one of {', '.join(size_names())}, got {name!r}")
    size, patch = short.split("/")
    return SIZES[size], int(patch)
