"""Image sources: indexable, labeled lists of RGB images, and the sources that are held in memory.

An index always means the same image, so data order, resumed runs and metrics refer to images by number.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vavae import assets
from vavae.data.found import Found
from vavae.data.pixels import to_tensor
from vavae.data.readable import Unreadable, read_rgb
from vavae.errors import UserError

Split = Literal["train", "test"]


def check_split(split: str) -> None:
    """Raise UserError if `split` is neither "train" nor "test"."""
    if split not in ("train", "test"):
        raise UserError(f'split must be "train" or "test", got {split}')


class ImageSource(Dataset[tuple[Tensor, int]]):
    """A list of labeled RGB images, which torch's `DataLoader` takes if they have one size (see `CroppedImages`).

    Item i is image i of its native size, (3, H, W) float32 in [-1, 1], and its class. Threads and processes may read.

    Attributes:
        name: Name of the source in logs and reports.
        labels: Class of each image, (N,) int64.
        class_names: One name per class, in label order; a source without labels has one class.
        found: Where the images are, which files were passed over, and what was assumed.
        unreadable: (name, reason) of each image that cannot be read and is left out.
    """

    name: str
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    found: Found
    unreadable: Unreadable = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, at least 1."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_tensor(self.image(index)), self.label(index)

    def image(self, index: int) -> Image.Image:
        """Return image number `index` as an RGB image of its native size."""
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Return the class of image number `index`, in [0, num_classes)."""
        return int(self.labels[index])

    def fingerprint(self) -> str:
        """Return a hex digest that changes with the number, order, labels or sizes in bytes of the images.

        It is computed without reading image files. For images in memory it depends on their content.
        """
        raise NotImplementedError


class ArrayImages(ImageSource):
    """Images of one size held in memory.

    Args:
        pixels: (N, H, W, 3) uint8 RGB.
        labels: (N,) integers in [0, len(class_names)).
        class_names: One name per class.
        name: Name of the source.
        found: Where the images are; None means in memory.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.integer] | Sequence[int],
        class_names: Sequence[str],
        name: str,
        found: Found | None = None,
    ) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"pixels must be (N, H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
        self.pixels = pixels
        self.labels = np.asarray(labels, dtype=np.int64)
        if self.labels.shape != (len(pixels),):
            raise ValueError(f"{len(pixels)} images but labels of shape {self.labels.shape}")
        self.class_names = tuple(class_names)
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.class_names)):
            raise ValueError(f"labels must be in [0, {len(self.class_names)})")
        self.name = name
        self.found = found or Found("memory")
        self.pixels.flags.writeable = False
        self.labels.flags.writeable = False

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.pixels.shape, self.class_names)).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


@functools.cache
def _demo_description() -> dict:
    folder = resources.files("vavae.assets") / "demo_images"
    return json.loads((folder / "demo.json").read_text())


@functools.cache
def demo_pixels(split: Split) -> NDArray[np.uint8]:
    """Return all embedded images of a split, (N, 32, 32, 3) uint8, read-only: 5,000 for "train", 1,000 for "test"."""
    description = _demo_description()
    folder = resources.files("vavae.assets") / "demo_images"

    def read(name: str) -> NDArray[np.uint8]:
        with (folder / name).open("rb") as file:
            mosaic = np.asarray(read_rgb(file))  # (rows * 32, columns * 32, 3)
        tiles = mosaic.reshape(-1, 32, description["columns"], 32, 3)  # (rows, 32, columns, 32, 3)
        return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)  # (rows * columns, 32, 32, 3)

    pixels = np.concatenate([read(name) for name in description["splits"][split]["files"]])
    pixels.flags.writeable = False
    return pixels


DEMO_SIDE = 32


class DemoImages(ArrayImages):
    """The embedded images: a class-balanced part of CIFAR-10 (A. Krizhevsky 2009), 32x32, 10 classes.

    Args:
        split: "train" (5,000 images, 500 per class) or "test" (1,000 images, 100 per class).
    """

    def __init__(self, split: Split = "train") -> None:
        check_split(split)
        description = _demo_description()
        entry = description["splits"][split]
        labels = np.array([int(digit) for digit in entry["labels"]], dtype=np.int64)
        found = Found(f"demo, split {split} (embedded)")
        super().__init__(demo_pixels(split), labels, description["class_names"], f"demo-{split}", found)
        self.provenance: str = description["provenance"]


class Cifar10Images(ArrayImages):
    """The whole of CIFAR-10 from the asset `cifar10`: 50,000 training or 10,000 test images, 32x32."""

    def __init__(self, split: Split = "train") -> None:
        check_split(split)
        folder = Path(assets.path("cifar10"))
        names = [f"data_batch_{i}.png" for i in range(1, 6)] if split == "train" else ["test_batch.png"]
        # One 32x32 RGB image per row: (N, 3072, 3) -> (N, 32, 32, 3).
        pixels = np.concatenate([np.asarray(read_rgb(folder / name)).reshape(-1, 32, 32, 3) for name in names])
        # The package spells it "lables".
        labels = json.loads((folder / f"{split}_lables.json").read_text())
        class_names = _demo_description()["class_names"]
        super().__init__(pixels, labels, class_names, f"cifar10-{split}", Found(f"cifar10, split {split}"))
