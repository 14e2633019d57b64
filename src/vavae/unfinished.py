"""Folders that are written file by file, and count as whole at the end only."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from vavae.errors import UserError

# Lies in a folder that is being written, so that what a kill leaves is not taken for the whole.
UNFINISHED = ".unfinished"
# In the mark of a folder that was empty before: nothing in it is anybody else's.
_ALL_OURS = "written by a call that did not end\n"


def is_free(folder: Path) -> bool:
    """Whether `whole_folder` may write to a path: nothing is there, an empty folder, or what such a block left."""
    mark = folder / UNFINISHED
    if mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == _ALL_OURS:
        return True
    return not folder.exists() or (folder.is_dir() and all(path == mark for path in folder.iterdir()))


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[None]:
    """Fill a folder in the block, from its beginning: what a killed one left there goes first.

    Until the block ends a mark lies in the folder. All that a failed block made vanishes again.

    Raises:
        UserError: The folder holds something else.
    """
    if not is_free(folder):
        raise UserError(f"{folder} is not empty")
    was_there = folder.exists() and not (folder / UNFINISHED).exists()
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / UNFINISHED
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
    """Remove all but the mark, which goes last."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != UNFINISHED:
            path.unlink()
