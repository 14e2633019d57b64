"""The table of all numbers: one line per metric, one column per run, the protocol of each number below it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vavae.metrics import MetricRecord
from vavae.report.glossary import Better, metric_meaning
from vavae.report.numbers import places, plain, words

Row = tuple[str, MetricRecord]  # name of the run, "" for a number of no run, and the number
_BETTER: dict[bool | None, Better] = {True: "higher", False: "lower", None: None}


@dataclass(frozen=True)
class Cell:
    """One number of a line; `best` marks the better one of several."""

    run: str
    value: float | int | None
    best: bool = False


@dataclass(frozen=True)
class MetricLine:
    """A line of the table.

    Attributes:
        name: The metric, with its unit.
        better: Which direction is better.
        meaning: One sentence; "" if the glossary has none.
        cells: One per column, in the order of columns; a number of no run is a single cell.
        decimals: Digits after the point of all numbers of the line, or None where their sizes differ too much.
        difference: First column minus second where there are exactly two finite numbers.
        ratio: First column divided by second where both are positive.
        gain: Whether the difference is an improvement; None without a direction or a difference.
        protocol: (key, value) as text, common to the line's numbers.
        differing: (run, ((key, value), ...)) for the settings that are not common.
    """

    name: str
    better: Better
    meaning: str
    cells: tuple[Cell, ...]
    decimals: int | None
    difference: float | None
    ratio: float | None
    gain: bool | None
    protocol: tuple[tuple[str, str], ...]
    differing: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def metric_lines(rows: Sequence[Row], runs: Sequence[str]) -> tuple[MetricLine, ...]:
    """Gather rows into lines: numbers of equal name share a line.

    Args:
        rows: The numbers.
        runs: Names of the columns.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[1].name, []).append(row)
    return tuple(_line(group, runs) for group in groups.values())


def _line(rows: Sequence[Row], columns: Sequence[str]) -> MetricLine:
    run, first = rows[0]
    better = _BETTER[first.higher_is_better]
    best = _best([record.value for _, record in rows], better)
    by_run = {run: Cell(run, record.value, best is not None and record.value == best) for run, record in rows}
    cells = tuple(by_run.get(column, Cell(column, None)) for column in columns) if run else (by_run[""],)
    finite = [cell.value for cell in cells if cell.value is not None and math.isfinite(cell.value)]
    difference, ratio, gain = None, None, None
    if len(cells) == len(finite) == 2:
        difference = finite[0] - finite[1]
        if min(finite) > 0:
            ratio = finite[0] / finite[1]
        if better is not None and difference != 0:
            gain = (difference > 0) == (better == "higher")
    protocols = [{key: plain(value) for key, value in record.to_dict()["protocol"].items()} for _, record in rows]
    common = {key: text for key, text in protocols[0].items() if all(p.get(key) == text for p in protocols)}
    differing = tuple(
        (run, tuple((words(key), text) for key, text in protocol.items() if key not in common))
        for (run, _), protocol in zip(rows, protocols, strict=True)
    )
    return MetricLine(
        name=f"{first.name} ({first.unit})" if first.unit else first.name,
        better=better,
        meaning=metric_meaning(first.name),
        cells=cells,
        decimals=_decimals(finite),
        difference=difference,
        ratio=ratio,
        gain=gain,
        protocol=tuple((words(key), text) for key, text in common.items()),
        differing=tuple((run, items) for run, items in differing if items),
    )


def _decimals(values: Sequence[float | int]) -> int | None:
    """Return the places that suit the largest value, if the smallest still shows two digits with them."""
    sizes = [abs(value) for value in values if value != 0]
    if not sizes or any(isinstance(value, int) for value in values):
        return None
    decimals = places(max(sizes))
    return decimals if min(sizes) >= 10 ** (1 - decimals) else None


def _best(values: Sequence[float | int], better: Better) -> float | int | None:
    finite = [value for value in values if math.isfinite(value)]
    if better is None or len(set(finite)) < 2:
        return None
    return max(finite) if better == "higher" else min(finite)


@dataclass(frozen=True)
class Dumbbell:
    """A line's ratio on the axis that all lines share.

    Attributes:
        percent: Position of the first column's dot, from 0 to 100; the second column's is at 50.
        clipped: Whether the ratio is outside the axis.
    """

    percent: float
    clipped: bool


@dataclass(frozen=True)
class RatioAxis:
    """A logarithmic axis from 1 / extent to extent."""

    extent: float

    def place(self, ratio: float) -> Dumbbell:
        """Return the position of a ratio on the axis."""
        position = math.log(ratio) / math.log(self.extent)
        return Dumbbell(50 + 50 * max(-1.0, min(1.0, position)), abs(position) > 1)


def ratio_axis(lines: Sequence[MetricLine]) -> RatioAxis | None:
    """Return the shortest round axis that contains three quarters of the lines' ratios; None without ratios.

    A single metric with a large change would otherwise squeeze all others into the middle.
    """
    sizes = sorted(max(line.ratio, 1 / line.ratio) for line in lines if line.ratio is not None)
    if not sizes:
        return None
    wanted = sizes[math.ceil(0.75 * len(sizes)) - 1]
    return RatioAxis(next((extent for extent in (1.1, 1.25, 1.5, 2.0) if wanted <= extent), 4.0))
