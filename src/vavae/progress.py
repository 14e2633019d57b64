"""Progress of long steps: a bar in a terminal or a notebook, plain lines elsewhere.

with track("encoding", total=5000, unit="images") as bar:
    for batch in batches:
        ...
        bar.advance(len(batch), loss=0.31)
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from html import escape
from typing import Any, TextIO

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

from vavae.report.numbers import duration


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

    def __str__(self) -> str:
        rate, missing = self.rate, self.total - self.done
        left = f", {duration(missing / rate)} left" if rate > 0 and missing > 0 else ""
        numbers = f"  {self.numbers}" if self.numbers else ""
        return f"{self.description}: {self.done}/{self.total} {self.unit} ({rate:.1f}/s{left}){numbers}"


class _Sparse:
    """Write a bar at most every few seconds."""

    def __init__(self, write: Callable[[Bar], None], every_seconds: float) -> None:
        self.write, self.every_seconds = write, every_seconds
        self.written_at, self.written = time.monotonic(), -1

    def show(self, bar: Bar, last: bool = False) -> None:
        if bar.done != self.written and (last or time.monotonic() - self.written_at >= self.every_seconds):
            self.written_at, self.written = time.monotonic(), bar.done
            self.write(bar)


def _written_in_notebook() -> Callable[[Bar], None]:
    """Return a function that shows a bar in the output of a notebook's cell, in one place; it needs no ipywidgets."""
    from IPython.display import HTML, display

    shown: list[Any] = []

    def write(bar: Bar) -> None:
        html = HTML(f'<progress value="{bar.done}" max="{bar.total}"></progress> {escape(str(bar))}')
        if shown:
            shown[0].update(html)
        else:
            shown.append(display(html, display_id=True))

    return write


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

    In a terminal and in a notebook it is one bar with rate and time left; elsewhere a plain line every `every_seconds`
    and one at the end. `stream` defaults to standard error, or to the output of the notebook's cell.
    """
    sparse = None
    if stream is None and Console().is_jupyter:
        sparse = _Sparse(_written_in_notebook(), 0.2)
    stream = stream or sys.stderr
    if sparse is None and not stream.isatty():
        sparse = _Sparse(partial(print, file=stream, flush=True), every_seconds)
    if sparse is not None:
        bar = Bar(description, total, unit, start, sparse.show)
        try:
            yield bar
        finally:
            sparse.show(bar, last=True)
        return
    texts = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[rate]} {task.fields[numbers]}"))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn())
    with Progress(*columns, MofNCompleteColumn(), *texts, console=Console(file=stream)) as progress:
        task = progress.add_task(description, total=total, completed=start, rate="", numbers="")

        def show(bar: Bar) -> None:
            progress.update(task, completed=bar.done, rate=f"{bar.rate:.1f} {unit}/s", numbers=bar.numbers)

        yield Bar(description, total, unit, start, show)
