"""Draw the paper's figures from our results: the frontier, convergence, size, and maps of latents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vavae.frontier import published as paper
from vavae.frontier.grid import NONE, GeneratorCell
from vavae.frontier.tables import Measured
from vavae.report.figures import LegendLine, scatter_figure
from vavae.report.series import Series, series_figure


@dataclass(frozen=True)
class Drawn:
    """A figure of the page: stem of its file, heading, SVG, alternative text, its series, caption."""

    name: str
    title: str
    svg: str
    alt_text: str
    legend: tuple[LegendLine, ...] = ()
    note: str = ""


def _drawn(
    name: str, title: str, series: Sequence[Series], note: str = "", *, x: str, y: str, **scales: bool
) -> list[Drawn]:
    legend = tuple(LegendLine.of(one.style, one.name) for one in series if one.points)
    if not legend:
        return []
    alt_text = f"{title}: {y} over {x}; {', '.join(line.name for line in legend)}"
    return [Drawn(name, title, series_figure(series, x, y, **scales), alt_text, legend, note)]


def _style(measured: Measured, teacher: str) -> int:
    """Return the number of a teacher's color, the same in all figures."""
    experiments = measured.grid.config.experiments
    teachers = [*experiments.table2.teachers, *experiments.convergence.teachers, *experiments.table4.teachers]
    return list(dict.fromkeys([NONE, *teachers])).index(teacher)


def _name(teacher: str) -> str:
    return "no alignment" if teacher == NONE else teacher


Point = tuple[float | None, str, Sequence[GeneratorCell]]  # x, note, cells that differ by seed


def _series(measured: Measured, teacher: str, points: Sequence[Point]) -> Series:
    """Return a teacher's gFID over x, where both numbers are known."""
    stats = [(x, note, measured.stat("gfid", cells)) for x, note, cells in points]
    known = [(x, note, stat) for x, note, stat in stats if x is not None and stat.mean is not None]
    return Series(
        _name(teacher),
        [(x, stat.mean) for x, _, stat in known if stat.mean is not None],
        [note for _, note, _ in known],
        [stat.spread for _, _, stat in known],
        _style(measured, teacher),
    )


def frontier(measured: Measured) -> list[Drawn]:
    """Draw Figure 2, reconstruction against generation with a line per teacher, for each of our sizes and the paper."""
    wanted = measured.grid.config.experiments.table2
    if not wanted.seeds:
        return []
    found: list[Drawn] = []
    for size in wanted.sizes:
        series = []
        for teacher in wanted.teachers:
            cells = {
                d: [GeneratorCell.of(d, teacher, size, s) for s in wanted.seeds] for d in sorted(wanted.dimensions)
            }
            points = [(measured.stat("rfid", group).mean, f"d {d}", group) for d, group in cells.items()]
            series.append(_series(measured, teacher, points))
        bars = any(spread for one in series for spread in one.spreads)
        note = "Down and left is better" + ("; bars are the spread of the seeds." if bars else ".")
        name, (x, y) = f"figure2-{size.replace('/', '-')}", (f"r{measured.distance}", f"g{measured.distance}")
        found += _drawn(name, f"Ours, {size}", series, note, x=x, y=y)
    published = [
        Series(
            name,
            [(paper.TABLE2[d, kind].values["rfid"], paper.TABLE2[d, kind].values["gfid/B"]) for d in paper.DIMENSIONS],
            [f"d {d}" for d in paper.DIMENSIONS],
            style=style,
        )
        for style, (kind, name) in enumerate((("none", "no alignment"), ("dinov2", "DINOv2"), ("mae", "MAE")))
    ]
    note = "Table 2 of the paper: ImageNet at 256 px, f16; other data and models, so only the shape compares."
    return found + _drawn("figure2-published", "Published, B", published, note, x="rFID", y="gFID")


def convergence(measured: Measured) -> list[Drawn]:
    """Draw Figure 4, left: gFID along training."""
    wanted, series = measured.grid.config.experiments.convergence, []
    for cell in measured.grid.curves:
        points = [(float(images), value) for images, value in measured.curve(cell)]
        seed = f", seed {cell.tokenizer.seed}" if len(wanted.seeds) > 1 else ""
        teacher = cell.tokenizer.teacher
        series.append(Series(_name(teacher) + seed, points, style=_style(measured, teacher)))
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
    dimension, series = max(wanted.dimensions), []
    for teacher in wanted.teachers:
        points: list[Point] = []
        for size in wanted.sizes:
            cells = [GeneratorCell.of(dimension, teacher, size, s) for s in wanted.seeds]
            contents = [content for cell in cells if (content := measured.content("generator", cell)) is not None]
            points += [(float(contents[0]["parameters"]), size, cells)] if contents else []
        series.append(_series(measured, teacher, sorted(points, key=lambda point: point[0] or 0.0)))
    return _drawn(
        "figure4-size",
        f"Over the size of the generator, d {dimension}",
        series,
        x="parameters",
        y=f"g{measured.distance}",
        log_x=True,
        log_y=True,
    )


def maps(measured: Measured) -> list[Drawn]:
    """Draw Figure 6: t-SNE maps of the latents of each tokenizer of the first seed."""
    found: list[Drawn] = []
    tokenizers = measured.grid.tokenizers
    for cell in sorted((c for c in tokenizers if c.seed == tokenizers[0].seed), key=lambda c: c.dimension):
        content = measured.content("uniformity", cell)
        if content is None:
            continue
        title, name = measured.grid.shown_name(cell), f"figure6-d{cell.dimension}-{cell.teacher}-{cell.loss}"
        svg = scatter_figure(np.array(content["points"]), content["labels"])
        alt_text = f"t-SNE map of {len(content['points'])} latents: {title}"
        found.append(Drawn(name.replace("/", "-"), title, svg, alt_text))
    return found


def classes(measured: Measured, names: Sequence[str]) -> list[LegendLine]:
    """Return the legend of the classes on the maps, given their names in label order; empty without names."""
    contents = [measured.content("uniformity", cell) for cell in measured.grid.tokenizers]
    seen = sorted({int(label) for content in contents if content is not None for label in content["labels"]})
    return [LegendLine.of(label, names[label]) for label in seen if label < len(names)]
