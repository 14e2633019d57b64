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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from vavae.data.formats import IMAGE_SUFFIXES
from vavae.data.found import Found
from vavae.data.ranges import RangedFile
from vavae.data.readable import (
    GrayRange,
    Unreadable,
    cache_folder,
    image_error,
    judge,
    range_key,
    read_rgb,
    reading,
    recall,
    remember,
    threads,
    write_unreadable,
)
from vavae.data.stream import loaded_ahead
from vavae.errors import RunError, UserError, one_line, told
from vavae.progress import Bar, track

# Indexing shards of fewer bytes is a matter of seconds, and shows no bar.
_WORTH_SHOWING = 200e6
# An archive ends with blocks of zeros, which fill up its last record: of 10 KiB as a rule, of 1 MiB at most.
_BLOCK, _LONGEST_END = 512, 2**20 + 1024


class _Entry(NamedTuple):
    """An image of a shard: its member, its label if it has one, and why it cannot be read."""

    name: str
    offset: int
    size: int
    label: int | None
    error: str | None = None


@dataclass(frozen=True)
class _Index:
    """What a shard holds: its images, and the first sample that has a label and no image."""

    entries: list[_Entry]
    only_labelled: str | None = None

    def store(self, path: Path) -> None:
        remember(path, {"entries": self.entries, "only_labelled": self.only_labelled})

    @classmethod
    def load(cls, path: Path) -> "_Index | None":
        stored = recall(path)
        try:
            return cls([_Entry(*entry) for entry in stored["entries"]], stored["only_labelled"])
        except (TypeError, KeyError):
            return None


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

    A sample is the members side by side whose names are equal up to the first dot: an image, and its label in `.cls`
    (a number), or `label`/`class_id` in `.json`; without either all images are of one class. Of several images the
    one counts that has nothing but an image's extension: `1.jpg`, and not `1.seg.png`. Members that are no images are
    passed over.

    Args:
        shards: Addresses, with `{000..123}` for ranges and `::` between several: paths, or what fsspec opens.
        cache: Folder for indices; null is the user's cache folder.
        unreadable_list: Where to write names of unreadable images and the reasons, one per line, tab-separated.
        check: "decode" reads every image whole while indexing; "header" reads only the beginnings.
        gray_range: See `readable.upright_rgb`.

    Attributes:
        unreadable: (shard: member, reason) of each image left out, as it cannot be read.

    Raises:
        UserError: A shard cannot be opened, is no tar file or not a whole one, a sample of several images does not
            say which one it is, a label is no class number, some images have labels and others none, or there are no
            images.
        RunError: There is not enough memory to decode an image.
    """

    def __init__(
        self,
        shards: str,
        cache: Path | None = None,
        unreadable_list: str | os.PathLike[str] | None = None,
        check: Literal["decode", "header"] = "decode",
        gray_range: GrayRange | None = None,
    ) -> None:
        self.name = shards.rsplit("/", 1)[-1]
        self._addresses = expand_shards(shards)
        self.gray_range = gray_range
        found = _indices(list(dict.fromkeys(self._addresses)), cache or cache_folder() / "shards", check, gray_range)
        self._files = [found[address][0] for address in self._addresses]
        indices = [found[address][1] for address in self._addresses]
        _refuse_mixed_labels(self._addresses, indices)
        self.unreadable: Unreadable = []
        self._members: list[_Member] = []
        for number, (address, index) in enumerate(zip(self._addresses, indices, strict=True)):
            for name, offset, size, label, error in index.entries:
                if error is None:
                    self._members.append(_Member(number, offset, size, -1 if label is None else label))
                else:
                    self.unreadable.append((f"{address}: {name}", error))
        self.found = Found(f"webdataset:{shards}", {"unreadable": len(self.unreadable)} if self.unreadable else {})
        write_unreadable(self.unreadable, unreadable_list)
        if not self._members:
            failed = f" that can be read ({len(self.unreadable)} failed)" if self.unreadable else ""
            raise UserError(f"images: no images{failed} in the shards {shards}")
        labels = np.array([member.label for member in self._members])
        self.labels = np.where(labels < 0, 0, labels)
        self.class_names = tuple(str(n) for n in range(int(self.labels.max()) + 1))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._members)

    def image(self, index: int) -> Image.Image:
        member = self._members[index]
        file = self._files[member.shard]
        with reading(f"image {index} of {file.address}"):
            return read_rgb(io.BytesIO(file.read(member.offset, member.size)), self.gray_range)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def fingerprint(self) -> str:
        """Digest of addresses, sizes, and where the images lie."""
        digest = hashlib.sha256(repr((self._addresses, [file.size for file in self._files])).encode())
        digest.update(range_key(self.gray_range))
        for m in self._members:
            digest.update(f"{m.shard} {m.offset} {m.size} {m.label}\n".encode())
        return digest.hexdigest()


def _refuse_mixed_labels(addresses: list[str], indices: list[_Index]) -> None:
    """An image without a label among labelled ones would count as one of class 0."""
    images = [(address, entry) for address, index in zip(addresses, indices, strict=True) for entry in index.entries]
    without = next((f"{address}: {entry.name}" for address, entry in images if entry.label is None), None)
    with_one = next((f"{address}: {entry.name}" for address, entry in images if entry.label is not None), None)
    for address, index in zip(addresses, indices, strict=True):
        if with_one is None and index.only_labelled is not None:
            with_one = f"{address}: {index.only_labelled} (no image beside it)"
    if without is not None and with_one is not None:
        raise UserError(f"images: {without} has no label, and {with_one} has one: give all of them labels, or none")


class _Progress:
    """Bytes of shards that threads have read, and the end of all threads when one has failed."""

    def __init__(self, bar: Bar | None) -> None:
        self.stopping = threading.Event()
        self._bar = bar
        self._bytes = 0
        self._lock = threading.Lock()

    def passed(self, size: int) -> None:
        """Count bytes. Raises RunError where the thread shall end."""
        if self.stopping.is_set():
            raise RunError("the shards are read no further")
        with self._lock:
            self._bytes += size
            if self._bar is not None and self._bytes // 10**6 > self._bar.done:
                self._bar.advance(self._bytes // 10**6 - self._bar.done)


def _indices(
    addresses: list[str], folder: Path, check: str, gray_range: GrayRange | None
) -> dict[str, tuple[RangedFile, _Index]]:
    """Each shard, and what it holds: from the cache, or read by several threads and stored shard by shard."""

    def known(address: str) -> tuple[RangedFile, Path, _Index | None]:
        with _naming_shard(address):
            file = RangedFile.find(address)
        key = hashlib.sha256(f"5\0{check}\0{gray_range}\0{judge()}\0{file.identity}".encode()).hexdigest()[:24]
        path = folder / f"{key}.json"
        return file, path, _Index.load(path)

    found: dict[str, tuple[RangedFile, _Index]] = {}
    missing: list[tuple[RangedFile, Path]] = []
    for address, (file, path, index) in loaded_ahead(addresses, known, 16):
        if index is None:
            missing.append((file, path))
        else:
            found[address] = file, index

    total = sum(file.size for file, _ in missing)
    shown = track("indexing shards", total // 10**6, "MB") if total >= _WORTH_SHOWING else nullcontext()
    with shown as bar, ThreadPoolExecutor(threads(), thread_name_prefix="index") as pool:
        progress = _Progress(bar)

        def index_of(file: RangedFile, path: Path) -> _Index:
            with _naming_shard(file.address), file.open() as content:
                index = _scan(content, file.address, check == "decode", gray_range, progress.passed)
            index.store(path)
            return index

        answers = [(file, pool.submit(index_of, file, path)) for file, path in missing]
        try:
            for file, answer in answers:
                found[file.address] = file, answer.result()
        finally:
            progress.stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _naming_shard(address: str) -> AbstractContextManager[None]:
    return told(lambda reason: f"images: shard {address} cannot be read ({reason})", f"index the shard {address}")


class _Sample:
    """Members of one name, as they come."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.label: int | None = None
        self._address = address
        self._extensions: set[str] = set()
        self._images: list[tuple[str, _Entry]] = []

    def add(self, extension: str) -> None:
        """Note a member.

        Raises:
            UserError: There is one of this name already.
        """
        if extension in self._extensions:
            raise UserError(f"images: {self._address} holds {self.name}.{extension} twice in one sample")
        self._extensions.add(extension)

    def add_image(self, extension: str, entry: _Entry) -> None:
        self._images.append((extension, entry))

    def image(self) -> _Entry | None:
        """The sample's image, or None.

        Raises:
            UserError: There are several, and no name tells which it is.
        """
        if not self._images:
            return None
        plain = [entry for extension, entry in self._images if "." not in extension]
        if len(self._images) > 1 and not plain:
            names = f"{self._images[0][1].name} and {self._images[1][1].name}"
            raise UserError(
                f"images: {self._address}: {names} are one sample, since a sample's name ends at its first dot, and "
                "nothing says which is its image: replace the other dots, or call the image NAME.png, NAME.jpg, …"
            )
        entry = plain[0] if plain else self._images[0][1]
        return entry._replace(label=self.label)


def _scan(file: Any, address: str, decode: bool, gray_range: GrayRange | None, passed: Callable[[int], None]) -> _Index:
    """Index a tar file; `passed` is told of the bytes that have been read."""
    entries: list[_Entry] = []
    only_labelled: str | None = None

    def finish(sample: _Sample) -> None:
        nonlocal only_labelled
        entry = sample.image()
        if entry is not None:
            entries.append(entry)
        elif sample.label is not None and only_labelled is None:
            only_labelled = sample.name

    sample = _Sample("", address)
    position = 0
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            passed(member.offset_data + member.size - position)
            position = member.offset_data + member.size
            folder, slash, leaf = member.name.rpartition("/")
            base, _, extension = leaf.partition(".")
            if not member.isfile() or not base or not extension:  # as `._1.jpg`, which macOS adds
                continue
            if folder + slash + base != sample.name:
                finish(sample)
                sample = _Sample(folder + slash + base, address)
            sample.add(extension)
            content = archive.extractfile(member)
            assert content is not None
            if f".{extension.lower().rpartition('.')[2]}" in IMAGE_SUFFIXES:
                problem = image_error(io.BytesIO(content.read()) if decode else content, decode, gray_range)
                entry = _Entry(member.name, member.offset_data, member.size, None, problem)
                sample.add_image(extension.lower(), entry)
            elif extension in ("cls", "json"):
                said = _label(content.read(), extension, f"{address}: {member.name}")
                sample.label = sample.label if said is None else said
    _check_end(file, archive.offset, address)
    finish(sample)
    return _Index(entries, only_labelled)


def _check_end(file: Any, offset: int, address: str) -> None:
    """Refuse a shard of which tarfile read a part only: at a member it cannot make out it ends without a word.

    Raises:
        UserError: What follows the last member, at `offset`, is not the end of an archive.
    """
    file.seek(offset)
    rest = file.read(_LONGEST_END + 1)
    if not _BLOCK <= len(rest) <= _LONGEST_END or any(rest):
        raise UserError(
            f"images: shard {address} is damaged or incomplete: at byte {offset} there is neither a member nor the "
            "archive's end"
        )


def _label(content: bytes, extension: str, where: str) -> int | None:
    """The class number in a member, or None for an object of JSON that tells of none."""
    try:
        said: Any = content.decode() if extension == "cls" else json.loads(content)
        if extension == "json":
            if not isinstance(said, dict):
                raise ValueError("holds no object with a label")
            if "label" not in said and "class_id" not in said:
                return None
            said = said.get("label", said.get("class_id"))
        whole = isinstance(said, int) or (isinstance(said, float) and said.is_integer())
        if not whole and not (isinstance(said, str) and re.fullmatch(r"\s*[+-]?\d+\s*", said)):
            raise ValueError(f"its label {str(said).strip()[:40]!r} is no class number")
        label = int(said)
        if label < 0:
            raise ValueError(f"its label {label} is hidden")
    except ValueError as error:  # of JSON and of UTF-8 too
        raise UserError(f"images: {where}: {one_line(error)}") from error
    return label
