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
class MetricLine:
    """A line of the table."""

    name: str  # the metric, with its unit
    better: Better  # which direction is better
    meaning: str  # one sentence; "" if the glossary has none
    # One per column, None where a run has no such number; a number of no run is a single value.
    values: tuple[float | int | None, ...]
    best: float | int | None  # the better one of several values; None without a direction
    decimals: int | None  # digits after the point of all numbers of the line, or None where their sizes differ too much
    difference: float | None  # first column minus second where there are exactly two finite numbers
    gain: bool | None  # whether the difference is an improvement; None without a direction or a difference
    protocol: tuple[tuple[str, str], ...]  # (key, value) as text, common to the line's numbers
    # (run, ((key, value), ...)) for the settings that are not common.
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
    by_run = {run: record.value for run, record in rows}
    values = tuple(by_run.get(column) for column in columns) if run else (first.value,)
    finite = [value for value in values if value is not None and math.isfinite(value)]
    best = (max if better == "higher" else min)(finite) if better is not None and len(set(finite)) > 1 else None
    difference = finite[0] - finite[1] if len(values) == len(finite) == 2 else None
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
        values=values,
        best=best,
        decimals=_decimals(finite),
        difference=difference,
        gain=(difference > 0) == (better == "higher") if better is not None and difference else None,
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
