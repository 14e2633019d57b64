"""The page of `vavae demo`: one HTML file that needs nothing beside it and no network."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vavae.demo.contents import DemoReport, Gallery, RunReport
from vavae.demo.table import MetricLine, RatioAxis, metric_lines, ratio_axis
from vavae.io.files import written_whole
from vavae.report.curves import Panel, read_panels
from vavae.report.figures import MARKER_SIGNS, curves_figure, scatter_figure
from vavae.report.glossary import GENERATOR_TERMS, TOKENIZER_TERMS, generator_term, tokenizer_term
from vavae.report.images import LOSSLESS_PIXELS, class_name, image_uri
from vavae.report.numbers import number
from vavae.report.page_base import Embedder, page_environment
from vavae.report.pca import pca_maps

_PER_BLOCK = 8
# Below this side, single pixels are meant to be seen.
_PIXELATED_SIDE = 128


def write_page(path: str | os.PathLike[str], report: DemoReport) -> None:
    """Write the page of a report.

    The file appears whole or not at all: an existing one is replaced only by a complete new one.

    Args:
        path: The HTML file; its folder is made if needed.
        report: What to show.
    """
    path = Path(path)
    page = render_page(report)
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_page(report: DemoReport) -> str:
    """The HTML of a report's page."""
    return page_environment("demo").get_template("demo.html.j2").render(view=_view(report), report=report)


@dataclass(frozen=True)
class Picture:
    """An image in the page: data URI, what to say where it cannot be seen, whether its pixels stay squares."""

    uri: str
    alt: str
    pixelated: bool


@dataclass(frozen=True)
class Strip:
    """A row of pictures with a heading; `run` is the run's number, or None where it belongs to none."""

    heading: str
    pictures: tuple[Picture, ...]
    run: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """Strips of equal length, cut into blocks of a few columns."""

    strips: tuple[Strip, ...]
    ratio: str

    @property
    def columns(self) -> int:
        """Pictures per block: at most eight, and blocks as equal as can be."""
        count = len(self.strips[0].pictures)
        blocks = -(-count // _PER_BLOCK)
        return -(-count // max(blocks, 1))

    @property
    def blocks(self) -> list[tuple[Strip, ...]]:
        """The strips cut into blocks of `columns` pictures, the last one perhaps shorter."""
        count = len(self.strips[0].pictures)
        return [
            tuple(Strip(s.heading, s.pictures[start : start + self.columns], s.run, s.note) for s in self.strips)
            for start in range(0, count, self.columns or 1)
        ]


@dataclass(frozen=True)
class Samples:
    """Samples of one model, a strip per class; those of a run have its number."""

    run: int | None
    name: str
    guidance: str
    strips: tuple[Strip, ...]
    ratio: str
    columns: int


@dataclass(frozen=True)
class Formation:
    """How samples of one run form: a strip per sample, a column per time."""

    run: int
    name: str
    note: str
    times: tuple[str, ...]
    strips: tuple[Strip, ...]
    ratio: str


@dataclass(frozen=True)
class Figure:
    """An SVG with heading and explanation; `ends` are (run number, run name, last value) of curves."""

    svg: Any
    title: str
    meaning: str = ""
    logarithmic: bool = False
    ends: tuple[tuple[int, str, float], ...] = ()
    run: int | None = None


@dataclass(frozen=True)
class Curves:
    """The loss curves of one kind of model: main ones, further ones, and what was off."""

    main: tuple[Figure, ...]
    further: tuple[Figure, ...]
    off: tuple[str, ...]


@dataclass(frozen=True)
class LegendEntry:
    """A class in the t-SNE legend: colour number, marker, name."""

    colour: int
    sign: str
    name: str


@dataclass(frozen=True)
class DemoView:
    """The report as the template wants it."""

    created: str
    total_seconds: float
    longest_seconds: float
    run_names: tuple[str, ...]
    reconstructions: Matrix | None
    features: Matrix | None
    scatter: tuple[Figure, ...]
    scatter_note: str
    legend: tuple[LegendEntry, ...]
    samples: tuple[Samples, ...]
    formations: tuple[Formation, ...]
    gallery: Samples | None
    tokenizer: Curves
    generator: Curves
    metric_columns: tuple[str, ...]
    metrics: tuple[MetricLine, ...]
    ratio_axis: RatioAxis | None
    has_fid: bool
    compressed: bool


def _view(report: DemoReport) -> DemoView:
    runs = report.runs
    embed = Embedder()
    names = tuple(run.name for run in runs)
    columns, lines = metric_lines(report.metrics, names)
    shown = [a for run in runs for a in (run.reconstructions, run.samples, *(f for _, f in run.formation))]
    shown += [report.originals, report.gallery.samples if report.gallery is not None else None]
    seconds = [step.seconds for step in report.steps]
    return DemoView(
        created=_date(report.created),
        total_seconds=sum(seconds),
        longest_seconds=max(seconds, default=0.0),
        run_names=names,
        reconstructions=_reconstructions(report),
        features=_features(report),
        scatter=_scatter(report, embed),
        scatter_note=next((run.tsne_note for run in runs if run.tsne_note), ""),
        legend=_legend(report),
        samples=tuple(_samples(report, i, run) for i, run in enumerate(runs) if _any(run.samples)),
        formations=tuple(
            _formation(i, run) for i, run in enumerate(runs) if run.formation and _any(run.formation[0][1])
        ),
        gallery=_gallery(report.gallery) if report.gallery is not None else None,
        tokenizer=_curves(names, read_panels([r.tokenizer_log for r in runs], tokenizer_term, TOKENIZER_TERMS), embed),
        generator=_curves(names, read_panels([r.generator_log for r in runs], generator_term, GENERATOR_TERMS), embed),
        metric_columns=columns,
        metrics=lines,
        ratio_axis=ratio_axis(lines) if len(columns) == 2 else None,
        has_fid=any(word in line.name.lower() for line in lines for word in ("fid", "fréchet", "frechet")),
        compressed=any(a.shape[1] * a.shape[2] > LOSSLESS_PIXELS for a in shown if a is not None),
    )


def _reconstructions(report: DemoReport) -> Matrix | None:
    runs = [(i, run) for i, run in enumerate(report.runs) if _any(run.reconstructions)]
    if not runs:
        return None
    strips = [_strip("original", report.originals, report)]
    strips += [_strip(run.name, run.reconstructions, report, i, "reconstruction, ") for i, run in runs]
    return Matrix(tuple(strips), _ratio(report.originals))


def _features(report: DemoReport) -> Matrix | None:
    grids: list[tuple[str, NDArray | None, int | None]] = [("teacher", report.teacher_features, None)]
    grids += [(run.name, run.latents, i) for i, run in enumerate(report.runs)]
    if not any(_any(grid) for _, grid, _ in grids):
        return None
    strips = [_strip("original", report.originals, report)]
    for name, grid, run in grids:
        if grid is not None and _any(grid):
            kind = "features, " if run is None else "latents, "
            note = f"{grid.shape[1]} × {grid.shape[2]} × {grid.shape[3]}"
            strips.append(_strip(name, pca_maps(grid), report, run, kind, note))
    return Matrix(tuple(strips), _ratio(report.originals))


def _strip(
    heading: str,
    images: NDArray[np.uint8] | None,
    report: DemoReport,
    run: int | None = None,
    kind: str = "",
    note: str = "",
) -> Strip:
    assert images is not None
    labels = report.original_labels
    names = [report.class_name(int(label)) for label in labels] if labels is not None else [""] * len(images)
    pictures = (
        _picture(image, f"{heading}: {kind}image {i + 1}" + (f" ({name})" if name else ""))
        for i, (image, name) in enumerate(zip(images, names, strict=True))
    )
    return Strip(heading, tuple(pictures), run, note)


def _samples(report: DemoReport, index: int, run: RunReport) -> Samples:
    assert run.samples is not None
    strips = _sample_strips(run.name, run.samples, run.sample_labels, report.class_names)
    return Samples(index, run.name, run.guidance, strips, _ratio(run.samples), _columns(strips))


def _gallery(gallery: Gallery) -> Samples:
    strips = _sample_strips("longer training", gallery.samples, gallery.sample_labels, gallery.class_names)
    return Samples(None, "longer training", gallery.guidance, strips, _ratio(gallery.samples), _columns(strips))


def _columns(strips: Sequence[Strip]) -> int:
    return min(_PER_BLOCK, max(len(strip.pictures) for strip in strips))


def _sample_strips(
    run: str, samples: NDArray[np.uint8], labels: NDArray[np.integer] | Sequence[int] | None, names: Sequence[str]
) -> tuple[Strip, ...]:
    """A strip for each label, in the order of their first samples."""
    if labels is None:
        groups = [("", np.arange(len(samples)))]
    else:
        numbers = np.asarray(labels)
        groups = [(class_name(int(label), names), np.flatnonzero(numbers == label)) for label in dict.fromkeys(numbers)]
    return tuple(
        Strip(
            name,
            tuple(
                _picture(samples[i], f"{run}: sample {k + 1}" + (f" of {name}" if name else ""))
                for k, i in enumerate(chosen)
            ),
        )
        for name, chosen in groups
    )


def _formation(index: int, run: RunReport) -> Formation:
    times = tuple(f"{t:.2g}" for t, _ in run.formation)
    first = run.formation[0][1]
    strips = tuple(
        Strip(
            f"sample {k + 1}",
            tuple(
                _picture(images[k], f"{run.name}: sample {k + 1} at t = {time}")
                for time, (_, images) in zip(times, run.formation, strict=True)
            ),
        )
        for k in range(len(first))
    )
    return Formation(index, run.name, run.formation_note, times, strips, _ratio(first))


def _scatter(report: DemoReport, embed: Embedder) -> tuple[Figure, ...]:
    return tuple(
        Figure(
            embed(
                scatter_figure(run.tsne_points, run.tsne_labels, i),
                f"t-SNE map of {len(run.tsne_points)} latents of the {run.name} tokenizer",
            ),
            run.name,
            run=i,
        )
        for i, run in enumerate(report.runs)
        if run.tsne_points is not None and _any(run.tsne_points)
    )


def _legend(report: DemoReport) -> tuple[LegendEntry, ...]:
    labels = [run.tsne_labels for run in report.runs if run.tsne_points is not None and run.tsne_labels is not None]
    seen = sorted({int(label) for some in labels for label in some})
    return tuple(
        LegendEntry(label % 10, MARKER_SIGNS[label % len(MARKER_SIGNS)], report.class_name(label)) for label in seen
    )


def _curves(names: Sequence[str], panels: tuple[list[Panel], list[str]], embed: Embedder) -> Curves:
    drawn, off = panels
    figures = [(panel.term.detail, _curve(names, panel, embed)) for panel in drawn]
    return Curves(
        tuple(figure for detail, figure in figures if not detail),
        tuple(figure for detail, figure in figures if detail),
        tuple(off),
    )


def _curve(names: Sequence[str], panel: Panel, embed: Embedder) -> Figure:
    ends = tuple((curve.run, names[curve.run], curve.last) for curve in panel.curves)
    label = f"{panel.term.title} against images seen. At the end: " + ", ".join(
        f"{name} {number(value)}" for _, name, value in ends
    )
    svg = embed(curves_figure(panel), label)
    return Figure(svg, panel.term.title, panel.term.meaning, panel.logarithmic, ends)


def _any(array: NDArray | None) -> bool:
    return array is not None and array.size > 0


def _picture(image: NDArray[np.uint8], alt: str) -> Picture:
    return Picture(image_uri(image), alt, max(image.shape[:2]) <= _PIXELATED_SIDE)


def _ratio(images: NDArray) -> str:
    return f"{images.shape[2]} / {images.shape[1]}"


def _date(created: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()
