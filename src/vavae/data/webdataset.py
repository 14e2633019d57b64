"""WebDataset shards as an indexable list of images: tar files, local or at any address that fsspec reads.

Shards are indexed once (where each member begins, and its label); after that any image is one read of a range, so
order, resume and number of processes mean the same as for a folder. The index is kept in the user's cache.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vavae.data.readable import IMAGE_ERRORS, Unreadable, cache_folder, image_error, write_unreadable
from vavae.data.sources import IMAGE_SUFFIXES, read_rgb
from vavae.errors import UserError
from vavae.files import written_whole

# Name, offset, size, label (-1 where there is none), and why it cannot be read.
_Entry = tuple[str, int, int, int, str | None]


@dataclass(frozen=True)
class _Member:
    shard: int
    offset: int
    size: int
    label: int


def expand_shards(spec: str) -> list[str]:
    """`name-{000..003}.tar` -> four addresses; several specs are joined by `::`."""
    found: list[str] = []
    for part in spec.split("::"):
        braces = re.search(r"\{(\d+)\.\.(\d+)\}", part)
        if braces is None:
            found.append(part)
            continue
        first, last = braces[1], braces[2]
        numbers = range(int(first), int(last) + 1)
        found += [part[: braces.start()] + str(n).zfill(len(first)) + part[braces.end() :] for n in numbers]
    return found


class WebDatasetImages:
    """Images of tar shards, in the order of the shards.

    A sample is the members of one base name: an image, and its label in `.cls` (a number), or `label`/`class_id` in
    `.json`; without either all images are of one class. Members that are no images are passed over.

    Args:
        shards: Addresses, with `{000..123}` for ranges and `::` between several: paths, or what fsspec opens.
        cache: Folder for indices; null is the user's cache folder.
        unreadable_list: Where to write names of unreadable images and the reasons, one per line, tab-separated.
        check: "decode" reads every image whole while indexing; "header" reads only the beginnings.

    Attributes:
        unreadable: (shard: member, reason) of each image left out, as it cannot be read.

    Raises:
        UserError: A shard cannot be opened or is no tar file, or there are no images.
    """

    def __init__(
        self,
        shards: str,
        cache: Path | None = None,
        unreadable_list: str | os.PathLike[str] | None = None,
        check: Literal["decode", "header"] = "decode",
    ) -> None:
        import fsspec

        self.name = shards.rsplit("/", 1)[-1]
        self._addresses = expand_shards(shards)
        self._local = threading.local()
        self._open = fsspec.open
        folder = cache or cache_folder() / "shards"
        self.unreadable: Unreadable = []
        self._sizes: list[int] = []
        self._members: list[_Member] = []
        for number, address in enumerate(self._addresses):
            size, entries = self._index(address, folder, check)
            self._sizes.append(size)
            self._members += [_Member(number, *place) for _, *place, error in entries if error is None]
            self.unreadable += [
                (f"{address}: {entry[0]}", str(entry[-1])) for entry in entries if entry[-1] is not None
            ]
        write_unreadable(self.unreadable, unreadable_list)
        if not self._members:
            failed = f" that can be read ({len(self.unreadable)} failed)" if self.unreadable else ""
            raise UserError(f"images: no images{failed} in the shards {shards}")
        labels = np.array([member.label for member in self._members])
        self.labels = np.where(labels < 0, 0, labels)
        self.class_names = tuple(str(n) for n in range(int(self.labels.max()) + 1))

    def _index(self, address: str, folder: Path, check: str) -> tuple[int, list[_Entry]]:
        """Size of a shard, and its images."""
        try:
            with self._open(address, "rb") as file:
                size = file.seek(0, 2)
                key = hashlib.sha256(f"2\0{check}\0{address}\0{size}".encode()).hexdigest()[:24]
                path = folder / f"{key}.json"
                if path.exists():
                    return size, [tuple(entry) for entry in json.loads(path.read_text())]
                file.seek(0)
                entries = list(_scan(file, check == "decode"))
        except (OSError, ValueError, tarfile.TarError) as error:
            raise UserError(f"images: shard {address} cannot be read ({error})") from error
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(entries))
        return size, entries

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._members)

    def image(self, index: int) -> Image.Image:
        member = self._members[index]
        address = self._addresses[member.shard]
        try:
            file = self._file(address)
            file.seek(member.offset)
            return read_rgb(io.BytesIO(file.read(member.size)))
        except IMAGE_ERRORS as error:
            raise UserError(f"cannot read image {index} of {address}: {error}") from error

    def _file(self, address: str) -> Any:
        """One open file per thread and shard: reads move its position."""
        files = self._local.__dict__.setdefault("files", {})
        if address not in files:
            files[address] = self._open(address, "rb").open()
        return files[address]

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def fingerprint(self) -> str:
        """Digest of addresses, sizes, and where the images lie."""
        digest = hashlib.sha256(repr((self._addresses, self._sizes)).encode())
        for m in self._members:
            digest.update(f"{m.shard} {m.offset} {m.size} {m.label}\n".encode())
        return digest.hexdigest()


def _scan(file: Any, decode: bool) -> Iterator[_Entry]:
    """The images of a tar file, in order."""
    waiting: tuple[str, int, int, str | None] | None = None
    label, sample = -1, ""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder, _, leaf = member.name.rpartition("/")
            base, _, extension = leaf.partition(".")
            if f"{folder}/{base}" != sample:
                if waiting is not None:
                    yield *waiting[:3], label, waiting[3]
                sample, waiting, label = f"{folder}/{base}", None, -1
            content = archive.extractfile(member)
            assert content is not None
            if f".{extension.lower().rpartition('.')[2]}" in IMAGE_SUFFIXES:
                problem = image_error(io.BytesIO(content.read()), decode)
                waiting = member.name, member.offset_data, member.size, problem
            elif extension == "cls":
                label = int(content.read())
            elif extension == "json":
                said = json.loads(content.read())
                label = int(said.get("label", said.get("class_id", label)))
    if waiting is not None:
        yield *waiting[:3], label, waiting[3]
