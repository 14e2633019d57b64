"""Draw the paper's figures from our results: the frontier, convergence, size, and maps of latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vavae.frontier import published as paper
from vavae.frontier.grid import NONE, GeneratorCell, TokenizerCell
from vavae.frontier.tables import Measured, Stat
from vavae.report.figures import MARKER_SIGNS, scatter_figure
from vavae.report.series import Series, series_figure


@dataclass(frozen=True)
class LegendLine:
    """A series in the legend: number of its color, marker, name."""

    color: int
    sign: str
    name: str


@dataclass(frozen=True)
class Drawn:
    """A figure of the page.

    Attributes:
        name: Stem of its file.
        title: Heading.
        svg: The figure.
        alt_text: Alternative text.
        legend: Its series.
        note: Caption.
    """

    name: str
    title: str
    svg: str
    alt_text: str
    legend: tuple[LegendLine, ...] = ()
    note: str = ""


def _drawn(
    name: str, title: str, series: Sequence[Series], note: str = "", *, x: str, y: str, **scales: bool
) -> list[Drawn]:
    if not any(one.points for one in series):
        return []
    legend = tuple(
        LegendLine(one.style % 10, MARKER_SIGNS[one.style % len(MARKER_SIGNS)], one.name)
        for one in series
        if one.points
    )
    alt_text = f"{title}: {y} over {x}; {', '.join(line.name for line in legend)}"
    return [Drawn(name, title, series_figure(series, x, y, **scales), alt_text, legend, note)]


def _styles(measured: Measured) -> dict[str, int]:
    """Return a color number per teacher, the same in all figures."""
    experiments = measured.grid.config.experiments
    teachers = [*experiments.table2.teachers, *experiments.convergence.teachers, *experiments.table4.teachers]
    return {teacher: number for number, teacher in enumerate(dict.fromkeys([NONE, *teachers]))}


def _name(teacher: str) -> str:
    return "no alignment" if teacher == NONE else teacher


def _pairs(xs: Sequence[float | None], stats: Sequence[Stat]) -> tuple[list[tuple[float, float]], list[float | None]]:
    """Return the points of which both numbers are known, and their spreads."""
    known = [(x, s.mean, s.spread) for x, s in zip(xs, stats, strict=True) if x is not None and s.mean is not None]
    return [(x, y) for x, y, _ in known], [spread for _, _, spread in known]


def _better(series: Sequence[Series]) -> str:
    bars = any(spread for one in series for spread in one.spreads)
    return "Down and left is better" + ("; bars are the spread of the seeds." if bars else ".")


def frontier(measured: Measured) -> list[Drawn]:
    """Draw Figure 2, reconstruction against generation with a line per teacher, for each of our sizes and the paper."""
    wanted = measured.grid.config.experiments.table2
    if not wanted.seeds:
        return []
    found: list[Drawn] = []
    styles, distance = _styles(measured), measured.distance
    for size in wanted.sizes:
        series = []
        for teacher in wanted.teachers:
            dimensions = sorted(wanted.dimensions)
            cells = [
                [GeneratorCell(TokenizerCell.of(d, teacher, "full", s), size) for s in wanted.seeds] for d in dimensions
            ]
            gfid = [measured.stat("gfid", group) for group in cells]
            rfid = [measured.stat("rfid", group).mean for group in cells]
            points, spreads = _pairs(rfid, gfid)
            notes = [f"d {d}" for d, r, g in zip(dimensions, rfid, gfid, strict=True) if r is not None and g.values]
            series.append(Series(_name(teacher), points, notes, spreads, styles[teacher]))
        found += _drawn(
            f"figure2-{size.replace('/', '-')}",
            f"Ours, {size}",
            series,
            _better(series),
            x=f"r{distance}",
            y=f"g{distance}",
        )
    published = [
        Series(
            {"none": "no alignment", "mae": "MAE", "dinov2": "DINOv2"}[kind],
            [(paper.TABLE2[d, kind].values["rfid"], paper.TABLE2[d, kind].values["gfid/B"]) for d in paper.DIMENSIONS],
            [f"d {d}" for d in paper.DIMENSIONS],
            style=style,
        )
        for kind, style in (("none", 0), ("dinov2", 1), ("mae", 2))
    ]
    note = "Table 2 of the paper: ImageNet at 256 px, f16; other data and models, so only the shape compares."
    return found + _drawn("figure2-published", "Published, B", published, note, x="rFID", y="gFID")


def convergence(measured: Measured) -> list[Drawn]:
    """Draw Figure 4, left: gFID along training."""
    wanted = measured.grid.config.experiments.convergence
    styles, series = _styles(measured), []
    for teacher in wanted.teachers:
        for seed in wanted.seeds:
            cell = GeneratorCell(TokenizerCell.of(wanted.dimension, teacher, "full", seed), wanted.size)
            points = [(float(images), value) for images, value in measured.curve(cell)]
            name = _name(teacher) + (f", seed {seed}" if len(wanted.seeds) > 1 else "")
            series.append(Series(name, points, style=styles[teacher]))
    measure = measured.grid.config.measure
    (width,) = measured.grid.config.generator.training.averages.widths or (0.0,)
    note = (
        f"Averaged weights of relative width {width:g} along one run each; {measure.curve_samples:,} samples per point"
    )
    if measure.curve_samples < measure.samples:
        note += f", fewer than the {measure.samples:,} of the tables, which makes distances higher"
    return _drawn(
        "figure4-training",
        f"Along training, d {wanted.dimension}, {wanted.size}",
        series,
        f"{note}.",
        x="images seen",
        y=f"g{measured.distance}",
        log_y=True,
        from_zero=True,
    )


def by_size(measured: Measured) -> list[Drawn]:
    """Draw Figure 4, right: gFID over the size of the generator, at the highest dimension."""
    wanted = measured.grid.config.experiments.table2
    if not wanted.seeds or len(wanted.sizes) < 2:
        return []
    dimension, series, styles = max(wanted.dimensions), [], _styles(measured)
    for teacher in wanted.teachers:
        cells = [
            [GeneratorCell(TokenizerCell.of(dimension, teacher, "full", s), size) for s in wanted.seeds]
            for size in wanted.sizes
        ]
        parameters = [_parameters(measured, group) for group in cells]
        stats = [measured.stat("gfid", group) for group in cells]
        ordered = sorted(
            (p, size, stat) for p, size, stat in zip(parameters, wanted.sizes, stats, strict=True) if p is not None
        )
        points, spreads = _pairs([p for p, _, _ in ordered], [stat for _, _, stat in ordered])
        series.append(Series(_name(teacher), points, [s for _, s, _ in ordered], spreads, styles[teacher]))
    return _drawn(
        "figure4-size",
        f"Over the size of the generator, d {dimension}",
        series,
        x="parameters",
        y=f"g{measured.distance}",
        log_x=True,
        log_y=True,
    )


def _parameters(measured: Measured, cells: Sequence[GeneratorCell]) -> float | None:
    found = [content["parameters"] for cell in cells if (content := measured.content("generator", cell)) is not None]
    return float(found[0]) if found else None


def maps(measured: Measured) -> list[Drawn]:
    """Draw Figure 6: t-SNE maps of the latents of each tokenizer of the first seed."""
    found: list[Drawn] = []
    first = next(iter(cell.seed for cell in measured.grid.tokenizers), 0)
    ordered = sorted((cell for cell in measured.grid.tokenizers if cell.seed == first), key=lambda c: c.dimension)
    for cell in ordered:
        content = measured.content("uniformity", cell)
        if content is None:
            continue
        title = measured.grid.shown_name(cell)
        svg = scatter_figure(np.array(content["points"]), content["labels"])
        alt_text = f"t-SNE map of {len(content['points'])} latents: {title}"
        found.append(
            Drawn(f"figure6-d{cell.dimension}-{cell.teacher}-{cell.loss}".replace("/", "-"), title, svg, alt_text)
        )
    return found


def classes(measured: Measured, names: Sequence[str]) -> tuple[LegendLine, ...]:
    """Return the legend of the classes on the maps; empty without class names.

    Args:
        measured: The finished results.
        names: One per class, in label order.
    """
    contents = [measured.content("uniformity", cell) for cell in measured.grid.tokenizers]
    seen = sorted({int(label) for content in contents if content is not None for label in content["labels"]})
    return tuple(
        LegendLine(label % 10, MARKER_SIGNS[label % len(MARKER_SIGNS)], names[label])
        for label in seen
        if label < len(names)
    )
