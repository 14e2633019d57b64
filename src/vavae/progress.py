"""Progress of long steps: a bar in a terminal, plain lines elsewhere.

with track("encoding", total=5000, unit="images") as bar:
    for batch in batches:
        ...
        bar.advance(len(batch), loss=0.31)
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def format_duration(seconds: float) -> str:
    """Return seconds as text: `75` as `1:15`, `3700` as `1:01:40`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Bar:
    """Count the work done, and show it with its rate, the time left and the latest numbers."""

    def __init__(self, description: str, total: int, unit: str, start: int, show: Callable[["Bar"], None]) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done, self.numbers = start, ""
        self._start, self._show = start, show
        self._began = time.monotonic()

    @property
    def rate(self) -> float:
        """Units per second since the start; 0 at the start."""
        elapsed = time.monotonic() - self._began
        return (self.done - self._start) / elapsed if elapsed > 0 else 0.0

    def advance(self, amount: int = 1, **numbers: float) -> None:
        """Count `amount` more units as done, and show `numbers`, for example a loss, after the bar."""
        self.done += amount
        self.numbers = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._show(self)


class _Lines:
    """Print a bar as a line at most every few seconds."""

    def __init__(self, stream: TextIO, every_seconds: float) -> None:
        self.stream, self.every_seconds = stream, every_seconds
        self.printed_at, self.printed = time.monotonic(), -1

    def show(self, bar: Bar, last: bool = False) -> None:
        if bar.done == self.printed or not (last or time.monotonic() - self.printed_at >= self.every_seconds):
            return
        self.printed_at, self.printed, rate = time.monotonic(), bar.done, bar.rate
        left = f", {format_duration((bar.total - bar.done) / rate)} left" if rate > 0 and bar.done < bar.total else ""
        numbers = f"  {bar.numbers}" if bar.numbers else ""
        line = f"{bar.description}: {bar.done}/{bar.total} {bar.unit} ({rate:.1f}/s{left}){numbers}"
        print(line, file=self.stream, flush=True)


@contextmanager
def track(
    description: str,
    total: int,
    unit: str = "steps",
    start: int = 0,
    stream: TextIO | None = None,
    every_seconds: float = 10.0,
) -> Iterator[Bar]:
    """Show the progress of `total` units of work, `start` of which an earlier run has done.

    In a terminal it is one bar with rate and time left; elsewhere a plain line every `every_seconds` and one at the
    end. `stream` defaults to standard error.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        lines = _Lines(stream, every_seconds)
        bar = Bar(description, total, unit, start, lines.show)
        try:
            yield bar
        finally:
            lines.show(bar, last=True)
        return
    texts = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[rate]} {task.fields[numbers]}"))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn())
    with Progress(*columns, MofNCompleteColumn(), *texts, console=Console(file=stream)) as progress:
        task = progress.add_task(description, total=total, completed=start, rate="", numbers="")

        def show(bar: Bar) -> None:
            progress.update(task, completed=bar.done, rate=f"{bar.rate:.1f} {unit}/s", numbers=bar.numbers)

        yield Bar(description, total, unit, start, show)
