"""The paper's claims beside what was measured, with a verdict that follows from the numbers by a stated rule.

Most claims say which of two numbers is smaller, for one or more pairs. A pair holds if the means are in that order, and
is open if they are no further apart than the root of the summed squares of their spreads. A number spreads as its own
seeds do, and at least as those of its kind (rFID, gFID) do in Table 2: the root of the mean square of the relative
spreads of all rows with several seeds, and never less than that at which two numbers must differ by 3 %. All hold:
reproduced; none: not, or open where no pair is against the paper; else partly. A limit asks for the mean alone. Of a
factor of convergence it is asked whether it is there (open up to 1.1) and whether it is 2 or more; a correlation holds
from .5 on, and is open down to 0. With too few images behind a number, or distances that are no FIDs, the direction is
told and no verdict is given.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vavae.frontier.grid import NONE, GeneratorCell, TokenizerCell
from vavae.frontier.names import ROW_NAMES
from vavae.frontier.published import SPEED_UP, family
from vavae.frontier.tables import (
    EVERY_TOKENIZER,
    Measured,
    Row,
    Stat,
    Table,
    correlations,
    table1,
    table2,
    table4,
    table5,
    table6,
)

ENOUGH_SAMPLES = 5_000
ENOUGH_RECONSTRUCTIONS = 1_000
UNMEASURED = "not yet measured"
_LEAST_SPREAD = 0.03 / math.sqrt(2)  # relative, between seeds: two numbers must differ by 3 %
_SPEED_UP = 2.0  # a factor that counts as the paper's 2.5 to 2.8
_NO_SPEED_UP = 1.1  # one that does not count as any
_TOGETHER = 0.5  # correlation from which on two numbers go together
ENOUGH_TOKENIZERS = 5  # behind correlations
_COST = 1.13  # the paper's own worst ratio of rFID with DINOv2 to rFID without is 1.122: .55 / .49 at d 16
_NO_STEP = "beta2"  # the row of Table 1 that gained nothing in the paper either: 16.59 → 16.61


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        claim: What the paper says.
        published: Its numbers.
        ours: Our numbers.
        verdict: What they say.
    """

    claim: str
    published: str
    ours: str = UNMEASURED
    verdict: str = UNMEASURED


@dataclass(frozen=True)
class _Pair:
    smaller: Stat
    larger: Stat
    usual: float = _LEAST_SPREAD  # relative spread between seeds

    @property
    def holds(self) -> bool | None:
        """None where the difference is within the spreads."""
        a, b = self.smaller, self.larger
        assert a.mean is not None and b.mean is not None
        least_a, least_b = self.usual * abs(a.mean), self.usual * abs(b.mean)
        both = math.hypot(max(a.spread or 0.0, least_a), max(b.spread or 0.0, least_b))
        if abs(b.mean - a.mean) <= both or a.mean == b.mean:
            return None
        return b.mean > a.mean

    @property
    def keeps(self) -> bool:
        """Whether the smaller one is at most the larger one, as it stands."""
        assert self.smaller.mean is not None and self.larger.mean is not None
        return self.smaller.mean <= self.larger.mean


def judge(pairs: Sequence[tuple[Stat, Stat]], least: float, limit: bool = False, usual: float = _LEAST_SPREAD) -> str:
    """The verdict on pairs of (what should be smaller, what should be larger).

    Args:
        pairs: All that the claim compares.
        least: Images that must be behind each number for more than a direction.
        limit: The larger one is a limit that the other must keep to: nothing is open.
        usual: Relative spread between seeds that every number is taken to have at least.
    """
    found = [_Pair(*pair, usual) for pair in pairs]
    if not found or any(pair.smaller.mean is None or pair.larger.mean is None for pair in found):
        return UNMEASURED
    stats = [stat for pair in pairs for stat in pair]
    holding = [pair.keeps if limit else pair.holds for pair in found]
    enough = _reach([stat.images for stat in stats], least)
    return _verdict(holding, enough, min(len(stat.values) for stat in stats))


def usual_spread(stats: Iterable[Stat]) -> float:
    """Relative spread between seeds of one kind of number, from those that have several.

    The root of the mean square of (spread / mean), and at least the one at which two numbers must differ by 3 %.
    """
    squares = [(stat.spread / stat.mean) ** 2 for stat in stats if stat.spread is not None and stat.mean]
    return max(_LEAST_SPREAD, math.sqrt(sum(squares) / len(squares))) if squares else _LEAST_SPREAD


class _Rule:
    """What verdicts on distances take from a frontier: whether they are FIDs, and how its seeds differ in Table 2."""

    def __init__(self, is_fid: bool, table: Table) -> None:
        self._is_fid = is_fid
        self.usual = {
            kind: usual_spread(
                stat for row in table.rows for key, stat in row.ours.items() if key.partition("/")[0] == kind
            )
            for kind in ("rfid", "gfid")
        }

    def least(self, images: int = ENOUGH_SAMPLES) -> float:
        """Images that a verdict needs; no number of them will do where distances are no FIDs."""
        return images if self._is_fid else math.inf

    def rfid(self, pairs: Sequence[tuple[Stat, Stat]], limit: bool = False) -> str:
        """`judge` of reconstructions."""
        return judge(pairs, self.least(ENOUGH_RECONSTRUCTIONS), limit, self.usual["rfid"])

    def gfid(self, pairs: Sequence[tuple[Stat, Stat]]) -> str:
        """`judge` of samples."""
        return judge(pairs, self.least(), usual=self.usual["gfid"])


def _reach(counts: Sequence[int | None], least: float) -> bool:
    """Whether there are that many images behind every number."""
    return all(count is not None and count >= least for count in counts)


def _verdict(holding: Sequence[bool | None], enough: bool, seeds: int) -> str:
    """All hold: reproduced; none: not, or open; else partly."""
    if all(holding):
        said = "reproduced"
    elif not any(holding):
        said = "not" if any(h is False for h in holding) else "open: no difference to speak of"
    else:
        said = f"partly ({sum(h is True for h in holding)} of {len(holding)})"
    if not enough:
        said = _direction(said)
    return f"{said}{', one seed' if seeds == 1 else ''}"


def _direction(verdict: str) -> str:
    """What may be said where there is too little for a verdict."""
    words = {"reproduced": "direction as in the paper", "not": "direction against the paper"}
    return f"{words.get(verdict, verdict.removeprefix('open: '))}; too little for a verdict"


def read(stat: Stat, decimals: int) -> str:
    """`12.34 ± 0.21`."""
    if stat.mean is None:
        return "–"
    return f"{stat.mean:.{decimals}f}" + (f" ± {stat.spread:.{decimals}f}" if stat.spread is not None else "")


@dataclass(frozen=True)
class SpeedUp:
    """How many times fewer images a run needs.

    Attributes:
        factor: That many times.
        at_least: It was there at its first point already, so the factor is a lower bound.
    """

    factor: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'at least ' if self.at_least else ''}{self.factor:.2f} times"


def speed_up(plain: Sequence[tuple[int, float]], aligned: Sequence[tuple[int, float]]) -> SpeedUp | None:
    """How many times fewer images the aligned run needs to reach the last gFID of the plain one.

    Between two points the logarithm of gFID is taken as linear in images. None where it never gets there, or a curve is
    empty.

    Args:
        plain: (images, gFID) without alignment, in rising images.
        aligned: The same with alignment.
    """
    if not plain or not aligned:
        return None
    last, target = plain[-1]
    if aligned[0][1] <= target:
        return SpeedUp(last / aligned[0][0], at_least=True)
    for (before, high), (after, low) in pairwise(aligned):
        if low <= target:
            share = math.log(high / target) / math.log(high / low)
            return SpeedUp(last / (before + share * (after - before)))
    return None


def _faster(
    plain: Sequence[tuple[int, float]], aligned: Sequence[tuple[int, float]], usual: float
) -> tuple[bool | None, ...]:
    """Whether alignment speeds up at all, and as much as in the paper."""
    found = speed_up(plain, aligned)
    if found is None:
        theirs, ours = (Stat((curve[-1][1],), 1) for curve in (plain, aligned))
        near = _Pair(ours, theirs, usual).holds is None
        return (None, None) if near else (False, False)
    return (None, None) if found.factor <= _NO_SPEED_UP else (True, found.factor >= _SPEED_UP)


def claims(measured: Measured) -> list[Claim]:
    """All claims, in the order of the paper's argument."""
    table = table2(measured)
    rule = _Rule(measured.grid.config.measure.is_fid, table)
    return [
        *_dilemma(measured, table, rule),
        _convergence(measured, rule),
        _teachers(measured, rule),
        _losses(measured, rule),
        _uniformity(measured, rule),
        _ladder(measured, rule),
    ]


def _row(table: Table, *labels: str) -> Row | None:
    return next((row for row in table.rows if row.labels == labels), None)


def _dilemma(measured: Measured, table: Table, rule: _Rule) -> Iterator[Claim]:
    """Table 2: the dilemma, and how alignment resolves it."""
    wanted = measured.grid.config.experiments.table2
    gfid = f"gfid/{wanted.sizes[0]}"
    name, size = measured.distance, wanted.sizes[0]
    ordered = sorted(wanted.dimensions)
    plain = [row for d in ordered if (row := _row(table, str(d), NONE))]

    def along(rows: Sequence[Row], key: str, decimals: int) -> str:
        said = "; ".join(f"d {row.labels[0]}: {read(row.ours[key], decimals)}" for row in rows)
        return said if any(row.ours[key].values for row in rows) else UNMEASURED

    pairs = [(b.ours["rfid"], a.ours["rfid"]) for a, b in pairwise(plain)]
    yield Claim(
        f"More channels reconstruct better: r{name} falls with d (no alignment)",
        "0.49, 0.26, 0.17 at d 16, 32, 64 (Table 2)",
        along(plain, "rfid", 2),
        rule.rfid(pairs),
    )
    pairs = [(a.ours[gfid], b.ours[gfid]) for a, b in pairwise(plain)]
    yield Claim(
        f"More channels generate worse: g{name} rises with d (no alignment, {size})",
        "16.24, 22.62, 36.83 at d 16, 32, 64 (Table 2, B)",
        along(plain, gfid, 2),
        rule.gfid(pairs),
    )
    aligned = next((t for t in wanted.teachers if family(t) == "dinov2"), None) or next(
        (t for t in wanted.teachers if t != NONE), NONE
    )
    both = [(row, _row(table, row.labels[0], aligned)) for row in plain]
    there = [(a, b) for a, b in both if b is not None and aligned != NONE]
    highest = there[-1:]
    yield Claim(
        f"Alignment restores generation at high d ({aligned}, {size})",
        "22.62 → 15.82 at d 32, 36.83 → 24.00 at d 64 (Table 2, B)",
        _both(there, gfid),
        rule.gfid([(b.ours[gfid], a.ours[gfid]) for a, b in highest]),
    )
    yield Claim(
        f"Alignment costs little reconstruction: r{name} at most {_COST} times ({aligned})",
        "rFID 0.49 → 0.55, 0.26 → 0.28, 0.17 → 0.14 at d 16, 32, 64 (Table 2)",
        _both(there, "rfid"),
        rule.rfid([(b.ours["rfid"], _times(a.ours["rfid"], _COST)) for a, b in there], limit=True),
    )


def _times(stat: Stat, factor: float) -> Stat:
    return replace(stat, values=tuple(factor * value for value in stat.values))


def _both(rows: Sequence[tuple[Row, Row]], key: str) -> str:
    known = [(a, b) for a, b in rows if a.ours[key].values and b.ours[key].values]
    said = "; ".join(f"d {a.labels[0]}: {read(a.ours[key], 2)} → {read(b.ours[key], 2)}" for a, b in known)
    return said or UNMEASURED


def _convergence(measured: Measured, rule: _Rule) -> Claim:
    wanted = measured.grid.config.experiments.convergence
    claim = f"Alignment speeds up convergence (d {wanted.dimension}, {wanted.size})"
    found: list[str] = []
    holding: list[bool | None] = []
    counts: list[int | None] = []
    seeds = 0
    for seed in wanted.seeds:
        cells = {
            t: GeneratorCell(TokenizerCell.of(wanted.dimension, t, "full", seed), wanted.size) for t in wanted.teachers
        }
        curves = {teacher: measured.curve(cell) for teacher, cell in cells.items()}
        compared = [t for t in wanted.teachers if t != NONE and curves[t] and curves.get(NONE)]
        for teacher in compared:
            times = speed_up(curves[NONE], curves[teacher])
            found.append(f"{teacher}: {times or 'never gets there'}")
            holding += _faster(curves[NONE], curves[teacher], rule.usual["gfid"])
            counts += [measured.curve_images(cells[teacher]), measured.curve_images(cells[NONE])]
        seeds += bool(compared)
    if not found:
        return Claim(claim, SPEED_UP)
    enough = _reach(counts, rule.least())
    return Claim(claim, SPEED_UP, "; ".join(found), _verdict(holding, enough, seeds))


def _teachers(measured: Measured, rule: _Rule) -> Claim:
    return _best(
        rule,
        table4(measured),
        lambda row: family(row.labels[0]) == "dinov2",
        "DINOv2 is the best teacher",
        "DINOv2 15.82, CLIP 18.93, SAM 19.80, MAE 19.89, none 22.62 (Table 4, d 32, B)",
    )


def _losses(measured: Measured, rule: _Rule) -> Claim:
    return _best(
        rule,
        table5(measured),
        lambda row: row.labels == ("full",),
        "Each part of the alignment loss is needed",
        "full 15.82, without mdms 17.74, without margins 17.77, without mcos 21.87 (Table 5, d 32, B)",
    )


def _best(rule: _Rule, table: Table, favoured: Callable[[Row], bool], claim: str, published: str) -> Claim:
    """That the favoured rows of a table have a lower gFID than every other."""
    best = [row for row in table.rows if favoured(row)]
    rest = [row for row in table.rows if row not in best]
    said = _by_label(table)
    pairs = [(b.ours["gfid"], r.ours["gfid"]) for b in best for r in rest]
    return Claim(claim, published, said or UNMEASURED, rule.gfid(pairs))


def _uniformity(measured: Measured, rule: _Rule) -> Claim:
    claim = f"More uniform latents generate better: density CV and g{measured.distance} go together"
    published = "CV .263, .193, .178 for gFID 22.62, 19.89, 15.82 (Tables 2 and 6, d 32, B)"
    table = table6(measured)
    found = [c for c in correlations(measured, table) if c.metric == "density CV"]
    if not found:
        return Claim(claim, published)
    said = "; ".join(f"{c.group}: r {c.pearson:+.2f}, rank {c.spearman:+.2f} over {c.count}" for c in found)
    # Dimensions differ in more than how even their latents are: where they can be told apart, each is asked alone.
    judged = [c for c in found if c.group != EVERY_TOKENIZER] or found
    holding = [True if c.pearson >= _TOGETHER else False if c.pearson <= 0 else None for c in judged]
    known = [row.ours["gfid"] for row in table.rows if row.ours["gfid"].values]
    behind = [stat.images for stat in known]
    enough = sum(c.count for c in judged) >= ENOUGH_TOKENIZERS and _reach(behind, rule.least())
    return Claim(claim, published, said, _verdict(holding, enough, min(len(stat.values) for stat in known)))


def _by_label(table: Table) -> str:
    """The gFIDs of a table that are there, by what its rows are called."""
    known = [row for row in table.rows if row.ours["gfid"].values]
    return "; ".join(f"{row.labels[0]}: {read(row.ours['gfid'], 2)}" for row in known)


def _ladder(measured: Measured, rule: _Rule) -> Claim:
    table = table1(measured)
    said = _by_label(table)
    pairs = [(b.ours["gfid"], a.ours["gfid"]) for a, b in pairwise(table.rows) if b.labels != (ROW_NAMES[_NO_STEP],)]
    return Claim(
        "Each step from DiT to LightningDiT pays, but β₂",
        "19.50, 17.20, 16.59, 16.61, 13.99, 12.52, 10.10, 9.25, 7.13, 4.29 (Table 1, XL)",
        said or UNMEASURED,
        rule.gfid(pairs),
    )
