"""The images a stage works on, from a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vavae.data import ImageSource, open_images
from vavae.errors import UserError


@dataclass(frozen=True)
class ImagesConfig:
    """Which images, at which size.

    Attributes:
        images: A folder (one sub-folder per class, or none), `demo` (embedded) or `cifar10` (an asset).
        size: Side of the square images, in pixels.
        crop: `center` as for extraction and evaluation; `random` as in the published tokenizer training.
        flip: Mirror images at random in training.
        workers: Threads that decode images.
    """

    images: str = "demo"
    size: int = 256
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    workers: int = 4

    def __post_init__(self) -> None:
        if self.size < 8:
            raise UserError(f"size: images of {self.size} pixels are too small; at least 8")

    def open(self, split: Literal["train", "test"], folder: Path | None = None) -> ImageSource:
        """Open the images; unreadable ones are named in `unreadable.txt` of the run folder."""
        return open_images(self.images, split, folder / "unreadable.txt" if folder is not None else None)
