"""SIGINT (Ctrl-C) and SIGTERM: both interrupt a command; training stops between two steps, with its state saved."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM)
# Seconds that a second signal leaves to the way out.
_GRACE = 5.0
# Seconds within which torchrun passes on to its processes a signal that a scheduler or a terminal gave to all of them.
_ECHO = 10.0


class _Signals:
    """Recognize torchrun's copy of a signal that this process got already."""

    def __init__(self) -> None:
        self._first: float | None = None

    def copied(self, number: int) -> bool:
        """Whether a signal that came just now is torchrun's copy of the first."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
            return False
        return number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ and now - self._first <= _ECHO


class StopRequest:
    """Whether a stop was asked for; false until then."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def _handled_by(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Give SIGINT and SIGTERM to `handle` for the block; outside the main thread none arrive."""
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
    came = _Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        if not came.copied(number):
            raise KeyboardInterrupt

    with _handled_by(handle):
        yield


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once, unless it is torchrun's copy.

    Outside the main thread signals cannot be caught, and the request stays false.

    Raises:
        KeyboardInterrupt: The block ended and the request was not acted on, since it came with the last step.
    """
    request, came = StopRequest(), _Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        if came.copied(number):
            return
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    with _handled_by(handle):
        yield request
    if request.asked:
        raise KeyboardInterrupt("stopped; what is finished is saved, and the same command goes on")


@contextmanager
def signals_later() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block has ended, and deliver them then.

    For short work in which torch calls Python out of C++, such as a dispatch mode: an exception that comes up there
    aborts the process.
    """
    came: list[int] = []
    try:
        with _handled_by(lambda number, _: came.append(number)):
            yield
    finally:
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


@contextmanager
def ended_by_second_signal() -> Iterator[None]:
    """End the process some seconds after a second SIGINT or SIGTERM in the block, wherever it waits.

    Processes that wait for each other wait in C++, where no handler in Python runs. The interpreter's own handler runs
    at once and writes each signal to a socket, which a thread reads. After an error the thread stays, since the way
    out may wait as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(reader, writer), name="second signal", daemon=True).start()
    yield
    signal.set_wakeup_fd(former)
    writer.shutdown(socket.SHUT_WR)


def _end_at_second(reader: socket.socket, writer: socket.socket) -> None:
    """Read signals until there are two, or until the writer is shut down; both ends stay open meanwhile."""
    with reader, writer:
        came, count = _Signals(), 0
        while numbers := reader.recv(64):
            count += sum(number in _STOPS and not came.copied(number) for number in numbers)
            if count > 1:
                time.sleep(_GRACE)
                os.write(2, b"vavae: ended at once by a second signal; what was finished is kept\n")
                os._exit(1)
