"""The published sizes of LightningDiT, by name.

A name is SIZE/PATCH, such as "XL/1": the published family plus "S" and "L/1", which are ours ("S" keeps the
64-wide heads of "B").
"""

from dataclasses import dataclass

from vavae.errors import UserError

PATCH_SIZES = (1, 2)


@dataclass(frozen=True)
class TransformerSize:
    """Depth and widths of one member of the family.

    Attributes:
        depth: Number of transformer blocks.
        width: Channels of a token.
        heads: Attention heads; each is width / heads channels wide.
    """

    depth: int
    width: int
    heads: int


SIZES = {
    "S": TransformerSize(depth=12, width=384, heads=6),
    "B": TransformerSize(depth=12, width=768, heads=12),
    "L": TransformerSize(depth=24, width=1024, heads=16),
    "XL": TransformerSize(depth=28, width=1152, heads=16),
    "1p0B": TransformerSize(depth=24, width=1536, heads=24),
    "1p6B": TransformerSize(depth=28, width=1792, heads=28),
}


def size_names() -> list[str]:
    """Every name that `parse_size` takes."""
    return [f"{size}/{patch}" for size in SIZES for patch in PATCH_SIZES]


def parse_size(name: str) -> tuple[TransformerSize, int]:
    """The size and the patch size behind a name such as "XL/1" or "LightningDiT-XL/1".

    Raises:
        UserError: The name is not in `size_names`.
    """
    short = name.removeprefix("LightningDiT-")
    if short not in size_names():
        raise UserError(f"size: {name!r} is not one of {', '.join(size_names())}")
    size, patch = short.split("/")
    return SIZES[size], int(patch)
