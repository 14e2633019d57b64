"""Whether latents on disk are what was written: hashed once, and known by size and times from then on."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from vavae.data.loader import loaded_ahead
from vavae.data.readable import read_cache, write_cache
from vavae.errors import UserError
from vavae.io.files import sha256_file
from vavae.progress import track

# Beside the latents: file name -> sha256 and `file_state` of when it had that hash.
CHECKED_NAME = "checked.json"
# Fewer bytes are hashed in a second or so, and show no bar.
_WORTH_SHOWING = 1e9
# Files hashed at once.
_THREADS = 4

_Checked = dict[str, list[str | int]]


def file_state(path: Path) -> list[int]:
    """Size and times of change in ns; the second one (ctime) tells a copy that kept the first.

    Raises:
        UserError: There is no such file.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; encode again") from error
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def file_sha256(path: Path) -> str:
    """A file's sha256 in hex.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def remember_checked(folder: Path, hashes: Mapping[str, str], states: Mapping[str, list[int]]) -> None:
    """Note that files had these hashes when they were in these states. Where that fails, they are hashed again."""
    write_cache(folder / CHECKED_NAME, {name: [hashes[name], *state] for name, state in states.items()})


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Compare files with their sha256, but for those that had it before and did not change since.

    A folder that cannot be written remembers nothing, and is hashed each time.

    Args:
        folder: Where the files lie.
        hashes: File name -> sha256.

    Raises:
        UserError: A file is missing or damaged; the message names it.
    """
    former = read_cache(folder / CHECKED_NAME)
    checked: _Checked = former if isinstance(former, dict) else {}
    # Taken before a file is read, so that a change meanwhile shows.
    states: _Checked = {name: [sha256, *file_state(folder / name)] for name, sha256 in hashes.items()}
    unknown = [name for name, state in states.items() if checked.get(name) != state]
    if not unknown:
        return
    size = sum(int(states[name][1]) for name in unknown)
    try:
        with track("checking latents", len(unknown), "files") if size >= _WORTH_SHOWING else nullcontext() as bar:
            for name, found in loaded_ahead(unknown, lambda name: file_sha256(folder / name), _THREADS):
                if found != hashes[name]:
                    raise UserError(f"{folder / name} is damaged: its sha256 is not the one noted; encode again")
                checked[name] = states[name]
                if bar is not None:
                    bar.advance()
    finally:
        write_cache(folder / CHECKED_NAME, checked)
