"""The paper's claims with our numbers and a verdict.

A claim compares pairs of numbers, of which one should be smaller. A pair has the paper's direction if the numbers
differ in this direction by more than their spreads together, √(a² + b²). The claim is

- *reproduced* if all pairs have the paper's direction,
- *not reproduced* if a pair has the opposite direction by more than the spreads,
- *open* otherwise, and wherever the numbers are not FIDs or too few images were measured.

The spread of a number is the standard deviation over its seeds, and at least the typical spread of its metric
(`typical_spread`), which is also taken for a single seed. The spread of a correlation is its standard error.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from vavae.frontier.config import ROW_NAMES
from vavae.frontier.grid import NONE, GeneratorCell
from vavae.frontier.published import SPEED_UP, family
from vavae.frontier.tables import EVERY_TOKENIZER, Measured, Stat, Table, correlations, tables

UNMEASURED = "not yet measured"
TOO_FEW = "open (too few images)"
ENOUGH_SAMPLES = 5_000
ENOUGH_RECONSTRUCTIONS = 1_000
_LEAST_SPREAD = 0.03 / math.sqrt(2)  # relative; two numbers with it must differ by 3 %
_COST = 1.13  # highest ratio of rFID with alignment to rFID without; the paper's highest is 1.12 (.55 / .49 at d 16)
_WITHOUT_GAIN = "beta2"  # the step of Table 1 that gains nothing in the paper: 16.59 → 16.61
Metric = Literal["rfid", "gfid"]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper with its numbers, our numbers, and the verdict or the reason why there is none."""

    claim: str
    published: str
    ours: str = UNMEASURED
    verdict: str = UNMEASURED


@dataclass(frozen=True)
class Number:
    """One side of a comparison, with its standard deviation, and whether enough images were measured for a verdict."""

    value: float
    spread: float = 0.0
    enough: bool = True


Pair = tuple[Number | None, Number | None]  # (what should be smaller, what should be larger); None: not yet measured


def verdict(pairs: Sequence[Pair]) -> str:
    """Return the verdict on the pairs of a claim; the module's docstring has the rule."""
    known = [(smaller, larger) for smaller, larger in pairs if smaller is not None and larger is not None]
    if not pairs or len(known) < len(pairs):
        return UNMEASURED
    if not all(smaller.enough and larger.enough for smaller, larger in known):
        return TOO_FEW
    # In units of the spreads: above 1 in the paper's direction, below -1 against it.
    apart = [(b.value - a.value) / (math.hypot(a.spread, b.spread) or math.ulp(1.0)) for a, b in known]
    if any(distance < -1 for distance in apart):
        return "not reproduced"
    return "reproduced" if all(distance > 1 for distance in apart) else "open"


def typical_spread(stats: Iterable[Stat]) -> float:
    """Return the relative spread between seeds of one metric.

    It is the root mean square of (standard deviation / mean) over the numbers with several seeds, and at least the
    spread with which two numbers must differ by 3 %.
    """
    squares = [(stat.spread / stat.mean) ** 2 for stat in stats if stat.spread is not None and stat.mean]
    return max(_LEAST_SPREAD, math.sqrt(sum(squares) / len(squares))) if squares else _LEAST_SPREAD


def format_stat(stat: Stat) -> str:
    """Return `12.34 ± 0.21`, without a spread for one seed."""
    return f"{stat.mean:.2f}" + (f" ± {stat.spread:.2f}" if stat.spread is not None else "")


def speed_up(plain: Sequence[tuple[int, float]], aligned: Sequence[tuple[int, float]]) -> str:
    """Return in words how many times fewer images the aligned run needs to reach the last gFID of the plain run.

    Both are (images, gFID) by rising images; between two points the logarithm of gFID is linear in images. If the first
    point of the aligned run has reached the target, the factor is a lower bound.
    """
    last, target = plain[-1]
    if aligned[0][1] <= target:
        return f"at least {last / aligned[0][0]:.2f} times"
    for (before, high), (after, low) in pairwise(aligned):
        if low <= target:
            share = math.log(high / target) / math.log(high / low)
            return f"{last / (before + share * (after - before)):.2f} times"
    return "not reached"


def claims(measured: Measured) -> list[Claim]:
    """Return all claims, in the order of the paper's argument; none for a recipe without the paper's experiments."""
    asked = measured.grid.config.experiments
    if not any(one.seeds for one in (asked.table2, asked.table4, asked.table5, asked.convergence, asked.ladder)):
        return []
    build = _Claims(measured)
    return [
        *build.dilemma(),
        build.convergence(),
        build.lowest(
            "table4",
            "DINOv2 is the best teacher",
            "DINOv2 15.82, CLIP 18.93, SAM 19.80, MAE 19.89, none 22.62 (Table 4, d 32, B)",
        ),
        build.lowest(
            "table5",
            "Each part of the alignment loss is needed",
            "full 15.82, without mdms 17.74, without margins 17.77, without mcos 21.87 (Table 5, d 32, B)",
        ),
        build.uniformity(),
        build.ladder(),
    ]


class _Claims:
    """Builds the claims of one frontier."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured
        self._tables = tables(measured)
        self._distance = measured.distance
        stats = [(key, stat) for row in self._rows("table2").values() for key, stat in row.items()]
        self._typical = {
            kind: typical_spread(stat for key, stat in stats if key.partition("/")[0] == kind)
            for kind in ("rfid", "gfid")
        }

    def _rows(self, table: str) -> Mapping[tuple[str, ...], Mapping[str, Stat]]:
        """Return our numbers of a table by the labels of the rows."""
        return {row.labels: row.ours for row in self._tables[table].rows} if table in self._tables else {}

    def _number(self, metric: Metric, stat: Stat, factor: float = 1.0) -> Number | None:
        """Return the mean of a stat, times a factor, with its spread."""
        if stat.mean is None:
            return None
        spread = max(stat.spread or 0.0, self._typical[metric] * abs(stat.mean))
        least = ENOUGH_SAMPLES if metric == "gfid" else ENOUGH_RECONSTRUCTIONS
        enough = self._measured.grid.config.measure.is_fid and (stat.images or 0) >= least
        return Number(factor * stat.mean, factor * spread, enough)

    def _verdict(self, metric: Metric, pairs: Sequence[tuple[Stat, Stat]], limit: float = 1.0) -> str:
        """Return the verdict on pairs of (what should be smaller, what, times `limit`, should be larger)."""
        return verdict([(self._number(metric, a), self._number(metric, b, limit)) for a, b in pairs])

    def dilemma(self) -> Iterator[Claim]:
        """Table 2: the dilemma, and how alignment resolves it."""
        wanted = self._measured.grid.config.experiments.table2
        rows, size, name = self._rows("table2"), wanted.sizes[0], self._distance
        gfid = f"gfid/{size}"
        plain = [(d, rows[str(d), NONE]) for d in sorted(wanted.dimensions) if (str(d), NONE) in rows]
        yield Claim(
            f"More channels reconstruct better: r{name} falls with d (no alignment)",
            "0.49, 0.26, 0.17 at d 16, 32, 64 (Table 2)",
            _shown((f"d {d}", [row["rfid"]]) for d, row in plain),
            self._verdict("rfid", [(b["rfid"], a["rfid"]) for (_, a), (_, b) in pairwise(plain)]),
        )
        yield Claim(
            f"More channels generate worse: g{name} rises with d (no alignment, {size})",
            "16.24, 22.62, 36.83 at d 16, 32, 64 (Table 2, B)",
            _shown((f"d {d}", [row[gfid]]) for d, row in plain),
            self._verdict("gfid", [(a[gfid], b[gfid]) for (_, a), (_, b) in pairwise(plain)]),
        )
        teachers = sorted((t for t in wanted.teachers if t != NONE), key=lambda t: family(t) != "dinov2")
        aligned = teachers[0] if teachers else NONE
        both = [(d, row, rows[str(d), aligned]) for d, row in plain] if teachers else []
        yield Claim(
            f"Alignment restores generation at high d ({aligned}, {size})",
            "22.62 → 15.82 at d 32, 36.83 → 24.00 at d 64 (Table 2, B)",
            _shown((f"d {d}", [a[gfid], b[gfid]]) for d, a, b in both),
            self._verdict("gfid", [(b[gfid], a[gfid]) for _, a, b in both[-1:]]),
        )
        yield Claim(
            f"Alignment costs little reconstruction: r{name} at most {_COST} times ({aligned})",
            "rFID 0.49 → 0.55, 0.26 → 0.28, 0.17 → 0.14 at d 16, 32, 64 (Table 2)",
            _shown((f"d {d}", [a["rfid"], b["rfid"]]) for d, a, b in both),
            self._verdict("rfid", [(b["rfid"], a["rfid"]) for _, a, b in both], _COST),
        )

    def convergence(self) -> Claim:
        """Figure 4, left. The verdict compares gFID at the end of the runs; the speed-up is reported with it."""
        measured, wanted = self._measured, self._measured.grid.config.experiments.convergence
        curves, last = {}, {}
        for teacher in wanted.teachers:
            cells = [GeneratorCell.of(wanted.dimension, teacher, wanted.size, seed) for seed in wanted.seeds]
            curves[teacher] = [measured.curve(cell) for cell in cells]
            images = [measured.curve_images(cell) or 0 for cell in cells if measured.curve(cell)]
            ends = tuple(curve[-1][1] for curve in curves[teacher] if curve)
            last[teacher] = Stat(ends, len(cells), min(images, default=None))
        compared = [teacher for teacher in wanted.teachers if teacher != NONE and NONE in last]
        shown = [
            f"{teacher}: {speed_up(plain, curve)}, g{self._distance} {plain[-1][1]:.2f} → {curve[-1][1]:.2f} at the end"
            for teacher in compared
            for plain, curve in zip(curves[NONE], curves[teacher], strict=True)
            if plain and curve
        ]
        return Claim(
            f"Alignment speeds up convergence (d {wanted.dimension}, {wanted.size})",
            SPEED_UP,
            "; ".join(shown) or UNMEASURED,
            self._verdict("gfid", [(last[teacher], last[NONE]) for teacher in compared]),
        )

    def lowest(self, table: Literal["table4", "table5"], claim: str, published: str) -> Claim:
        """A row of a table, the DINOv2 teacher or the full loss, has a lower gFID than each of the others."""
        rows = {labels[0]: row["gfid"] for labels, row in self._rows(table).items()}
        best = [label for label in rows if label == "full" or family(label) == "dinov2"]
        pairs = [(rows[label], other) for label in best for name, other in rows.items() if name not in best]
        shown = _shown((label, [stat]) for label, stat in rows.items())
        return Claim(claim, published, shown, self._verdict("gfid", pairs))

    def uniformity(self) -> Claim:
        """Table 6: the correlation of density CV and gFID is positive, in each dimension if there are several."""
        claim = f"More uniform latents generate better: density CV and g{self._distance} go together"
        published = "CV .263, .193, .178 for gFID 22.62, 19.89, 15.82 (Tables 2 and 6, d 32, B)"
        table = self._tables.get("table6", Table("table6", "", (), (), ()))
        found = [one for one in correlations(table) if one.metric == "density CV"]
        numbers = [self._number("gfid", row.ours["gfid"]) for row in table.rows]
        enough = all(number.enough for number in numbers if number is not None)
        judged = [one for one in found if one.group != EVERY_TOKENIZER] or found
        shown = "; ".join(
            f"{one.group}: r {one.pearson:+.2f} ± {one.error:.2f}, rank {one.spearman:+.2f} over {one.count}"
            for one in found
        )
        pairs = [(Number(0.0), Number(one.pearson, one.error, enough)) for one in judged]
        return Claim(claim, published, shown or UNMEASURED, verdict(pairs))

    def ladder(self) -> Claim:
        """Table 1: each row has a lower gFID than the row before it."""
        rows = [(labels[0], row["gfid"]) for labels, row in self._rows("table1").items()]
        pairs = [(stat, before) for (_, before), (name, stat) in pairwise(rows) if name != ROW_NAMES[_WITHOUT_GAIN]]
        return Claim(
            "Each step from DiT to LightningDiT pays, but β₂",
            "19.50, 17.20, 16.59, 16.61, 13.99, 12.52, 10.10, 9.25, 7.13, 4.29 (Table 1, XL)",
            _shown((name, [stat]) for name, stat in rows),
            self._verdict("gfid", pairs),
        )


def _shown(numbers: Iterable[tuple[str, Sequence[Stat]]]) -> str:
    """Return `label: a → b; …` of what is measured."""
    known = [(label, stats) for label, stats in numbers if all(stat.values for stat in stats)]
    return "; ".join(f"{label}: {' → '.join(map(format_stat, stats))}" for label, stats in known) or UNMEASURED
