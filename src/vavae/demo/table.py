"""The table of all numbers: one line per metric, one column per run, the protocol of each number below it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vavae.demo.contents import MetricRow
from vavae.report.glossary import Better, metric_meaning
from vavae.report.numbers import places, plain, words


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
        name: The metric.
        variant: What sets it apart from other lines of the same name; "" where it is the only one.
        better: Which direction is better.
        meaning: One sentence; "" where there is none, or where an earlier line of the same name says it.
        cells: One per column, in the order of columns; a number of no run is a single cell.
        decimals: Digits after the point for all numbers of the line, or None where they are too unlike.
        difference: First column minus second where there are exactly two finite numbers.
        ratio: First column divided by second where both are positive.
        gain: Whether that difference is for the better; None where there is no such thing.
        protocol: (key, value) as text, common to the line's numbers.
        differing: (run, ((key, value), ...)) for what is not common.
    """

    name: str
    variant: str
    better: Better
    meaning: str
    cells: tuple[Cell, ...]
    decimals: int | None
    difference: float | None
    ratio: float | None
    gain: bool | None
    protocol: tuple[tuple[str, str], ...]
    differing: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def metric_lines(rows: Sequence[MetricRow], runs: Sequence[str]) -> tuple[tuple[str, ...], tuple[MetricLine, ...]]:
    """Rows gathered into lines: rows of equal name share a line, as long as their runs differ.

    Returns:
        Names of the columns (the report's runs that have numbers, then other names found), and the lines.
    """
    named = [row.run for row in rows if row.run]
    columns = tuple(run for run in runs if run in named) + tuple(r for r in dict.fromkeys(named) if r not in runs)
    groups: dict[tuple[str, bool, int], list[MetricRow]] = {}
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        turn = seen[row.name, row.run] = seen.get((row.name, row.run), -1) + 1
        groups.setdefault((row.name, bool(row.run), turn), []).append(row)
    ordered = sorted(groups, key=lambda group: [row.name for row in rows].index(group[0]))
    lines = [_line(groups[key], columns, _siblings(groups, key)) for key in ordered]
    told: set[tuple[str, str]] = set()
    for place, line in enumerate(lines):
        if (line.name, line.meaning) in told:
            lines[place] = replace(line, meaning="")
        told.add((line.name, line.meaning))
    return columns, tuple(lines)


def _siblings(groups: Mapping[tuple[str, bool, int], list[MetricRow]], key: tuple[str, bool, int]) -> list[MetricRow]:
    return [rows[0] for other, rows in groups.items() if other[0] == key[0]]


def _line(rows: Sequence[MetricRow], columns: Sequence[str], siblings: Sequence[MetricRow]) -> MetricLine:
    first = rows[0]
    better = first.better
    best = _best([row.value for row in rows], better)
    by_run = {row.run: Cell(row.run, row.value, best is not None and row.value == best) for row in rows}
    cells = (by_run[""],) if not first.run else tuple(by_run.get(column, Cell(column, None)) for column in columns)
    finite = [cell.value for cell in cells if cell.value is not None and math.isfinite(cell.value)]
    difference, ratio, gain = None, None, None
    if len(cells) == len(finite) == 2:
        difference = finite[0] - finite[1]
        if min(finite) > 0:
            ratio = finite[0] / finite[1]
        if better is not None and difference != 0:
            gain = (difference > 0) == (better == "higher")
    protocols = [{str(key): plain(value) for key, value in row.protocol.items()} for row in rows]
    common = {key: text for key, text in protocols[0].items() if all(p.get(key) == text for p in protocols)}
    differing = tuple(
        (row.run, tuple((words(key), text) for key, text in protocol.items() if key not in common))
        for row, protocol in zip(rows, protocols, strict=True)
    )
    return MetricLine(
        name=first.name,
        variant=_variant(first, siblings),
        better=better,
        meaning=metric_meaning(first.name) if first.explanation is None else first.explanation,
        cells=cells,
        decimals=_decimals(finite),
        difference=difference,
        ratio=ratio,
        gain=gain,
        protocol=tuple((words(key), text) for key, text in common.items()),
        differing=tuple((run, items) for run, items in differing if items),
    )


def _variant(row: MetricRow, siblings: Sequence[MetricRow]) -> str:
    """The settings in which lines of the same name differ, as text."""
    keys = dict.fromkeys(key for sibling in siblings for key in sibling.protocol)
    telling = [
        key for key in keys if len({plain(s.protocol[key]) if key in s.protocol else None for s in siblings}) > 1
    ]
    return ", ".join(f"{words(key)} {plain(row.protocol[key])}" for key in telling if key in row.protocol)


def _decimals(values: Sequence[float | int]) -> int | None:
    """Places that suit the largest value, if the smallest still shows two digits with them."""
    sizes = [abs(value) for value in values if value != 0]
    if not sizes or any(isinstance(value, int) for value in values):
        return None
    decimals = places(max(sizes))
    return decimals if min(sizes) >= 10 ** (1 - decimals) else None


def _best(values: Sequence[float | int | None], better: Better) -> float | int | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if better is None or len(set(finite)) < 2:
        return None
    return max(finite) if better == "higher" else min(finite)


@dataclass(frozen=True)
class Dumbbell:
    """A line's ratio on the axis that all lines share.

    Attributes:
        percent: Where the first column's dot is, from 0 to 100; the second column's is at 50.
        clipped: Whether the ratio is beyond the axis.
    """

    percent: float
    clipped: bool


@dataclass(frozen=True)
class RatioAxis:
    """A logarithmic axis from 1 / extent to extent."""

    extent: float

    def place(self, ratio: float) -> Dumbbell:
        """Where a ratio is on the axis."""
        position = math.log(ratio) / math.log(self.extent)
        return Dumbbell(50 + 50 * max(-1.0, min(1.0, position)), abs(position) > 1)


def ratio_axis(lines: Sequence[MetricLine]) -> RatioAxis | None:
    """The shortest round axis that holds three quarters of the lines' ratios; None without ratios.

    A single metric that changes by much would otherwise squeeze all others into the middle.
    """
    sizes = sorted(max(line.ratio, 1 / line.ratio) for line in lines if line.ratio is not None)
    if not sizes:
        return None
    wanted = sizes[math.ceil(0.75 * len(sizes)) - 1]
    return RatioAxis(next((extent for extent in (1.1, 1.25, 1.5, 2.0) if wanted <= extent), 4.0))
