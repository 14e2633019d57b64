"""Options of images in recipes, and the one line that reports which images a command uses."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from vavae import rng
from vavae.config.image_size import Size, as_size, format_size, height_width
from vavae.data.found import Found, classes_text, describe
from vavae.data.open import has_part, open_images
from vavae.data.readable import ReadOptions
from vavae.data.sources import ImageSource, Split
from vavae.errors import UserError
from vavae.io.files import read_json_object, write_json

# Texts that `report` has printed, inside `printed_once`.
_printed: ContextVar[set[str] | None] = ContextVar("printed", default=None)


@dataclass(frozen=True)
class ImagesConfig:
    """Images of a recipe.

    Attributes:
        images: A folder (one sub-folder per class, or none), `webdataset:` and tar shards (`shards-{000..123}.tar`,
            `shards-*.tar` or a folder; paths or what fsspec opens), `hf:` and a data set on the hub
            (`owner/name:config@revision`) or its folder, `demo` (embedded) or `cifar10` (an asset).
        size: Size of the images in pixels: one number for squares, or [height, width]. An image is scaled until it just
            covers this size, then cropped to it.
        crop: `center` crops the middle, as for extraction and evaluation; `random` crops as in the published tokenizer
            training.
        flip: Mirror images at random in training.
        limit: Use at most this many images, spaced evenly over the source; null uses all.
        holdout: Share of the images that is kept for testing if they have no test part; 0 tests on the training images.
        workers: Threads that decode images; 0 decodes in the main thread.
        check: How unreadable images are found before the first use: `decode` decodes each image once; `header` reads
            only beginnings, for sets of millions that are known to be sound. With `header`, a truncated image ends
            the run when it is used.
        image_column: Column of the images of `hf:`, or part of their ending in shards (`left` for 1.left.png); null
            searches.
        label_column: Column of the labels of `hf:`, or in shards part of their ending or their key in JSON; `none`
            takes no labels, null searches.
        gray_range: The gray values that become black and white, for example [0, 4095], for gray images of 16 bits or
            of 32-bit numbers. null maps 16-bit values from 0 to 65535 and leaves out images of 32-bit numbers.
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
    gray_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_size("size", self.size))
        if min(height_width(self.size)) < 8:
            raise UserError(f"size must be at least 8 pixels, got {format_size(self.size)}")
        if not 0.0 <= self.holdout < 1.0:
            raise UserError(f"holdout must be in [0, 1), got {self.holdout}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1, got {self.limit}")
        if self.workers < 0:
            raise UserError(f"workers must be at least 0, got {self.workers} (0 decodes in the main thread)")
        if self.gray_range is not None and not -math.inf < self.gray_range[0] < self.gray_range[1] < math.inf:
            raise UserError(f"gray_range must be [black, white] with black < white, got {list(self.gray_range)}")

    def latent_size(self, factor: int) -> tuple[int, int]:
        """Return height and width of the latents of a tokenizer with this downsampling factor.

        Raises:
            UserError: The factor does not divide the size.
        """
        height, width = height_width(self.size)
        if height % factor or width % factor:
            raise UserError(
                f"data.size must be a multiple of the tokenizer's factor {factor}, got {format_size(self.size)}"
            )
        return height // factor, width // factor

    def open(self, split: Split, folder: Path | None = None, what: str = "images") -> ImageSource:
        """Open the images of a split and report them.

        Args:
            split: "train" or "test".
            folder: Run folder, for `unreadable.txt`, if images cannot be read.
            what: Name of the images in the report; only "images" have an `unreadable.txt`.

        Raises:
            UserError: The images cannot be opened, or none are left.
        """
        names = folder / "unreadable.txt" if folder is not None and what == "images" else None
        has_test = has_part(self.images, "test")
        held_out = self.holdout > 0 and not has_test
        part: Split = "train" if held_out else split
        options = ReadOptions(self.check, names, self.image_column, self.label_column, self.gray_range)
        source = open_images(self.images, part, options)
        if source.found.passed_over.get("unreadable"):
            name, reason = source.unreadable[0]
            more = f" ({names.name} lists all)" if names is not None else ""
            source.found = source.found.with_note(f"unreadable: {name}: {reason}{more}")
        if held_out:
            # The split depends only on the number of images, so it is the same in every run.
            order = rng.permutation(0, "holdout", len(source)).numpy()
            held = max(1, round(len(source) * self.holdout))
            kept = np.sort(order[:held] if split == "test" else order[held:])
            source = Selection(source, kept, f"{len(kept):,} of {len(source):,} images, by data.holdout {self.holdout}")
        elif split == "test" and not has_test:
            source.found = source.found.with_note(
                "no test part: training and test images are the same (data.holdout keeps some)"
            )
        if self.limit is not None and len(source) > self.limit:
            chosen = evenly_spaced(self.limit, len(source)).numpy()
            source = Selection(source, chosen, f"{self.limit:,} of {len(source):,} images, by data.limit")
        if len(source) == 0:
            raise UserError(f"{self.images}: no images are left for {split}; give more images or a smaller holdout")
        report(what, len(source), source.class_names, source.found)
        return source


def report(what: str, count: int, class_names: Sequence[str], found: Found) -> None:
    """Print a description of a set of images or latents."""
    text = describe(what, count, class_names, found)
    printed = _printed.get()
    if printed is None or text not in printed:
        print(text, flush=True)
    if printed is not None:
        printed.add(text)


def note_source(folder: Path, source: ImageSource, what: str = "images") -> None:
    """Record the description of images under `what` in `images.json` of a run folder, once they are accepted."""
    note(folder / "images.json", what, len(source), source.class_names, source.found)


def note(path: Path, what: str, count: int, class_names: Sequence[str], found: Found) -> None:
    """Record the description of a set of images under `what` in a JSON file."""
    former: dict[str, Any] = {}
    with suppress(OSError, UserError):
        former = read_json_object(path)
    entry = {
        "images": count,
        "from": found.where,
        "passed_over": dict(found.passed_over),
        "notes": found.notes,
        "classes": class_names,
    }
    write_json(path, {**former, what: entry}, indent=1)


@contextmanager
def printed_once() -> Iterator[None]:
    """Print equal reports only once in the block, since each stage of a command opens its images."""
    token = _printed.set(set())
    try:
        yield
    finally:
        _printed.reset(token)


def check_same_classes(train: ImageSource, test: ImageSource) -> None:
    """Raise UserError if the training and the test part of a set have different classes."""
    if train.class_names != test.class_names:
        raise UserError(
            f"images: the training part is {classes_text(train.class_names)} and the test part "
            f"{classes_text(test.class_names)}: give both the same class folders, or name the training part alone and "
            "keep some of it for testing (data.holdout)"
        )


class Selection(ImageSource):
    """Some images of a source, in the order of `indices`, (N,) int64; `reason` becomes a note about the selection."""

    def __init__(self, source: ImageSource, indices: np.ndarray, reason: str | None = None) -> None:
        self.source = source
        self.found = source.found if reason is None else source.found.with_note(reason)
        self.indices = indices
        self.labels = source.labels[indices]
        self.name = source.name
        self.class_names = source.class_names

    def image(self, index: int) -> Image.Image:
        return self.source.image(int(self.indices[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.source.fingerprint().encode() + self.indices.tobytes()).hexdigest()


def evenly_spaced(count: int, length: int) -> torch.Tensor:
    """Return `count` of the numbers 0 … `length` − 1, evenly spaced, (count,) int64.

    If images are sorted by class, this selects some of every class.
    """
    return torch.linspace(0, length - 1, count, dtype=torch.float64).round().long()


def class_balanced(count: int, source: ImageSource) -> list[int]:
    """Return at most `count` indices that alternate over the classes: first of a, first of b, …, second of a, …"""
    labels = source.labels
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(int((labels == label).sum()))
    return np.lexsort((labels, turn))[:count].tolist()
