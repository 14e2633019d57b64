"""The images a stage works on, from a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from vavae import counter
from vavae.data import ImageSource, has_test_part, open_images
from vavae.errors import UserError
from vavae.sizes import Size, as_size, sides, written

Split = Literal["train", "test"]


@dataclass(frozen=True)
class ImagesConfig:
    """Which images, at which size.

    Attributes:
        images: A folder (one sub-folder per class, or none), `webdataset:` and tar shards (`shards-{000..123}.tar`,
            `shards-*.tar` or a folder; paths or what fsspec opens), `hf:` and a data set on the hub
            (`owner/name:config@revision`) or its folder, `demo` (embedded) or `cifar10` (an asset).
        size: Of the images, in pixels: one number for squares, or [height, width]. An image is scaled until it just
            covers that, and what stands out on two sides is cut off.
        crop: `center` as for extraction and evaluation; `random` as in the published tokenizer training.
        flip: Mirror images at random in training.
        limit: Use at most this many images, spread evenly over the source; null uses all.
        holdout: Share of the images kept for testing, where they have no test part of their own; 0 tests on the
            training images.
        workers: Threads that decode images; 0 decodes in the main thread.
        check: What is looked at before the first use, to leave out images that cannot be read: `decode` reads each
            whole, once; `header` reads only beginnings, for sets of millions known to be sound, where a truncated
            image ends the run when its turn comes.
        image_column: Column of the images of `hf:`, or part of their ending in shards (`left` for 1.left.png); null
            looks for it.
        label_column: Column of the labels of `hf:`, or in shards part of their ending or their key in JSON; `none`
            takes no labels, null looks for them.
    """

    images: str = "demo"
    size: Size = 256
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    limit: int | None = None
    holdout: float = 0.0
    workers: int = 4
    check: Literal["decode", "header"] = "decode"
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_size("size", self.size))
        if min(sides(self.size)) < 8:
            raise UserError(f"size: images of {written(self.size)} pixels are too small; at least 8")
        if not 0.0 <= self.holdout < 1.0:
            raise UserError(f"holdout: {self.holdout} is not a share in [0, 1)")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit: {self.limit} is not positive")
        if self.workers < 0:
            raise UserError(f"workers: {self.workers} threads cannot be; 0 is none beside the main one")

    def latent_size(self, factor: int) -> tuple[int, int]:
        """Height and width of the latents of a tokenizer with this factor.

        Raises:
            UserError: The factor does not divide the size.
        """
        height, width = sides(self.size)
        if height % factor or width % factor:
            raise UserError(f"data.size: {written(self.size)} is no multiple of the tokenizer's factor {factor}")
        return height // factor, width // factor

    def open(self, split: Split, folder: Path | None = None) -> ImageSource:
        """Open the images of a split; unreadable ones are named in `unreadable.txt` of the run folder."""
        names = folder / "unreadable.txt" if folder is not None else None
        held_out = self.holdout > 0 and not has_test_part(self.images)
        part: Split = "train" if held_out else split
        source = open_images(self.images, part, names, self.check, self.image_column, self.label_column)
        left_out = len(getattr(source, "unreadable", ()))
        if left_out and names is not None:
            print(f"images: {left_out:,} of {len(source) + left_out:,} cannot be read and are left out; see {names}")
        if held_out:
            # The split depends on the number of images alone, so that both parts agree on it in every run.
            order = counter.permutation(0, "holdout", len(source)).numpy()
            held = max(1, round(len(source) * self.holdout))
            source = Selection(source, np.sort(order[:held] if split == "test" else order[held:]))
        if self.limit is not None and len(source) > self.limit:
            source = Selection(source, spread(self.limit, len(source)).numpy())
        if len(source) == 0:
            raise UserError(f"{self.images}: no images are left for {split}; give more images or a smaller holdout")
        return source


class Selection:
    """Some images of a source, in a given order.

    Args:
        source: The images.
        indices: (N,) which of them.
    """

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        self.source = source
        self.indices = indices
        self.name = source.name
        self.class_names = source.class_names

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Image.Image:
        return self.source.image(int(self.indices[index]))

    def label(self, index: int) -> int:
        return self.source.label(int(self.indices[index]))

    def fingerprint(self) -> str:
        import hashlib

        return hashlib.sha256(self.source.fingerprint().encode() + self.indices.tobytes()).hexdigest()


def spread(count: int, length: int) -> torch.Tensor:
    """`count` of the numbers 0 … `length` − 1, evenly apart: some of every class where they lie in its order."""
    return torch.linspace(0, length - 1, count, dtype=torch.float64).round().long()


def evenly(count: int, source: ImageSource) -> list[int]:
    """At most `count` indices that take turns over the classes: 0 of class a, 0 of class b, …, 1 of class a, …"""
    labels = np.array([source.label(i) for i in range(len(source))])
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(int((labels == label).sum()))
    order = np.lexsort((labels, turn))
    return [int(i) for i in torch.from_numpy(order[:count])]
