"""Per-element reconstruction error."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vavae.errors import UserError


@dataclass(frozen=True)
class PixelConfig:
    """The pixel term.

    Attributes:
        weight: factor of the term; 0 switches it off.
        kind: "l1", absolute error (published), or "l2", squared error.
    """

    weight: float = 1.0
    kind: Literal["l1", "l2"] = "l1"

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UserError(f"pixel.weight: {self.weight} is negative")
        if self.kind not in ("l1", "l2"):
            raise UserError(f"pixel.kind: {self.kind!r} is neither 'l1' nor 'l2'")


def pixel_error(images: Tensor, reconstruction: Tensor, kind: Literal["l1", "l2"] = "l1") -> Tensor:
    """|images − reconstruction| or its square, element by element, in the inputs' shape."""
    if kind not in ("l1", "l2"):
        raise UserError(f"kind: {kind!r} is neither 'l1' nor 'l2'")
    difference = images - reconstruction
    return difference.abs() if kind == "l1" else difference.square()
