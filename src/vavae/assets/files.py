"""Find the cache, and read and write the small records in it."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from vavae.errors import UserError
from vavae.io.files import read_json_object, written_whole

R = TypeVar("R")


def cache_folder() -> Path:
    """Return `$VAVAE_CACHE`, else `$XDG_CACHE_HOME/vavae`, else `~/.cache/vavae`."""
    chosen = os.environ.get("VAVAE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vavae"


def is_offline() -> bool:
    """Return whether `VAVAE_OFFLINE` forbids fetching (set, and not 0)."""
    return os.environ.get("VAVAE_OFFLINE", "0") not in ("", "0")


def read_record(path: Path, kind: type[R]) -> R | None:
    """Return a dataclass with the hashes of `files` from a JSON file; None if the file is missing or damaged."""
    try:
        values = read_json_object(path)
        return kind(**values) if isinstance(values.get("files"), dict) else None
    except (FileNotFoundError, NotADirectoryError, UserError, TypeError):
        return None


def write_record(path: Path, record: Any) -> None:
    """Write a dataclass as a JSON file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
