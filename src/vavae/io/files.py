"""Write files completely or not at all, name them in errors, read JSON, and compare hashes."""

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vavae.errors import DISK_FAULTS, UserError, fault_number, one_line

# Marks a folder that is being written, so that the files which a kill leaves do not count as complete.
UNFINISHED = ".unfinished"
# Text of the mark in a folder that was empty before: this toolkit wrote all files in it.
_ALL_OURS = "written by a call that did not end\n"
_DRAFT = re.compile(r"\..+\.[0-9a-f]+\.tmp")


def user_path(text: str | Path, message: str = "{}: {}") -> Path:
    """Return a path that the user gives, with `~` expanded; it need not exist.

    Args:
        text: The path.
        message: Message of the error, with places for path and reason.

    Raises:
        UserError: The user does not exist, the path is too long, or access is denied.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        shown = str(text) if len(str(text)) <= 100 else f"{str(text)[:100]}… ({len(str(text)):,} characters)"
        raise UserError(message.format(shown, getattr(error, "strerror", None) or one_line(error))) from error
    return path


def sha256_file(*paths: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes, or of several files' joined in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def git_blob_sha1(path: Path) -> str:
    """Return the hash by which git, and with it the hub, names a small file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def check_hash(path: Path, expected: object, remedy: str, of: Callable[[Path], str] = sha256_file) -> None:
    """Compare a file with the hash that was recorded; a process hashes a file once as long as it does not change.

    Args:
        path: The file.
        expected: Its hash in hexadecimal.
        remedy: What to do if they differ.
        of: The hash function.

    Raises:
        UserError: The file is missing, cannot be read, or differs.
    """
    try:
        state = path.stat()
        found = _hash_in_state(path.resolve(), of, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {remedy}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if found != expected:
        raise UserError(f"{path}: damaged: its hash is not the recorded one; {remedy}")


@functools.cache
def _hash_in_state(path: Path, of: Callable[[Path], str], *state: int) -> str:
    return of(path)


def parse_json(text: str) -> Any:
    """Return the value of a text in JSON; a key may occur only once in an object.

    Raises:
        ValueError: The text is not JSON, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_with_unique_keys)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a file of JSON.

    Raises:
        UserError: The file has another content; the message names it.
        OSError: The file cannot be read.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of UTF-8 too
        raise UserError(f"{path} is damaged: not JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: not a JSON object")
    return found


@contextlib.contextmanager
def naming(path: Path, *aliases: Path) -> Iterator[None]:
    """Raise a fault of the system in the block as an OSError that names `path`.

    Args:
        path: The file that is written or read.
        aliases: Names of it that the user does not know. An error that names any other file stays as it is.
    """
    try:
        yield
    except Exception as error:
        number, named = fault_number(error), getattr(error, "filename", None)
        if number is None or named not in (None, *map(str, aliases)):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextlib.contextmanager
def chosen(key: str, folder: Path) -> Iterator[None]:
    """Raise UserError if a folder that the user chose with the option `key` cannot be written.

    Raises:
        OSError: A fault of the disk, for example no space; it names the folder.
    """
    try:
        with naming(folder):
            yield
    except OSError as error:
        if error.errno is None or error.errno in DISK_FAULTS:
            raise
        raise UserError(f"{key}: {folder} cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the block succeeds, and is removed otherwise.

    The bytes are on the disk before the name appears. The mode follows the user's mask: some libraries would give
    access to the owner only. The folder is made if it is missing.

    Raises:
        OSError: A fault of the disk, in the block too; it names `path`.
    """
    # A random name: processes of two machines may share a folder and have the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with naming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any], indent: int = 2) -> None:
    """Write a JSON file, completely or not at all, indented, keys in the order given."""
    write_text(path, json.dumps(values, indent=indent) + "\n")


def drop_drafts(folder: Path, name: str = "*") -> None:
    """Remove drafts of `written_whole` that killed processes left.

    Args:
        folder: The folder, in which no other process may be writing.
        name: Pattern of the names of the files that the drafts were for.
    """
    for path in folder.glob(f".{name}.*.tmp"):
        if _DRAFT.fullmatch(path.name):
            path.unlink(missing_ok=True)


class OccupiedError(UserError):
    """Another process is working in a run folder."""


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder alone for the block, and remove what a killed process left half written in it.

    Raises:
        OccupiedError: Another process holds it.
        UserError: It cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        with chosen("output", folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout as error:
        raise OccupiedError(
            f"{folder}: another process is working in this run folder (if no process is running on any machine, remove "
            f"{lock.lock_file})"
        ) from error
    try:
        drop_drafts(folder)
        yield
    finally:
        lock.release()


def save_torch(content: Any, path: Path) -> None:
    """Write a file with `torch.save`, completely or not at all."""
    import torch

    # To a file, not to a path: for a path, torch does not report the errno.
    with written_whole(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def is_free(folder: Path) -> bool:
    """Return whether `whole_folder` may write to a path: it is missing, empty, or left by a killed `whole_folder`."""
    mark = folder / UNFINISHED
    if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == _ALL_OURS:
        return True
    return not folder.exists() or (folder.is_dir() and all(path == mark for path in folder.iterdir()))


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[None]:
    """Fill an empty folder in the block; files that a killed block left in it are removed first.

    The folder has a mark until the block ends. If the block fails, its files are removed.

    Raises:
        UserError: The folder has other files.
        OSError: A fault of the disk.
    """
    if not is_free(folder):
        raise UserError(f"{folder} is not empty")
    was_there = folder.exists() and not (folder / UNFINISHED).exists()
    mark = folder / UNFINISHED
    with naming(folder, mark):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            mark.write_text(_ALL_OURS, encoding="utf-8")
            _empty(folder)
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                _empty(folder)
                mark.unlink(missing_ok=True)
                if not was_there:
                    folder.rmdir()
            raise
        mark.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    """Remove all files but the mark."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != UNFINISHED:
            path.unlink()


def check_not_foreign(folder: Path, ours: Callable[[Path], bool], what: str, beginnings: Collection[str] = ()) -> None:
    """Check that a folder has no foreign files, which could be replaced or be taken for results later.

    Hidden files do not count: locks and half-written files.

    Args:
        folder: The folder, which may be missing.
        ours: Returns whether this command may write to a folder that is not empty.
        what: The content that such a folder has, for the message.
        beginnings: Names of files of a call that was stopped before it made anything.

    Raises:
        UserError: It has other files.
    """
    names = {path.name for path in folder.glob("[!.]*")} - set(beginnings)
    if names and not ours(folder):
        raise UserError(f"{folder} has {min(names)}, but no {what}: choose another --output, or an empty folder")
