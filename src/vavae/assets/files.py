"""Find the cache, and read the records in it."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from vavae.errors import UserError
from vavae.io.files import read_json_object

R = TypeVar("R")


def cache_folder() -> Path:
    """Return `$VAVAE_CACHE`, else `$XDG_CACHE_HOME/vavae`, else `~/.cache/vavae`."""
    if chosen := os.environ.get("VAVAE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vavae"


def is_offline() -> bool:
    """Return whether `VAVAE_OFFLINE` forbids fetching (set, and not 0)."""
    return os.environ.get("VAVAE_OFFLINE", "0") not in ("", "0")


def read_record(path: Path, kind: type[R]) -> R | None:
    """Return a dataclass with the hashes of `files` from a JSON file; None if the file is missing or damaged."""
    known: Any = kind
    try:
        values = read_json_object(path)
        found = kind(**{each.name: values[each.name] for each in fields(known) if each.name in values})
    except (FileNotFoundError, NotADirectoryError, UserError, TypeError):
        return None
    return found if isinstance(values.get("files"), dict) else None
