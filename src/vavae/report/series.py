"""Figures of series of points, such as one metric against another, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vavae.report.svg import CLASS_COLORS, DASHES, MARKERS, SURFACE, draw_svg, set_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

_NOTE_SIZE = 9  # printer's points
_MULTIPLES = (1, 2, 5)  # of powers of ten, for ticks of a small range
_GAP = 6  # printer's points from a point to its note
# Right, left or centered; above, below or level: the note takes the first place that covers least.
_PLACES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str  # name in the legend
    points: Sequence[tuple[float, float]]  # (x, y) in order
    notes: Sequence[str] = ()  # a short text next to each point; empty for none
    spreads: Sequence[float | None] = ()  # half the length of each point's vertical bar, or None; empty for no bars
    style: int = 0  # number of color and marker


def series_figure(
    series: Sequence[Series], x: str, y: str, *, log_x: bool = False, log_y: bool = False, from_zero: bool = False
) -> str:
    """Draw lines with markers, one per series, in the colors of classes; return the SVG.

    Args:
        series: The series; empty ones are left out.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        log_x: Logarithmic horizontal axis, where the points span more than a factor of 3.
        log_y: The same for the vertical axis.
        from_zero: Start the horizontal axis at 0.
    """
    drawn = [one for one in series if one.points]

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.135, 0.15, 0.84, 0.82))
        # A logarithmic axis over a small range has almost no ticks.
        wide_x, wide_y = (log and _wide(drawn, i) for i, log in enumerate((log_x, log_y)))
        axes.set(xscale="log" if wide_x else "linear", yscale="log" if wide_y else "linear", xlabel=x, ylabel=y)
        for one in drawn:
            _draw(axes, one)
        axes.margins(0.12)
        if from_zero:
            axes.set_xlim(left=0)
        set_ticks(axes.xaxis, _MULTIPLES if wide_x else ())
        set_ticks(axes.yaxis, _MULTIPLES if wide_y else ())
        _write_notes(axes, drawn)

    return draw_svg(draw, 5.2, 3.5)


def _wide(series: Sequence[Series], coordinate: int) -> bool:
    values = [point[coordinate] for one in series for point in one.points]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 3


def _draw(axes: "Axes", one: Series) -> None:
    color, marker = CLASS_COLORS[one.style % len(CLASS_COLORS)], MARKERS[one.style % len(MARKERS)]
    xs, ys = zip(*one.points, strict=True)
    axes.plot(
        xs,
        ys,
        color=color,
        marker=marker,
        markersize=6.5,
        markeredgecolor=SURFACE,
        markeredgewidth=0.6,
        linewidth=1.6,
        linestyle=DASHES[one.style % len(DASHES)],
        label=one.name,
    )
    for (px, py), spread in zip(one.points, one.spreads, strict=False):
        if spread:
            axes.plot((px, px), (py - spread, py + spread), color=color, linewidth=1.2)


def _write_notes(axes: "Axes", series: Sequence[Series]) -> None:
    """Write each note where it covers least of lines, markers and other notes. Call this last."""
    from matplotlib.transforms import Bbox

    axes.autoscale_view()  # otherwise positions of points belong to the former scale
    paths = [axes.transData.transform(one.points) for one in series]  # on paper, in dots
    markers = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for path in paths for x, y in path]
    lines = np.concatenate([_along(path) for path in paths]) if paths else np.empty((0, 2))
    room = axes.bbox
    written: list[Bbox] = []

    def cost(box: Bbox) -> float:
        outside = not (room.contains(box.x0, box.y0) and room.contains(box.x1, box.y1))
        others, covered = box.count_overlaps(written), box.count_contains(lines)
        return covered + 10 * box.count_overlaps(markers) + 20 * others + 30 * outside

    for one in series:
        for point, text in zip(one.points, one.notes, strict=False):
            note = axes.annotate(text, point, (0, 0), textcoords="offset points", fontsize=_NOTE_SIZE)
            places = {}
            for place in _PLACES:
                _move(note, place)
                places[place] = note.get_window_extent()
            best = min(_PLACES, key=lambda place: cost(places[place]))
            _move(note, best)
            written.append(places[best])


def _move(note: "Annotation", place: tuple[int, int]) -> None:
    note.set(position=(_GAP * place[0], _GAP * place[1]))
    note.set(ha=("right", "center", "left")[place[0] + 1], va=("top", "center", "bottom")[place[1] + 1])


def _along(path: np.ndarray) -> np.ndarray:
    """Return points on a line (N, 2), about 3 dots apart."""
    pieces = [np.linspace(a, b, max(2, int(np.hypot(*(b - a)) / 3))) for a, b in pairwise(path)]
    return np.concatenate(pieces) if pieces else path
