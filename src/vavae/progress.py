"""Progress of long steps: a bar in a terminal, plain lines elsewhere.

with track("encoding", total=5000, unit="images") as bar:
    for batch in batches:
        ...
        bar.advance(len(batch), loss=0.31)
"""

import sys
import time
from collections.abc import Iterator
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

    def __init__(self, description: str, total: int, unit: str, start: int = 0) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = start
        self._start = start
        self._began = time.monotonic()

    @property
    def rate(self) -> float:
        """Units per second since the start; 0 at the start."""
        elapsed = time.monotonic() - self._began
        return (self.done - self._start) / elapsed if elapsed > 0 else 0.0

    def advance(self, amount: int = 1, **numbers: float) -> None:
        """Count `amount` more units as done, and show `numbers`, for example a loss, after the bar."""
        self.done += amount
        self._show(" ".join(f"{name} {value:.4g}" for name, value in numbers.items()))

    def _show(self, numbers: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Show the final state."""


class _RichBar(Bar):
    def __init__(self, description: str, total: int, unit: str, start: int, progress: Progress) -> None:
        super().__init__(description, total, unit, start)
        self._progress = progress
        self._task = progress.add_task(description, total=total, completed=start, rate="", numbers="")

    def _show(self, numbers: str) -> None:
        rate = f"{self.rate:.1f} {self.unit}/s"
        self._progress.update(self._task, completed=self.done, rate=rate, numbers=numbers)


class _PlainBar(Bar):
    def __init__(
        self, description: str, total: int, unit: str, start: int, stream: TextIO, every_seconds: float
    ) -> None:
        super().__init__(description, total, unit, start)
        self._stream = stream
        self._every = every_seconds
        self._shown_at = time.monotonic()
        self._shown_done = -1
        self._numbers = ""

    def _show(self, numbers: str) -> None:
        self._numbers = numbers
        if time.monotonic() - self._shown_at >= self._every:
            self._write()

    def _write(self) -> None:
        self._shown_at = time.monotonic()
        self._shown_done = self.done
        rate = self.rate
        left = (
            f", {format_duration((self.total - self.done) / rate)} left" if rate > 0 and self.done < self.total else ""
        )
        numbers = f"  {self._numbers}" if self._numbers else ""
        line = f"{self.description}: {self.done}/{self.total} {self.unit} ({rate:.1f}/s{left}){numbers}"
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        if self._shown_done != self.done:
            self._write()


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
    if stream.isatty():
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]} {task.fields[numbers]}"),
        )
        with Progress(*columns, console=Console(file=stream)) as progress:
            yield _RichBar(description, total, unit, start, progress)
        return
    bar = _PlainBar(description, total, unit, start, stream, every_seconds)
    try:
        yield bar
    finally:
        bar.close()
