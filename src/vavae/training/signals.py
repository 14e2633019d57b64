"""SIGINT (Ctrl-C) and SIGTERM interrupt a command; training stops between two steps and saves its state."""

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM)
# Seconds between a second signal and the end of a process that still waits.
_GRACE = 5.0
# A scheduler or a terminal signals torchrun and its processes; torchrun signals them once more within these seconds.
_ECHO = 10.0


class _Signals:
    """Recognize torchrun's copy of a signal that this process has received already."""

    def __init__(self) -> None:
        self._first: float | None = None

    def is_copy(self, number: int) -> bool:
        """Whether the signal that has just arrived is torchrun's copy of the first."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
            return False
        return number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ and now - self._first <= _ECHO


class StopRequest:
    """True once a stop was requested."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextmanager
def _handled_by(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM by `handle` in the block; outside the main thread, signals cannot be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handle) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block at SIGINT and at SIGTERM.

    SIGINT counts even if the process was started with SIGINT ignored, as a script's background jobs are.
    """
    received = _Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename == weakref.__file__:
            # Python ignores an exception in a callback of weakref, so the signal is sent again a little later.
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        elif not received.is_copy(number):
            raise KeyboardInterrupt

    with _handled_by(handle):
        yield


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once, unless it is torchrun's copy.

    Outside the main thread the request stays false.

    Raises:
        KeyboardInterrupt: A second signal came, or the block ended before it could act on the request.
    """
    request, received = StopRequest(), _Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        if received.is_copy(number):
            return
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True

    with _handled_by(handle):
        yield request
    if request.requested:
        raise KeyboardInterrupt("stopped; finished work is saved; run the same command to resume")


@contextmanager
def signals_later() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block has ended, and deliver each once then.

    For short work in which torch calls Python from C++, such as a dispatch mode: an exception there aborts the process.
    """
    held: list[int] = []
    try:
        with _handled_by(lambda number, _: held.append(number)):
            yield
    finally:
        for number in dict.fromkeys(held):
            signal.raise_signal(number)


@contextmanager
def ended_by_second_signal() -> Iterator[None]:
    """End the process some seconds after a second SIGINT or SIGTERM in the block, wherever it waits.

    Processes that wait for each other wait in C++, where Python runs no handler. The interpreter itself writes each
    signal to a pipe at once, and a thread reads it. After an error the thread stays, since the way out may wait too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(reader,), name="second signal", daemon=True).start()
    yield
    signal.set_wakeup_fd(former)
    os.close(writer)


def _end_at_second(reader: int) -> None:
    """Read signals until there are two, or until the pipe is closed."""
    received, count = _Signals(), 0
    with open(reader, "rb", buffering=0) as pipe:
        while numbers := pipe.read(64):
            count += sum(number in _STOPS and not received.is_copy(number) for number in numbers)
            if count > 1:
                time.sleep(_GRACE)
                os.write(2, b"vavae: ended at once by a second signal; finished work is saved\n")
                os._exit(1)
