"""Ranges of large files, on disk or at any address that fsspec reads, for any number of threads and processes."""

import functools
import hashlib
import itertools
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vavae.errors import UserError, as_user_error

# Files on disk kept open by this process; far below any limit, and most reads of a set of that many shards find
# theirs open.
_OPEN_FILES = 64
# What stores tell of a file that changes with its contents.
_STAMPS = (
    *("ETag", "etag", "Content-MD5", "md5Hash", "content_md5", "blob_id"),
    *("Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created"),
)
# So much of a file's beginning stands for it where its store tells nothing but its size.
_HEAD = 2**20

# Files that a folder of shards is searched for; the compressed ones, which cannot be read, so that they are refused.
_SHARD = re.compile(r"\.(tar|tgz|tbz2?|txz|tar\.\w+)$", re.IGNORECASE)


def expand_shards(spec: str) -> list[str]:
    """Return the addresses that patterns stand for, those of one pattern sorted.

    Args:
        spec: Patterns, joined by `::`: paths or what fsspec opens, with `{000..123}` for ranges, `{a,b}` for choices,
            `*`, `?` and `[0-9]` as in a shell, or folders of tar files.

    Raises:
        UserError: A pattern matches nothing, or its store cannot be read.
    """
    found: list[str] = []
    for part in spec.split("::"):
        if not part:
            raise UserError("images: webdataset: must be followed by shards, for example train-{000..123}.tar")
        for address in _braces(part):
            with naming_shard(address):
                found += _matches(address)
    return found


def naming_shard(address: str) -> AbstractContextManager[None]:
    """Turn whatever the store of a shard raises into one line that names the shard."""
    return as_user_error(
        lambda reason: f"images: shard {address} cannot be read ({reason})", f"index the shard {address}"
    )


def _braces(pattern: str) -> list[str]:
    """Expand `{000..123}` and `{a,b}`, as a shell does."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if braces is None:
        return [pattern]
    first, last, choices = braces.groups()
    if choices is not None:
        middle = choices.split(",")
    else:
        step = 1 if int(first) <= int(last) else -1
        width = max(len(n) for n in (first, last)) if re.search(r"\b0\d", braces[0]) else 0
        middle = [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]
    ends = _braces(pattern[braces.end() :])
    return [pattern[: braces.start()] + m + end for m, end in itertools.product(middle, ends)]


def _matches(address: str) -> list[str]:
    """Return the files that an address without braces stands for; a plain one stands for itself."""
    files, path = _store(address)
    pattern = re.search(r"[*?\[]", path) is not None and not files.exists(path)
    if not pattern and (_SHARD.search(path) or not files.isdir(path)):
        return [address]
    paths = files.glob(path) if pattern else [p for p in files.ls(path, detail=False) if _SHARD.search(p)]
    if not paths:
        raise UserError(
            f"images: no shards match {address}" if pattern else f"images: no tar files in the folder {address}"
        )
    is_plain = "://" not in address
    return sorted(path if is_plain else files.unstrip_protocol(path) for path in paths)


@dataclass(frozen=True)
class RangedFile:
    """A file whose ranges are read. It holds nothing open, so it can be pickled and used after a fork.

    Attributes:
        address: A path, or what fsspec opens.
        size: Bytes.
        identity: Where the file lies, wherever the address is read from, and what changes when its contents do:
            the time of change on disk, and what the store tells elsewhere (ETag, time of change, or else a hash of
            the first MiB).
        path: Its absolute path if it is on disk.
    """

    address: str
    size: int
    identity: str
    path: str | None = None

    @classmethod
    def find(cls, address: str) -> "RangedFile":
        """Look a file up. Raises whatever its store raises; OSError on disk."""
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
        as_user_error = [f"{name} {info[name]}" for name in _STAMPS if info.get(name)]
        if not as_user_error:
            as_user_error = [hashlib.sha256(files.cat_file(path, 0, min(size, _HEAD))).hexdigest()]
        return cls(address, size, "\0".join((address, path, str(size), *as_user_error)))

    def open(self) -> AbstractContextManager[Any]:
        """The whole file, to read from its beginning."""
        files, path = _store(self.address)
        return files.open(path, "rb")

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises OSError if there are fewer, and whatever the store raises."""
        if self.path is not None:
            content = _descriptor(self.path, self.identity).read(offset, size)
        else:
            files, path = _store(self.address)
            content = files.cat_file(path, offset, offset + size)
        if len(content) != size:
            raise OSError(f"{len(content)} bytes came back, not {size}: it has changed, or its server sends no ranges")
        return content


def _store(address: str) -> tuple[Any, str]:
    """What reads an address, and the path in there. Asked for anew each time: fsspec keeps one store per process."""
    from fsspec.core import url_to_fs

    return url_to_fs(address)


class _Descriptor:
    """An open file without a position, closed when nobody refers to it: never under a thread that reads."""

    def __init__(self, path: str) -> None:
        self._number = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._number, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _descriptor(path: str, identity: str) -> _Descriptor:
    """The open file of a path; `identity` tells a file from another that took its place."""
    return _Descriptor(path)
