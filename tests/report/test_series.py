"""Figures of series: positions of the notes, by Matplotlib's own size of the text."""

from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from vavae.frontier import published as paper
from vavae.report import series as module
from vavae.report.figures import LegendLine, standalone
from vavae.report.series import Series, series_figure

PUBLISHED = [
    Series(
        teacher,
        [(paper.TABLE2[d, teacher].values["rfid"], paper.TABLE2[d, teacher].values["gfid/B"]) for d in (16, 32, 64)],
        [f"d {d}" for d in (16, 32, 64)],
        style=style,
    )
    for style, teacher in enumerate(("none", "dinov2", "mae"))
]
CLOSE = [Series("a", [(1.0, 1.0), (2.0, 3.0)], ["d 4", "d 32"]), Series("b", [(1.02, 1.05)], ["d 4"], style=1)]


@pytest.mark.parametrize("series", [PUBLISHED, CLOSE])
@pytest.mark.parametrize("log_x", [False, True])
def test_notes_do_not_cover_points_or_each_other(
    series: list[Series], log_x: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    write = module._write_notes

    def kept(axes: object, drawn: object) -> None:
        write(axes, drawn)  # type: ignore[arg-type]
        figures.append(axes.figure)  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "_write_notes", kept)
    svg = series_figure(series, "x", "y", log_x=log_x)
    axes = figures[0].axes[0]
    notes = [child for child in axes.get_children() if isinstance(child, Annotation)]
    assert sorted(note.get_text() for note in notes) == sorted(n for one in series for n in one.notes)
    assert all(svg.count(note.get_text()) for note in notes)
    boxes = [note.get_window_extent() for note in notes]
    points = axes.transData.transform(np.concatenate([one.points for one in series]))
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    room = axes.get_window_extent()
    assert all(room.contains(box.x0, box.y0) and room.contains(box.x1, box.y1) for box in boxes)


def test_each_note_is_at_its_point(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, tuple[float, float]]] = []
    write = module._write_notes

    def kept(axes: object, drawn: object) -> None:
        write(axes, drawn)  # type: ignore[arg-type]
        found.extend((a.get_text(), a.xy) for a in axes.texts)  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "_write_notes", kept)
    series_figure(PUBLISHED, "x", "y")
    wanted = [pair for one in PUBLISHED for pair in zip(one.notes, one.points, strict=True)]
    assert sorted(found) == sorted(wanted)


def test_standalone_figure_has_title_legend_and_colors() -> None:
    svg = series_figure(PUBLISHED, "rFID", "gFID")
    file = standalone(svg, "M & S", [LegendLine.of(0, "none"), LegendLine.of(1, "a < b")])
    assert "var(--" in svg and "var(" not in file
    root = ElementTree.fromstring(file)
    names = ["".join(text.itertext()) for text in root.findall("{http://www.w3.org/2000/svg}text")]
    assert names == ["M & S", "●none▲a < b"]
    colors = [span.get("fill") for span in root.iter("{http://www.w3.org/2000/svg}tspan")]
    drawn = {path.get("style", "") for path in root.iter("{http://www.w3.org/2000/svg}path")}
    assert all(any(f"stroke: {color}" in style for style in drawn) for color in colors[::2])
    inner = root.find("{http://www.w3.org/2000/svg}svg")
    assert inner is not None and inner.get("y") == "44"
    below = float((root.get("viewBox") or "").split()[3]) - float(inner.get("height") or 0)
    assert below == 44


def test_notes_have_the_color_of_text() -> None:
    """Some colors of classes are too light for letters."""
    texts = ElementTree.fromstring(series_figure(PUBLISHED, "x", "y")).iter("{http://www.w3.org/2000/svg}text")
    notes = [text for text in texts if (text.text or "").startswith("d ")]
    assert len(notes) == 9
    assert all("var(--figure-ink" in ElementTree.tostring(note, "unicode") for note in notes)
