"""The page of the demo: one HTML file that needs no other file and no network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vavae.demo.contents import DemoReport, RunResult
from vavae.demo.summary import headline
from vavae.demo.table import metric_lines
from vavae.io.files import written_whole
from vavae.report.curves import LogLine, Panel, read_panels
from vavae.report.figures import LegendLine, curves_figure, scatter_figure
from vavae.report.glossary import GENERATOR_TERMS, TOKENIZER_TERMS, Term
from vavae.report.images import LOSSLESS_PIXELS, class_name, image_uri
from vavae.report.numbers import duration, number
from vavae.report.page_base import Embedder, render
from vavae.report.pca import pca_maps

_PER_BLOCK = 10
_PIXELATED_SIDE = 128  # up to this side, single pixels stay squares


def write_page(path: Path, report: DemoReport) -> None:
    """Write the page of a report, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(render_page(report), encoding="utf-8")


def render_page(report: DemoReport) -> str:
    """Return the HTML of a report."""
    return render("demo", report=report, **_view(report))


@dataclass(frozen=True)
class Picture:
    """An image in the page: data URI, alt text, whether its pixels stay squares."""

    uri: str
    alt: str
    pixelated: bool


@dataclass(frozen=True)
class Strip:
    """A row of pictures with a heading, the number of its run, and a few words below the heading."""

    heading: str
    pictures: tuple[Picture, ...]
    run: int | None = None
    note: str = ""


@dataclass(frozen=True)
class PictureGroup:
    """Strips of pictures of one size.

    `ratio` is their aspect ratio in CSS, `run` the number of the run, `note` how they were made, and `times` are the
    headings of the columns.
    """

    strips: tuple[Strip, ...]
    ratio: str
    columns: int
    run: int | None = None
    name: str = ""
    note: str = ""
    times: tuple[str, ...] = ()


@dataclass(frozen=True)
class CurveCard:
    """Curves of one term; `ends` are (run number, run name, last value)."""

    svg: Any
    term: Term
    logarithmic: bool
    ends: tuple[tuple[int, str, float], ...]


def _view(report: DemoReport) -> dict[str, Any]:
    """Return what the template shows in addition to the report."""
    runs, gallery = report.runs, report.gallery
    embed = Embedder()
    names = [run.name for run in runs]
    rows = [(run.name, record) for run in runs for record in run.records] + [("", r) for r in report.reference]
    seconds = [step.seconds for step in report.steps]
    pictures = [report.originals, gallery.samples, *(run.samples for run in runs)]
    originals: _Row = ("original", report.originals, None, "", "")
    scatter = [(i, run.name, _scatter(run, embed)) for i, run in enumerate(runs) if run.tsne_points is not None]
    return {
        "title": "vavae demo" if not report.quick else "vavae demo --quick: a trial, its numbers mean nothing",
        "facts": [
            ("Made", report.created),
            ("Took", duration(sum(seconds))),
            ("On", " · ".join(report.machine.values())),
        ],
        "sections": [
            *(("reconstructions", "Reconstructions"), ("samples", "Samples"), ("results", "Numbers")),
            *(("idea", "The idea"), ("features", "Features")),
            *([("map", "Map of latents")] if scatter else []),
            *(("formation", "How a sample forms"), ("curves", "Curves"), ("numbers", "All numbers")),
            ("again", "Run it again"),
        ],
        "total_seconds": sum(seconds),
        "run_names": names,
        "headline": headline(runs, report.reference),
        "reconstructions": _matrix(
            report,
            [originals, *((run.name, run.reconstructions, i, "reconstruction, ", "") for i, run in enumerate(runs))],
        ),
        "features": _matrix(
            report,
            [
                originals,
                _map("teacher", report.teacher_features, None),
                *(_map(run.name, run.latents, i) for i, run in enumerate(runs)),
            ],
        ),
        "scatter": scatter,
        "legend_lines": [
            LegendLine.of(label, class_name(label, report.class_names))
            for label in sorted({int(label) for run in runs for label in run.tsne_labels})
        ],
        "samples": [
            _samples(run.samples, run.sample_labels, report.class_names, run.name, report.guidance, i)
            for i, run in enumerate(runs)
        ],
        "formations": [_formation(i, run) for i, run in enumerate(runs)],
        "gallery": _samples(
            gallery.samples, gallery.sample_labels, gallery.class_names, "longer training", gallery.guidance
        ),
        "tokenizer": _curves(names, [run.tokenizer_log for run in runs], TOKENIZER_TERMS, embed),
        "generator": _curves(names, [run.generator_log for run in runs], GENERATOR_TERMS, embed),
        "metrics": metric_lines(rows, names),
        "compressed": any(images.shape[1] * images.shape[2] > LOSSLESS_PIXELS for images in pictures),
    }


_Row = tuple[str, NDArray[np.uint8], int | None, str, str]  # heading, images, run, words of the alt text, note


def _map(name: str, grid: NDArray[np.floating], run: int | None) -> _Row:
    """Return the row of feature grids (N, h, w, C) as colors."""
    kind = "features, " if run is None else "latents, "
    return name, pca_maps(grid), run, kind, " × ".join(map(str, grid.shape[1:]))


def _matrix(report: DemoReport, rows: Sequence[_Row]) -> PictureGroup:
    """Return one strip per row, with a picture for each original."""
    names = [class_name(int(label), report.class_names) for label in report.original_labels]
    strips = []
    for heading, images, run, kind, note in rows:
        alts = (f"{heading}: {kind}image {i + 1} ({name})" for i, name in enumerate(names))
        strips.append(Strip(heading, _pictures(images, alts), run, note))
    # At most ten columns, in blocks as equal as possible.
    blocks = -(-len(names) // _PER_BLOCK)
    return PictureGroup(tuple(strips), _ratio(report.originals), -(-len(names) // blocks))


def _samples(
    samples: NDArray[np.uint8],
    labels: Sequence[int],
    class_names: Sequence[str],
    name: str,
    guidance: str,
    run: int | None = None,
) -> PictureGroup:
    """Return one strip per label, in the order of their first samples."""
    strips = []
    for label in dict.fromkeys(labels):
        heading, chosen = class_name(label, class_names), samples[np.equal(labels, label)]
        strips.append(
            Strip(heading, _pictures(chosen, (f"{name}: sample {k + 1} of {heading}" for k in range(len(chosen)))))
        )
    columns = min(_PER_BLOCK, max(len(strip.pictures) for strip in strips))
    return PictureGroup(tuple(strips), _ratio(samples), columns, run, name, guidance)


def _formation(index: int, run: RunResult) -> PictureGroup:
    """Return one strip per sample, with a picture for each time."""
    times = tuple(f"{t:.2g}" for t, _ in run.formation)
    strips = []
    for k in range(len(run.formation[0][1])):
        alts = (f"{run.name}: sample {k + 1} at t = {time}" for time in times)
        strips.append(Strip(f"sample {k + 1}", _pictures([images[k] for _, images in run.formation], alts)))
    return PictureGroup(tuple(strips), _ratio(run.formation[0][1]), len(times), index, run.name, times=times)


def _scatter(run: RunResult, embed: Embedder) -> Any:
    assert run.tsne_points is not None
    alt = f"t-SNE map of {len(run.tsne_points)} latents of the {run.name} tokenizer"
    return embed(scatter_figure(run.tsne_points, run.tsne_labels), alt)


def _curves(
    names: Sequence[str], logs: Sequence[Sequence[LogLine]], terms: Mapping[str, Term], embed: Embedder
) -> dict[str, list]:
    """Return the curves of one kind of model: main ones, further ones, and keys that are zero throughout."""
    panels, off = read_panels(logs, terms)
    cards = [_card(names, panel, embed) for panel in panels]
    return {
        "main": [card for card in cards if not card.term.detail],
        "further": [card for card in cards if card.term.detail],
        "off": off,
    }


def _card(names: Sequence[str], panel: Panel, embed: Embedder) -> CurveCard:
    ends = tuple((curve.run, names[curve.run], curve.last) for curve in panel.curves)
    values = ", ".join(f"{name} {number(value)}" for _, name, value in ends)
    alt = f"{panel.term.title} against images seen. At the end: {values}"
    return CurveCard(embed(curves_figure(panel), alt), panel.term, panel.logarithmic, ends)


def _pictures(images: Iterable[NDArray[np.uint8]], alts: Iterable[str]) -> tuple[Picture, ...]:
    return tuple(
        Picture(image_uri(image), alt, max(image.shape[:2]) <= _PIXELATED_SIDE)
        for image, alt in zip(images, alts, strict=True)
    )


def _ratio(images: NDArray) -> str:
    return f"{images.shape[2]} / {images.shape[1]}"
