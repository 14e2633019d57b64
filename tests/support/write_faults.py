"""The points at which a command writes, and faults at one of them: a full disk, or SIGKILL.

A point is an fsync, or a rename, a new folder or a file that Python opens for writing in a folder. Python's audit hooks
report all but the first, from every library and thread.
"""

import contextlib
import errno
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_FSYNC = os.fsync
_watching: "Callable[[str, str], None] | None" = None  # hooks stay for good, so one hook serves all blocks


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if _watching is not None:
        if event == "open" and isinstance(given[0], str | bytes | os.PathLike):
            if given[2] & (os.O_WRONLY | os.O_RDWR):
                _watching(event, os.fsdecode(given[0]))
        elif event == "os.rename" or (event == "os.mkdir" and not Path(given[0]).exists()):
            _watching(event, os.fsdecode(given[0]))


def _fsync(descriptor: int) -> None:
    if _watching is not None:
        _watching("fsync", "")
    _FSYNC(descriptor)


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched(folder: Path, act: Callable[[int, str, str], None]) -> Iterator[list[str]]:
    """Call `act(number, event, path)` before each write below `folder`, from number 1 on; yield the list of points."""
    global _watching
    points: list[str] = []
    lock = threading.RLock()

    def reach(event: str, path: str) -> None:
        if event == "fsync" or Path(path).is_relative_to(folder):
            with lock:
                points.append(f"{event} {path.removeprefix(str(folder))}".strip())
                act(len(points), event, path)

    os.fsync, _watching = _fsync, reach
    try:
        yield points
    finally:
        os.fsync, _watching = _FSYNC, None


def killed_at(number: int) -> Callable[[int, str, str], None]:
    """Kill this process before its write of that number."""

    def act(reached: int, event: str, path: str) -> None:
        if reached == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


@contextlib.contextmanager
def full_from(folder: Path, number: int) -> Iterator[list[str]]:
    """Let the disk be full from one write on: names, folders and fsync fail, and files end after 16 bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)

    def act(reached: int, event: str, path: str) -> None:
        if reached == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, former[1]))
        if reached >= number and event != "open":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    with watched(folder, act) as points:
        try:
            yield points
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
