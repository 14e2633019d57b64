"""Files written whole or not at all."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vavae.errors import UserError, one_line


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a file of JSON.

    Raises:
        UserError: It holds something else; the message names it.
        OSError: It cannot be got at.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # of UTF-8 too
        raise UserError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no object of JSON")
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
