"""Images in a folder."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from vavae.data.folders import list_images
from vavae.data.found import Found
from vavae.data.loader import loaded_ahead
from vavae.data.readable import (
    DEFAULT_OPTIONS,
    ReadOptions,
    image_error,
    keep_readable,
    range_key,
    read_rgb,
    reading,
)
from vavae.data.sources import ImageSource
from vavae.errors import UserError, printable


class FolderImages(ImageSource):
    """Images of a folder: one class per sub-folder (sorted by name), or without labels; see `list_images`.

    Other files, hidden files and files of file servers and operating systems are passed over and counted. Unreadable
    images are left out, counted and named, so every index is an image that can be read. The result for a large folder
    is cached until one of its files, or Pillow, changes.

    Args:
        folder: The folder.
        options: How to read the images.
        class_names: Names of all classes, in label order, if another part of the set decides them; None takes the
            folder's own.
        base: Folder of the whole set, whose `dataset.json` counts if `folder` has none.

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
        options: ReadOptions = DEFAULT_OPTIONS,
        class_names: Sequence[str] | None = None,
        base: str | os.PathLike[str] | None = None,
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"no such folder of images: {root}")
        listing = list_images(root, class_names, None if base is None else Path(base))
        self.root = root
        self.name = printable(root.resolve().name)
        self.gray_range = options.gray_range
        self.class_names = listing.class_names
        paths = listing.paths
        kept, self.unreadable = keep_readable(
            len(paths),
            lambda number: image_error(paths[number], options.decode, options.gray_range),
            lambda number: paths[number],
            ("folder", _state_of(paths, root)),
            options,
        )
        self.paths = [paths[number] for number in kept]
        self.labels = listing.labels[kept]
        unreadable = {"unreadable": len(self.unreadable)} if self.unreadable else {}
        self.found = Found(f"folder {root}", {**listing.passed_over, **unreadable}, listing.notes)
        if not self.paths:
            name, reason = self.unreadable[0]
            raise UserError(
                f"no readable images in folder: {root} ({len(self.unreadable)} failed, {Path(name).name}: {reason})"
            )

    def image(self, index: int) -> Image.Image:
        path = self.paths[index]
        with reading(f"image {path}"):
            return read_rgb(path, self.gray_range)

    def fingerprint(self) -> str:
        """Return a digest of relative paths, file sizes and labels.

        Contents do not count, since reading them would cost millions of reads at each start. Times do not count, so a
        copied set has the same digest. Different BMP or PPM files can therefore count as the same images.
        """
        digest = hashlib.sha256(repr(self.class_names).encode() + range_key(self.gray_range))
        for (path, (size, _)), label in zip(_sizes_and_times(self.paths), self.labels, strict=True):
            relative = path.relative_to(self.root).as_posix()
            digest.update(os.fsencode(f"{relative}\0{size}\0{label}\n"))
        return digest.hexdigest()


def _state_of(paths: Sequence[Path], root: Path) -> str:
    """Return a digest of names, sizes and times of change of files below `root`."""
    digest = hashlib.sha256()
    for path, fact in _sizes_and_times(paths):
        digest.update(os.fsencode(f"{path.relative_to(root)}\0{fact}\n"))
    return digest.hexdigest()


def _sizes_and_times(paths: Sequence[Path]) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Yield every path with its size and time of change. Threads hide the latency of network file systems."""
    blocks = (paths[first : first + 1024] for first in range(0, len(paths), 1024))
    for block, facts in loaded_ahead(blocks, lambda block: [_size_and_time(path) for path in block], 16):
        yield from zip(block, facts, strict=True)


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return size and time of change in ns; zeros for a broken link."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
