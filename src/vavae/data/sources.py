"""Where images come from: a folder, the embedded demo images, or the whole of CIFAR-10.

Every source is an indexable, labelled list of RGB images; index i always names the same image, so data order,
resume and metrics can refer to images by number.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vavae.data.folders import class_names_of, find_parts, list_images
from vavae.data.found import Found
from vavae.data.loader import loaded_ahead
from vavae.data.readable import (
    GrayRange,
    find_unreadable,
    image_error,
    range_key,
    read_rgb,
    reading,
    write_unreadable,
)
from vavae.errors import UserError, one_line, printable

Split = Literal["train", "test"]


@runtime_checkable
class ImageSource(Protocol):
    """A list of labelled RGB images.

    Attributes:
        name: What to call the source in logs and reports.
        class_names: One name per class, in label order; a source without labels has one class.
        found: Where the images are, what was passed over, what was assumed.
    """

    name: str
    class_names: tuple[str, ...]
    found: Found

    @property
    def num_classes(self) -> int:
        """Number of classes, at least 1."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Image number `index` as an RGB image of its native size."""
        ...

    def label(self, index: int) -> int:
        """Class of image number `index`, in [0, num_classes)."""
        ...

    def fingerprint(self) -> str:
        """A hex digest that changes when images come or go, or their order, labels or sizes in bytes change.

        Sources in memory go by contents, those of the datasets library by its own digest; files are not read for it.
        """
        ...


def source_labels(source: ImageSource) -> NDArray[np.int64]:
    """Labels of all images of `source`, (N,) int64."""
    if isinstance(source, ArrayImages):
        return source.labels
    return np.fromiter((source.label(i) for i in range(len(source))), dtype=np.int64, count=len(source))


class ArrayImages:
    """Images of one size held in memory.

    Args:
        pixels: (N, H, W, 3) uint8 RGB.
        labels: (N,) integers in [0, len(class_names)).
        class_names: One name per class.
        name: What to call the source.
        found: Where the images are from; null is memory.
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

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def label(self, index: int) -> int:
        return int(self.labels[index])

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
    """All embedded images of a split, (N, 32, 32, 3) uint8, read-only: 5,000 for "train", 1,000 for "test"."""
    description = _demo_description()
    folder = resources.files("vavae.assets") / "demo_images"

    def read(name: str) -> NDArray[np.uint8]:
        with (folder / name).open("rb") as file:
            mosaic = np.asarray(read_rgb(file))
        tiles = mosaic.reshape(-1, 32, description["columns"], 32, 3)
        return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)

    pixels = np.concatenate([read(name) for name in description["splits"][split]["files"]])
    pixels.flags.writeable = False
    return pixels


class DemoImages(ArrayImages):
    """The embedded real images: a class-balanced part of CIFAR-10 (A. Krizhevsky 2009), 32x32, 10 classes.

    Args:
        split: "train" (5,000 images, 500 per class) or "test" (1,000 images, 100 per class).
    """

    def __init__(self, split: Split = "train") -> None:
        _check_split(split)
        description = _demo_description()
        entry = description["splits"][split]
        labels = np.array([int(digit) for digit in entry["labels"]], dtype=np.int64)
        found = Found(f"demo, split {split} (embedded)")
        super().__init__(demo_pixels(split), labels, description["class_names"], f"demo-{split}", found)
        self.provenance: str = description["provenance"]


class Cifar10Images(ArrayImages):
    """The whole of CIFAR-10 from the asset `cifar10`: 50,000 training or 10,000 test images, 32x32.

    Args:
        split: "train" or "test".
    """

    def __init__(self, split: Split = "train") -> None:
        from vavae import assets

        _check_split(split)
        folder = Path(assets.path("cifar10"))
        names = [f"data_batch_{i}.png" for i in range(1, 6)] if split == "train" else ["test_batch.png"]
        pixels = np.concatenate([_rows_of_png(folder / name) for name in names])
        # "lables" is how the package spells it.
        labels = json.loads((folder / f"{split}_lables.json").read_text())
        class_names = _demo_description()["class_names"]
        super().__init__(pixels, labels, class_names, f"cifar10-{split}", Found(f"cifar10, split {split}"))


def _rows_of_png(path: Path) -> NDArray[np.uint8]:
    """A PNG with one 32x32 RGB image per row -> (N, 32, 32, 3)."""
    return np.asarray(read_rgb(path)).reshape(-1, 32, 32, 3)


class FolderImages:
    """Images of a folder: one class per sub-folder (sorted by name), or without labels; see `list_images`.

    Files that are not images, hidden ones and those that a file server or an operating system keeps are passed over
    and counted. Unreadable images are left out, counted and named, so that every index is an image that can be read.

    Args:
        folder: The folder.
        unreadable_list: Where to write the paths of unreadable images and the reasons, one per line,
            tab-separated; nothing is written if all can be read.
        check: "decode" reads every file whole, which finds truncated ones; "header" reads only the beginnings,
            for sets of millions known to be sound (a truncated image then raises UserError when it is used). What
            was found in a large folder is remembered until one of its files, or Pillow, changes.
        class_names: Names of all classes, in label order, where another part of the same set decides them: its
            training part. Null takes the folder's own.
        base: Folder of the whole set, whose `dataset.json` counts if `folder` has none.
        gray_range: See `readable.upright_rgb`.

    Attributes:
        paths: Readable image files, sorted within their class.
        unreadable: (path, reason) of each image left out.

    Raises:
        UserError: The folder is missing, contains nothing readable or a file that cannot be accessed, or its labels
            are in doubt (see `list_images`).
        RunError: There is not enough memory to decode an image.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        unreadable_list: str | os.PathLike[str] | None = None,
        check: Literal["decode", "header"] = "decode",
        class_names: Sequence[str] | None = None,
        base: str | os.PathLike[str] | None = None,
        gray_range: GrayRange | None = None,
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"no such folder of images: {root}")
        listing = list_images(root, class_names, None if base is None else Path(base))
        self.root = root
        self.name = printable(root.resolve().name)
        self.gray_range = gray_range
        self.class_names = listing.class_names
        paths = listing.paths
        failed = find_unreadable(
            len(paths),
            lambda number: image_error(paths[number], check == "decode", gray_range),
            lambda number: paths[number],
            ("folder", _state_of(paths, root), check, gray_range),
        )
        self.unreadable = [(paths[number], reason) for number, reason in failed.items()]
        readable = np.array([number not in failed for number in range(len(paths))])
        self.paths = [path for path, good in zip(paths, readable, strict=True) if good]
        self.labels: NDArray[np.int64] = listing.labels[readable]
        unreadable = {"unreadable": len(failed)} if failed else {}
        self.found = Found(f"folder {root}", {**listing.passed_over, **unreadable}, listing.notes)
        write_unreadable(self.unreadable, unreadable_list)
        if not self.paths:
            path, reason = self.unreadable[0]
            raise UserError(
                f"no readable images in folder: {root} ({len(self.unreadable)} failed, {path.name}: {reason})"
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        path = self.paths[index]
        with reading(f"image {path}"):
            return read_rgb(path, self.gray_range)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def fingerprint(self) -> str:
        """Digest of relative paths, file sizes and labels.

        Neither contents nor times count: the first would cost millions of reads at each start on a network file
        system, and by the second a copied set would be another one. So files of the same names, sizes and labels count
        as the same images. Compressed images of one size are hardly ever different ones; BMP and PPM may be.
        """
        digest = hashlib.sha256(repr(self.class_names).encode() + range_key(self.gray_range))
        for (path, (size, _)), label in zip(_sizes_and_times(self.paths), self.labels, strict=True):
            relative = path.relative_to(self.root).as_posix()
            digest.update(os.fsencode(f"{relative}\0{size}\0{label}\n"))
        return digest.hexdigest()


def _state_of(paths: Sequence[Path], root: Path) -> str:
    """Digest of names, sizes and times of change of files below `root`."""
    digest = hashlib.sha256()
    for path, fact in _sizes_and_times(paths):
        digest.update(os.fsencode(f"{path.relative_to(root)}\0{fact}\n"))
    return digest.hexdigest()


def _sizes_and_times(paths: Sequence[Path]) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Every path with its size and time of change. Network file systems answer many questions at once."""
    blocks = (paths[first : first + 1024] for first in range(0, len(paths), 1024))
    for block, facts in loaded_ahead(blocks, lambda block: [_size_and_time(path) for path in block], 16):
        yield from zip(block, facts, strict=True)


def _size_and_time(path: Path) -> tuple[int, int]:
    """What changes when a file does; zeros for a link that leads nowhere, whose reading then fails."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise UserError(f'unknown split "{split}": "train" or "test"')


def open_images(
    spec: str,
    split: Split = "train",
    unreadable_list: str | os.PathLike[str] | None = None,
    check: Literal["decode", "header"] = "decode",
    image_column: str | None = None,
    label_column: str | None = None,
    gray_range: GrayRange | None = None,
) -> ImageSource:
    """Open the images that `spec` names.

    Args:
        spec: "demo" (embedded), "cifar10" (fetched as an asset on first use), "webdataset:" and shards
            (`WebDatasetImages`; one list for both splits), "hf:" and a data set (`HuggingFaceImages`), or a folder.
        split: "train" or "test". If a folder has such parts (`find_parts`), one of them is opened, and its test part
            numbers classes as its training part does; any other folder is taken whole for both splits.
        unreadable_list: See `FolderImages`.
        check: See `FolderImages`.
        image_column: See `HuggingFaceImages` and `WebDatasetImages`; other images have no columns.
        label_column: As `image_column`.
        gray_range: See `readable.upright_rgb`.

    Raises:
        UserError: `spec` is neither a known name nor a folder of images, has no such split or no columns, or has a
            class for testing only.
    """
    _check_split(split)
    for option, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and not spec.startswith(("hf:", "webdataset:")):
            raise UserError(f"data.{option} must be null, got {column}: only hf: and webdataset: have it, not {spec}")
    if spec == "demo":
        return DemoImages(split)
    if spec == "cifar10":
        return Cifar10Images(split)
    if spec.startswith("webdataset:"):
        from vavae.data.webdataset import WebDatasetImages

        shards = spec.removeprefix("webdataset:")
        return WebDatasetImages(shards, None, unreadable_list, check, image_column, label_column, gray_range)
    if spec.startswith("hf:"):
        from vavae.data.huggingface import HuggingFaceImages

        name = spec.removeprefix("hf:")
        return HuggingFaceImages(name, split, image_column, label_column, unreadable_list, check, gray_range)
    path = _path_of(spec)
    if path is None:
        raise UserError(f'no such images: {spec} (a folder, "demo", "cifar10", "webdataset:…" or "hf:…")')
    if path.is_file():
        raise UserError(f"images: {spec} is a file: give the folder it is in")
    return _open_folder(path, split, unreadable_list, check, gray_range)


def _path_of(spec: str) -> Path | None:
    """Return the folder or file that `spec` names; None if there is none.

    Raises:
        UserError: It is not a path, or may not be accessed.
    """
    try:
        path = Path(spec).expanduser()
        return path if spec and path.exists() else None
    except (OSError, RuntimeError) as error:  # too long, or no such ~user
        shown = spec if len(spec) <= 100 else f"{spec[:100]}… ({len(spec):,} characters)"
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise UserError(f"images: {shown} cannot be opened: {reason}") from error


def _open_folder(
    root: Path,
    split: Split,
    unreadable_list: str | os.PathLike[str] | None,
    check: Literal["decode", "header"],
    gray_range: GrayRange | None,
) -> FolderImages:
    """Open the images of a folder, or of the part of it that `split` names."""
    parts = find_parts(root)
    names: tuple[str, ...] | None = None
    notes = list(parts.notes)
    folder = parts.train if split == "train" else parts.test
    if folder is None and parts.train is not None:
        raise UserError(
            f"{root} has a train folder but none of test, val, valid, validation, dev: add one, or keep some of its "
            "images for testing (data.holdout)"
        )
    if folder is None and parts.test is not None:
        raise UserError(f"{root} has a {parts.test.name} folder but no train folder: add one, or give {parts.test}")
    if split == "test" and parts.train is not None:
        # A class is the same number in both parts, also where the test part lacks some.
        names = class_names_of(parts.train, root)
    if split == "test" and parts.left_out is not None:
        notes.append(f"{parts.left_out} is not used: a validation part is taken for testing before a test part")
    source = FolderImages(folder or root, unreadable_list, check, names, root, gray_range)
    passed = Counter(parts.passed_over) + Counter(source.found.passed_over)
    source.found = replace(source.found, passed_over=dict(passed), notes=(*notes, *source.found.notes))
    return source


def has_part(spec: str, split: Split) -> bool:
    """Return whether the images that `spec` names, as for `open_images`, have a part of their own for a split.

    Raises:
        UserError: A Hugging Face set or a folder cannot be opened.
    """
    if spec.startswith("hf:"):
        from vavae.data.huggingface import has_test_part as of_hub

        return split == "train" or of_hub(spec.removeprefix("hf:"))
    if spec in ("demo", "cifar10"):
        return True
    path = None if spec.startswith("webdataset:") else _path_of(spec)
    if path is None or not path.is_dir():
        return False
    parts = find_parts(path)
    return (parts.test if split == "test" else parts.train) is not None
