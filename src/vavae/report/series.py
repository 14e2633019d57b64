"""Figures of series of points, such as one metric against another, as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vavae.report.svg import CLASS_COLORS, DASHES, MARKERS, SURFACE, draw_svg, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_NOTE_SIZE = 9  # printer's points
_GAP = 6  # from a point to its note
# Right, left or centered; above, below or level: the note takes the first place that covers least.
_PLACES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: Name in the legend.
        points: (x, y) in order.
        notes: A short text next to each point; empty for none.
        spreads: Half the length of each point's vertical bar, or None; empty for no bars.
        style: Number of color and marker.
    """

    name: str
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()
    spreads: Sequence[float | None] = ()
    style: int = 0


def series_figure(
    series: Sequence[Series],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
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

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.135, 0.15, 0.84, 0.82))
        # A logarithmic axis over a small range has almost no ticks.
        wide_x, wide_y = (log and _wide(series, i) for i, log in enumerate((log_x, log_y)))
        if wide_x:
            axes.set_xscale("log")
        if wide_y:
            axes.set_yscale("log")
        for one in series:
            if one.points:
                _draw(axes, one)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.margins(0.12)
        if from_zero:
            axes.set_xlim(left=0)
        for axis, logarithmic in ((axes.xaxis, wide_x), (axes.yaxis, wide_y)):
            if logarithmic:
                _few_ticks(axis)
            else:
                axis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]
            axis.set_major_formatter(lambda value, _: short(value))
        _write_notes(axes, series)

    return draw_svg(draw, 5.2, 3.5)


def _wide(series: Sequence[Series], coordinate: int) -> bool:
    values = [point[coordinate] for one in series for point in one.points]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 3


def _few_ticks(axis: object) -> None:
    """Set ticks at 1, 2 and 5 times powers of ten, which suit a small range of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


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
    axes.autoscale_view()  # otherwise positions of points belong to the former scale
    lines = [_on_paper(axes, one.points) for one in series if one.points]
    covered = np.concatenate([_along(line) for line in lines]) if lines else np.empty((0, 2))
    markers = np.concatenate(lines) if lines else np.empty((0, 2))
    (left, bottom), (right, top) = _on_paper(axes, list(zip(axes.get_xlim(), axes.get_ylim(), strict=True)))
    written: list[_Box] = []

    def cost(box: _Box) -> float:
        outside = box.left < left or box.right > right or box.bottom < bottom or box.top > top
        others = sum(box.overlaps(other) for other in written)
        return box.count_inside(covered) + 10 * box.count_inside(markers, 4.0) + 20 * others + 30 * outside

    for one in series:
        for point, at, note in zip(one.points, _on_paper(axes, one.points), one.notes, strict=False):
            boxes = {place: _Box.next_to(at, place, note) for place in _PLACES}
            place = min(boxes, key=lambda place: cost(boxes[place]))
            written.append(boxes[place])
            axes.annotate(
                note,
                point,
                xytext=(_GAP * place[0], _GAP * place[1]),
                textcoords="offset points",
                ha=("right", "center", "left")[place[0] + 1],
                va=("top", "center", "bottom")[place[1] + 1],
                fontsize=_NOTE_SIZE,
            )


def _on_paper(axes: "Axes", points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return data coordinates in printer's points, (N, 2)."""
    return np.asarray(axes.transData.transform(points)) * (72 / axes.figure.dpi)


def _along(line: np.ndarray) -> np.ndarray:
    """Return points on a line, about 3 printer's points apart."""
    pieces = [
        start + np.linspace(0, 1, max(2, int(np.hypot(*(end - start)) / 3)))[:, None] * (end - start)
        for start, end in pairwise(line)
    ]
    return np.concatenate(pieces) if pieces else line


@dataclass(frozen=True)
class _Box:
    """The rectangle of a note, in printer's points."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def next_to(cls, at: np.ndarray, place: tuple[int, int], note: str) -> "_Box":
        width, height = 0.6 * _NOTE_SIZE * len(note), 1.1 * _NOTE_SIZE
        left = at[0] + _GAP * place[0] + width * (place[0] - 1) / 2
        bottom = at[1] + _GAP * place[1] + height * (place[1] - 1) / 2
        return cls(left, bottom, left + width, bottom + height)

    def count_inside(self, points: np.ndarray, margin: float = 0.0) -> int:
        """Count the points (N, 2) inside the box or within a margin of it."""
        x, y = points.T
        inside = (x > self.left - margin) & (x < self.right + margin)
        return int((inside & (y > self.bottom - margin) & (y < self.top + margin)).sum())

    def overlaps(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )
