"""Read ranges of large files, on disk or at any address that fsspec opens, from any number of threads and processes."""

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vavae.data.labels import PART_OF
from vavae.errors import UserError, as_user_error
from vavae.extras import require_extra

# Files that this process keeps open: far below any limit, and enough for most reads to find their file open.
_OPEN_FILES = 64
# Properties of a file, as stores name them, that change with its contents.
_STAMPS = (
    *("ETag", "etag", "Content-MD5", "md5Hash", "content_md5", "blob_id"),
    *("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created"),
)
# Bytes at the beginning of a file that are hashed if its store gives nothing but its size.
_HEAD = 2**20

# Of one pattern. The largest public sets have some 10,000.
_MOST_SHARDS = 1_000_000

# Shards in a folder. Compressed ones cannot be read; they are listed so that they are refused, not passed over.
_SHARD = re.compile(r"\.(tar|tgz|tbz2?|txz|tar\.\w+)$", re.IGNORECASE)


def expand_shards(spec: str) -> list[str]:
    """Return the addresses that match patterns, sorted for each pattern.

    Args:
        spec: Patterns, joined by `::`: paths or addresses that fsspec opens, with `{000..123}` for ranges, `{a,b}` for
            choices, `*`, `?` and `[0-9]` as in a shell, or folders of tar files.

    Raises:
        UserError: A pattern matches nothing or stands for too many files, or its store cannot be read.
    """
    found: list[str] = []
    for part in spec.split("::"):
        if not part:
            raise UserError("images: webdataset: must be followed by shards, for example train-{000..123}.tar")
        addresses = list(itertools.islice(_braces(part), _MOST_SHARDS + 1))
        if len(addresses) > _MOST_SHARDS:
            raise UserError(f"images: a pattern must stand for at most {_MOST_SHARDS:,} shards, got {part[:100]}")
        for address in addresses:
            with naming_shard(address):
                found += _matches(address)
    return found


def naming_shard(address: str) -> AbstractContextManager[None]:
    """Turn any exception of the store of a shard into a UserError that names the shard."""
    return as_user_error(
        lambda reason: f"images: shard {address} cannot be read ({reason})", f"index the shard {address}"
    )


def _braces(pattern: str) -> Iterator[str]:
    """Yield the texts that a pattern of `{000..123}` and `{a,b}` stands for, as in a shell."""
    braces = re.search(r"\{(?:(\d{1,100})\.\.(\d{1,100})|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        yield pattern
        return
    first, last, choices = braces.groups()
    middle: Iterable[str]
    if choices is not None:
        middle = choices.split(",")
    else:
        step = 1 if int(first) <= int(last) else -1
        width = max(len(n) for n in (first, last)) if re.search(r"\b0\d", braces[0]) else 0
        middle = (str(number).zfill(width) for number in range(int(first), int(last) + step, step))
    for part in middle:
        for end in _braces(pattern[braces.end() :]):
            yield pattern[: braces.start()] + part + end


def _matches(address: str) -> list[str]:
    """Return the files that an address without braces matches; an address of a file matches itself."""
    files, path = _store(address)
    pattern = re.search(r"[*?\[]", path) is not None and not files.exists(path)
    if not pattern and (_SHARD.search(path) or not files.isdir(path)):
        return [address]
    paths = files.glob(path) if pattern else [p for p in files.ls(path, detail=False) if _SHARD.search(p)]
    if not paths:
        raise UserError(
            f"images: no shards match {address}" if pattern else f"images: no tar files in the folder {address}"
        )
    words = {word for path in paths for word in re.split(r"[^a-z]+", path.rpartition("/")[2].lower())}
    parts = {PART_OF[word] for word in words if word in PART_OF}
    if not pattern and "train" in parts and len(parts) > 1:
        raise UserError(
            f"images: the folder {address} holds shards for training and for testing: give one kind, for example "
            f"webdataset:{address.rstrip('/')}/train-*.tar"
        )
    is_plain = "://" not in address
    return sorted(path if is_plain else files.unstrip_protocol(path) for path in paths)


@dataclass(frozen=True)
class RangedFile:
    """A file whose ranges are read. It keeps nothing open, so it can be pickled and used after a fork."""

    address: str  # a path, or an address that fsspec opens
    size: int  # bytes
    # The file's place and a state that changes with its contents: the time of change on disk, elsewhere the store's
    # ETag or time of change, or else a hash of the first MiB.
    identity: str
    path: str | None = None  # its absolute path if it is on disk

    @classmethod
    def find(cls, address: str) -> "RangedFile":
        """Look up a file. Raises any exception of its store; OSError on disk."""
        from fsspec.implementations.local import LocalFileSystem

        files, path = _store(address)
        if isinstance(files, LocalFileSystem):
            absolute = Path(path).absolute()
            state = absolute.stat()
            identity = f"{absolute}\0{state.st_size}\0{state.st_mtime_ns}"
            return cls(address, state.st_size, identity, str(absolute))
        info = files.info(path)
        size = info.get("size")
        if size is None:
            with files.open(path, "rb") as file:
                size = file.seek(0, 2)
        stamps = [f"{name} {info[name]}" for name in _STAMPS if info.get(name)]
        if not stamps:
            stamps = [hashlib.sha256(files.cat_file(path, 0, min(size, _HEAD))).hexdigest()]
        return cls(address, size, "\0".join((address, path, str(size), *stamps)))

    def open(self) -> AbstractContextManager[Any]:
        """Open the whole file for reading."""
        files, path = _store(self.address)
        return files.open(path, "rb")

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`. Raises OSError if there are fewer, and any exception of the store."""
        if self.path is not None:
            file = _opened(self.path, self.identity)
            content = os.pread(file.fileno(), size, offset)  # has no position, so threads may share the file
        else:
            files, path = _store(self.address)
            content = files.cat_file(path, offset, offset + size)
        if len(content) != size:
            raise OSError(f"{len(content)} bytes came back, not {size}: it has changed, or its server sends no ranges")
        return content


def _store(address: str) -> tuple[Any, str]:
    """Return the store of an address and the path in it. fsspec keeps one store per process."""
    if address.startswith(("http://", "https://")):
        require_extra("webdataset", address)
    from fsspec.core import url_to_fs

    return url_to_fs(address)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str, identity: str) -> BinaryIO:
    """Return the open file of a path; `identity` distinguishes files that replaced each other.

    A file that leaves the cache is closed when its last reference ends, so never while a thread reads it.
    """
    return open(path, "rb", buffering=0)  # noqa: PTH123
