"""Files: written whole or not at all, read as JSON, compared with their sha256."""

import contextlib
import functools
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vavae.errors import UserError, one_line


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
        remedy: What to do where it differs.
        of: How it is hashed.

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
    """Return what a text in JSON holds; a key may stand only once in an object.

    Raises:
        ValueError: The text is not JSON, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a file of JSON.

    Raises:
        UserError: The file holds something else; the message names it.
        OSError: The file cannot be read.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of UTF-8 too
        raise UserError(f"{path} is damaged: not JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return found


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes otherwise.

    The bytes are on the disk before the name appears. The mode is what the user's mask grants: some libraries
    would leave their files to the owner alone.
    """
    # Drawn anew: processes of two machines or containers may have the same number, and one folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
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
