"""A stop that is asked for (Ctrl-C, SIGTERM) ends a run between two steps, with its state saved."""

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
    """Tells the first signal to stop from a second one, and from torchrun's copy of the first."""

    def __init__(self) -> None:
        self._first: float | None = None

    def second(self, number: int) -> bool:
        """Whether a signal that came just now is one more than the first."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
            return False
        copied = number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ
        return not copied or now - self._first > _ECHO


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
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once, unless it is torchrun's copy.

    Outside the main thread signals cannot be caught, and the request stays false.

    Raises:
        KeyboardInterrupt: When the block has ended and nobody acted on the request: it came with the last step, and
            what follows the block must not go on as if nothing had been said.
    """
    request, came = StopRequest(), _Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        if came.second(number):
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
    """Within the block a second SIGINT or SIGTERM ends the process, wherever it waits, after some seconds at most.

    For processes that wait for each other: no handler in Python runs while one of them waits in C++. What runs at once
    is the interpreter's own, which tells a thread here of every signal. After an error the thread goes on, as the way
    out may wait as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tells = socket.socketpair()
    tells.setblocking(False)
    former = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(told, tells), name="second signal", daemon=True).start()
    yield
    signal.set_wakeup_fd(former)
    tells.shutdown(socket.SHUT_WR)


def _end_at_second(told: socket.socket, tells: socket.socket) -> None:
    """Read the signals that come until there are two, or no more can come; both ends are kept open meanwhile."""
    with told, tells:
        came = _Signals()
        while numbers := told.recv(64):
            if sum(came.second(number) for number in numbers if number in _STOPS):
                time.sleep(_GRACE)
                os.write(2, b"vavae: ended at once by a second signal; what was finished is kept\n")
                os._exit(1)
