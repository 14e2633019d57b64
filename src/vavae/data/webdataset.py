"""WebDataset shards as an indexable list of images: tar files, local or at any address that fsspec opens.

Shards are indexed once: the offset of each member, and its label. Each image is then one read of a range, so order,
resuming and the number of processes work as for a folder. The index is kept in the user's cache folder.
"""

import hashlib
import io
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vavae.assets import cache_folder
from vavae.data.formats import IMAGE_SUFFIXES
from vavae.data.found import UNLABELED, Found
from vavae.data.labels import NO_LABELS, label_names
from vavae.data.loader import loaded_ahead
from vavae.data.ranges import RangedFile, expand_shards, naming_shard
from vavae.data.readable import (
    DEFAULT_OPTIONS,
    ReadOptions,
    decoder_version,
    image_error,
    range_key,
    read_cache,
    read_rgb,
    reading,
    threads,
    write_cache,
    write_unreadable,
)
from vavae.data.shard_samples import Entry, Sample, read_label
from vavae.data.sources import ImageSource
from vavae.errors import RunError, UserError, printable
from vavae.progress import track

# Fewer bytes are indexed in seconds, so no bar is shown for them.
_WORTH_SHOWING = 200e6
# An archive ends with blocks of zeros that fill its last record, which usually has 10 KiB and at most 1 MiB.
_BLOCK, _LONGEST_END = 512, 2**20 + 1024
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"PK\x03\x04": ("zip", "unzip, then tar -cf"),
}


@dataclass
class _Index:
    """Index of a shard."""

    entries: list[Entry]
    only_labeled: str | None  # the first sample that has a label and no image
    passed_over: dict[str, int]  # number of other members, by reason
    labels_from: list[str]  # endings and keys in JSON that labels come from

    @classmethod
    def load(cls, path: Path) -> "_Index | None":
        stored = read_cache(path)
        try:
            return cls(**(stored | {"entries": [Entry(*entry) for entry in stored["entries"]]}))
        except (TypeError, KeyError):
            return None


class WebDatasetImages(ImageSource):
    """Images of tar shards, in the order of the shards.

    A sample consists of neighboring members whose names are equal up to the first dot. Its label is a number in `.cls`
    (or `.label.cls`, `.class`, …; see `vavae.data.labels`) or in a key of `.json`. `.cls` has priority over other
    endings, and these over `.json`. If no sample has a label, all images are of one class. Of several images, the one
    with a plain ending counts: `1.jpg`, not `1.seg.png`; otherwise `1.image.png`. Case does not matter in endings and
    keys.

    Args:
        shards: Addresses as for `expand_shards`: paths, or addresses that fsspec opens.
        options: How to read the images: `image_column` is the part of the ending that images have (`left` for
            `1.left.png`), and `label_column` the part of the ending, or the key in JSON, that labels have.
        cache: Folder for indices; None is in the user's cache folder.

    Attributes:
        unreadable: (shard: member, reason) of each image that cannot be read and is left out.
        found: Members that were passed over, and the origin of the labels.

    Raises:
        UserError: A shard cannot be opened, is not a tar file, is compressed or incomplete, a sample has several
            images and none of them counts, a label is not a class number, only some images have labels,
            or the shards hold none.
        RunError: There is not enough memory to decode an image.
    """

    def __init__(self, shards: str, options: ReadOptions = DEFAULT_OPTIONS, cache: Path | None = None) -> None:
        self.name = shards.rsplit("/", 1)[-1]
        self._addresses = expand_shards(shards)
        self.gray_range = options.gray_range
        found = _indices(list(dict.fromkeys(self._addresses)), cache or cache_folder() / "shards", options)
        self._files = [found[address][0] for address in self._addresses]
        indices = [found[address][1] for address in self._addresses]
        _refuse_mixed_labels(self._addresses, indices)
        unreadable: list[tuple[str, str]] = []
        self._entries: list[tuple[int, Entry]] = []  # with the number of the shard
        for number, (address, index) in enumerate(zip(self._addresses, indices, strict=True)):
            for entry in index.entries:
                if entry.error is None:
                    self._entries.append((number, entry))
                else:
                    unreadable.append((f"{address}: {entry.name}", entry.error))
        self.unreadable = unreadable
        write_unreadable(unreadable, options.unreadable_list)
        self.found = _found(shards, self._addresses, indices, len(self.unreadable), options.label_column)
        if not self._entries:
            passed = ", ".join(f"{count} {reason}" for reason, count in self.found.passed_over.items())
            raise UserError(f"images: no images in the shards {shards} (passed over: {passed or 'nothing'})")
        self.labels = np.array([entry.label or 0 for _, entry in self._entries], dtype=np.int64)
        labeled = self._entries[0][1].label is not None
        self.class_names = tuple(str(n) for n in range(int(self.labels.max()) + 1)) if labeled else UNLABELED

    def image(self, index: int) -> Image.Image:
        number, entry = self._entries[index]
        file = self._files[number]
        with reading(f"image {index} of {file.address}"):
            return read_rgb(io.BytesIO(file.read(entry.offset, entry.size)), self.gray_range)

    def fingerprint(self) -> str:
        """Return a digest of addresses, sizes, and offsets and labels of the images."""
        digest = hashlib.sha256(repr((self._addresses, [file.size for file in self._files])).encode())
        digest.update(range_key(self.gray_range))
        for number, (_, offset, size, label, _) in self._entries:
            digest.update(f"{number} {offset} {size} {-1 if label is None else label}\n".encode())
        return digest.hexdigest()


def _found(
    shards: str, addresses: list[str], indices: list[_Index], unreadable: int, label_column: str | None
) -> Found:
    """Describe the shards; raise UserError if no sample has a label under the name `label_column`."""
    empty = sum(not index.entries for index in indices)
    passed_over = Counter({"unreadable": unreadable, "shards without images": empty})
    for index in indices:
        passed_over.update(index.passed_over)
    labels_from = sorted({name for index in indices for name in index.labels_from})
    if not labels_from and label_column not in (None, NO_LABELS):
        raise UserError(f"label_column: no sample of {shards} has a label under the name {label_column}")
    note = f"labels from {', '.join(labels_from)}" if labels_from else "no labels: one class"
    where = f"webdataset:{shards}"
    if len(addresses) > 1:
        where += f" ({len(addresses):,} shards, {addresses[0].rsplit('/')[-1]} to {addresses[-1].rsplit('/')[-1]})"
    return Found(where, dict(+passed_over), (note,))


def _refuse_mixed_labels(addresses: list[str], indices: list[_Index]) -> None:
    """Raise UserError if only some images have a label, since the others would be of class 0."""
    shards = list(zip(addresses, indices, strict=True))
    names: dict[bool, str] = {}
    for address, index in shards:
        for entry in index.entries:
            if (entry.label is not None) not in names:
                names[entry.label is not None] = f"{address}: {entry.name}"
    for address, index in shards:
        if index.only_labeled is not None:
            names.setdefault(True, f"{address}: {index.only_labeled} (it has no image)")
    if len(names) == 2:
        raise UserError(
            f"images: {names[False]} has no label, and {names[True]} has one: give all of them labels, or none"
        )


def _indices(addresses: list[str], folder: Path, options: ReadOptions) -> dict[str, tuple[RangedFile, _Index]]:
    """Return each shard and its index: from the cache, or read by several threads and stored shard by shard."""
    rules = replace(options, unreadable_list=None)

    def known(address: str) -> tuple[RangedFile, Path, _Index | None]:
        with naming_shard(address):
            file = RangedFile.find(address)
        key = hashlib.sha256(f"6\0{rules}\0{decoder_version()}\0{file.identity}".encode()).hexdigest()[:24]
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
    stopping, lock, done = threading.Event(), threading.Lock(), 0
    with shown as bar, ThreadPoolExecutor(threads(), thread_name_prefix="index") as pool:

        def passed(size: int) -> None:
            nonlocal done
            if stopping.is_set():
                raise RunError("indexing was stopped by an error in another shard")
            with lock:
                done += size
                if bar is not None and done // 10**6 > bar.done:
                    bar.advance(done // 10**6 - bar.done)

        def index_of(file: RangedFile, path: Path) -> _Index:
            with naming_shard(file.address), file.open() as content:
                index = _scan(content, file.address, options, passed)
            write_cache(path, vars(index))
            return index

        answers = [(file, pool.submit(index_of, file, path)) for file, path in missing]
        try:
            for file, answer in answers:
                found[file.address] = file, answer.result()
        finally:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _scan(file: Any, address: str, options: ReadOptions, passed: Callable[[int], None]) -> _Index:
    """Index a tar file; `passed` is called with the number of bytes that have been read since its last call."""
    image_part = options.image_column and options.image_column.lower()
    names = label_names(options.label_column)
    _refuse_compressed(file, address)
    entries: list[Entry] = []
    counts: Counter[str] = Counter()
    labels_from: set[str] = set()
    only_labeled: str | None = None

    def finish(sample: Sample) -> None:
        nonlocal only_labeled
        entry, label = sample.image(), sample.label()
        counts["other images of a sample"] += max(len(sample.images) - 1, 0)
        if label is not None:
            labels_from.add(label.source)
            for other in sample.labels:
                counts[f"other labels ({other.source})"] += other.number != label.number
        if entry is not None:
            entries.append(entry._replace(label=label and label.number))
        elif label is not None:
            counts["labels without an image"] += 1
            only_labeled = only_labeled or sample.name

    sample = Sample("", address)
    position = 0
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            passed(member.offset_data + member.size - position)
            position = member.offset_data + member.size
            name = printable(member.name)
            folder, slash, leaf = name.rpartition("/")
            base, _, extension = leaf.lower().partition(".")
            reason = _not_data(member, base, extension)
            if reason is not None:
                counts[reason] += 1
                continue
            stem = folder + slash + leaf[: len(base)]
            if stem != sample.name:
                finish(sample)
                sample = Sample(stem, address)
            sample.add(extension)
            content = archive.extractfile(member)
            assert content is not None
            parts = extension.split(".")
            is_image = f".{parts[-1]}" in IMAGE_SUFFIXES
            label = None if is_image else read_label(content, extension, names, name, address)
            if is_image and image_part in (None, *parts):
                image = io.BytesIO(content.read()) if options.decode else content
                problem = image_error(image, options.decode, options.gray_range)
                sample.images.append((extension, Entry(name, member.offset_data, member.size, error=problem)))
            elif label is not None:
                sample.labels.append(label)
            else:
                counts[f".{parts[-1]} files"] += 1
    _check_end(file, archive.offset, address)
    finish(sample)
    return _Index(entries, only_labeled, dict(+counts), sorted(labels_from))


def _not_data(member: tarfile.TarInfo, base: str, extension: str) -> str | None:
    """Return why a member does not belong to a sample, or None if it does."""
    if member.isdir():
        return "folders"
    if not member.isfile() or member.issparse():
        return "links and special files"
    if not base:  # such as `._1.jpg`, which macOS adds
        return "names that begin with a dot"
    return None if extension else "files without an ending"


def _refuse_compressed(file: Any, address: str) -> None:
    """Raise UserError for a compressed shard, since images cannot be read from the middle of one."""
    head = file.read(6)
    file.seek(0)
    for magic, (form, command) in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(
                f"images: shard {address} is compressed ({form}), and images are read from the middle of shards: "
                f"uncompress it ({command}) and give the tar file"
            )


def _check_end(file: Any, offset: int, address: str) -> None:
    """Raise UserError if what follows the last member is not an archive's end: tarfile stops silently at damage."""
    file.seek(offset)
    rest = file.read(_LONGEST_END + 1)
    if not _BLOCK <= len(rest) <= _LONGEST_END or any(rest):
        raise UserError(
            f"images: shard {address} is damaged or incomplete: at byte {offset} there is neither a member nor the "
            "archive's end"
        )
