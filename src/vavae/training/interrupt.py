"""A stop that is asked for (Ctrl-C, SIGTERM) ends a run between two steps, with its state saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once.

    Outside the main thread signals cannot be caught, and the request stays false.

    Raises:
        KeyboardInterrupt: When the block has ended and nobody acted on the request: it came with the last step, and
            what follows the block must not go on as if nothing had been said.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
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
