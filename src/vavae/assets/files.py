"""Where the cache is, and small operations on its files."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$VAVAE_CACHE`, else `$XDG_CACHE_HOME/vavae`, else `~/.cache/vavae`."""
    chosen = os.environ.get("VAVAE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vavae"


def is_offline() -> bool:
    """Whether `VAVAE_OFFLINE` forbids fetching (set, and not 0)."""
    return os.environ.get("VAVAE_OFFLINE", "0") not in ("", "0")


def write_text_whole(path: Path, text: str) -> None:
    """Write a small file whole or not at all; the caller sees to it that nobody else writes it."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
