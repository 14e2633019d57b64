"""Compare the numbers of two evaluations, if they were measured alike."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from vavae.config.image_size import format_size
from vavae.errors import UserError
from vavae.evaluation.table import distinct_columns, distinct_names, wide_console
from vavae.io.files import parse_json
from vavae.metrics import MetricRecord


@dataclass(frozen=True)
class Comparison:
    """Two records of one metric."""

    first: MetricRecord  # from the first file
    second: MetricRecord  # from the second file
    obstacles: tuple[str, ...]  # fields of the protocol that differ and must be equal

    @property
    def difference(self) -> float:
        """The second value minus the first."""
        return self.second.value - self.first.value

    def reasons(self) -> list[str]:
        """Return one line for each obstacle: the field and both of its values."""
        return [f"{name}: {_stated(self.first, name)} against {_stated(self.second, name)}" for name in self.obstacles]


def _stated(record: MetricRecord, name: str) -> str:
    value = getattr(record.protocol, name)
    if name.endswith("_hash") and value is not None:
        return value[:12]
    if name == "image_size" and isinstance(value, tuple):
        return format_size(value)
    return "not stated" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def read_records(path: str | Path) -> list[MetricRecord]:
    """Read records that `vavae evaluate --output` wrote.

    Raises:
        UserError: The file is missing, damaged or something else.
    """
    try:
        plain = parse_json(Path(path).read_text(encoding="utf-8"))
        if not isinstance(plain, list):
            raise TypeError("it is not a list")
        records = [MetricRecord.from_dict(entry) for entry in plain]
        parts: list[Any] = [part for record in records for part in (record, record.protocol)]
        for part in parts:
            for f in fields(part):
                if not _fits(getattr(part, f.name), f.type):
                    raise TypeError(f"{f.name} cannot be {getattr(part, f.name)!r}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, UserError) as error:
        raise UserError(f"{path}: not a result of 'vavae evaluate' ({type(error).__name__}: {error})") from error
    return records


def _fits(value: object, kind: Any) -> bool:
    """Return whether a value has the type of a field, looking no deeper than lists and mappings."""
    for option in get_args(kind) if isinstance(kind, UnionType) or get_origin(kind) is Union else (kind,):
        whole = option is float and type(value) is int
        literal = get_origin(option) is Literal
        if whole or (value in get_args(option) if literal else isinstance(value, get_origin(option) or option)):
            return True
    return False


def pair_records(first: Sequence[MetricRecord], second: Sequence[MetricRecord]) -> list[Comparison]:
    """Pair records of equal name, in the order of fewest obstacles. Each record enters at most one pair.

    If both files have several guidance scales or several networks, equal ones are paired.
    """
    candidates = [
        (len(obstacles), i, j, obstacles)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if a.name == b.name
        for obstacles in [a.obstacles(b)]
    ]
    taken: dict[int, Comparison] = {}
    used: set[int] = set()
    for _, i, j, obstacles in sorted(candidates, key=lambda candidate: candidate[:3]):
        if i not in taken and j not in used:
            taken[i] = Comparison(first[i], second[j], tuple(obstacles))
            used.add(j)
    return [taken[i] for i in sorted(taken)]


def compare_files(first: str | Path, second: str | Path, force: bool = False) -> list[Comparison]:
    """Pair the records of two JSON files; with `force`, also those of different protocols.

    Raises:
        UserError: The files share no metric, or, without `force`, the protocols of a pair differ. The message names
            every field with both of its values.
    """
    pairs = pair_records(read_records(first), read_records(second))
    if not pairs:
        raise UserError(f"{first} and {second} share no metric")
    if not force and any(pair.obstacles for pair in pairs):
        named: dict[str, list[str]] = {}
        for pair in pairs:
            for reason in pair.reasons():
                named.setdefault(reason, []).append(pair.first.name)
        listed = "; ".join(f"{reason} ({', '.join(dict.fromkeys(names))})" for reason, names in named.items())
        raise UserError(f"{first} and {second} were not measured alike: {listed}. --force compares them anyway")
    return pairs


def print_comparison(pairs: Sequence[Comparison], first: str, second: str) -> None:
    """Print a table of both numbers and their difference, then differing protocols and metrics of one file only.

    The shortest distinct ends of the paths name the columns. Further columns distinguish rows of one name.
    """
    from rich.table import Table

    names = distinct_names([first, second])
    shown = distinct_columns([pair.first for pair in pairs])
    table = Table(box=None, pad_edge=False)
    for heading in ("metric", *shown):
        table.add_column(heading, overflow="fold")  # a narrow terminal cuts nothing off
    for heading in (names[first].removesuffix(".json"), names[second].removesuffix(".json"), "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row, pair in enumerate(pairs):
        higher = pair.first.higher_is_better
        verdict = ""
        if higher is not None and pair.difference != 0 and not math.isnan(pair.difference):
            verdict = "better" if (pair.difference > 0) == higher else "worse"
        values = (f"{pair.first.value:.4f}", f"{pair.second.value:.4f}", f"{pair.difference:+.4f}")
        cells = (column[row] for column in shown.values())
        table.add_row(pair.first.name, *cells, *values, "not alike" if pair.obstacles else verdict)
    console = wide_console()
    console.print(table)
    for reason in dict.fromkeys(reason for pair in pairs for reason in pair.reasons()):
        console.print(f"differs: {reason}")
    paired = Counter(pair.first.name for pair in pairs)
    for path in (first, second):
        alone = Counter(record.name for record in read_records(path)) - paired
        if alone:
            console.print(f"only in {path}: {', '.join(alone)}")
