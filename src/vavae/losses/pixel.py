"""Reconstruction error per element."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vavae.losses.checks import check_not_negative, check_one_of, check_same_shape


@dataclass(frozen=True)
class PixelConfig:
    """The pixel term.

    Attributes:
        weight: Factor of the term; 0 switches it off.
        kind: "l1", absolute error (published), or "l2", squared error.
    """

    weight: float = 1.0
    kind: Literal["l1", "l2"] = "l1"

    def __post_init__(self) -> None:
        check_not_negative("pixel", self, "weight")
        check_one_of("pixel.kind", self.kind, ("l1", "l2"))


def pixel_error(images: Tensor, reconstruction: Tensor, kind: Literal["l1", "l2"] = "l1") -> Tensor:
    """Return |images − reconstruction|, or its square for "l2", per element: (B, C, H, W) like both inputs."""
    check_one_of("kind", kind, ("l1", "l2"))
    check_same_shape(images, reconstruction, "images and reconstruction")
    difference = images - reconstruction
    return difference.abs() if kind == "l1" else difference.square()
