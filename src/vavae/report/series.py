"""Figures of series of points, such as one metric over another, in colours that the page decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vavae.report.figures import _CLASSES, _DASHES, _SURFACE, MARKERS, _svg, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: Heads it in the legend.
        points: (x, y) in order.
        notes: A few letters beside each point; empty for none.
        spreads: Half length of each point's vertical bar; None for none. Empty for no bars at all.
        style: Number of its colour and marker.
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
    """Lines with markers, one per series; SVG. Colours are those of the classes.

    Args:
        series: What to draw; those without points are left out.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        log_x: Logarithmic horizontal axis, where the points span more than a factor of 3.
        log_y: The same of the vertical axis.
        from_zero: Let the horizontal axis begin at 0.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.135, 0.15, 0.84, 0.82))
        # Over a small range a logarithmic axis has hardly a tick.
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

    return _svg(draw, 5.2, 3.5)


def _wide(series: Sequence[Series], coordinate: int) -> bool:
    values = [point[coordinate] for one in series for point in one.points]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 3


def _few_ticks(axis: object) -> None:
    """Ticks at 1, 2 and 5: a small range of a logarithmic axis would have none or one at the tens alone."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


def _draw(axes: "Axes", one: Series) -> None:
    colour, marker = _CLASSES[one.style % len(_CLASSES)], MARKERS[one.style % len(MARKERS)]
    xs, ys = zip(*one.points, strict=True)
    axes.plot(
        xs,
        ys,
        color=colour,
        marker=marker,
        markersize=6.5,
        markeredgecolor=_SURFACE,
        markeredgewidth=0.6,
        linewidth=1.6,
        linestyle=_DASHES[one.style % len(_DASHES)],
        label=one.name,
    )
    for (px, py), spread in zip(one.points, one.spreads, strict=False):
        if spread:
            axes.plot((px, px), (py - spread, py + spread), color=colour, linewidth=1.2)
    for (px, py), note in zip(one.points, one.notes, strict=False):
        axes.annotate(
            note,
            (px, py),
            xytext=(5, 6 if one.style % 2 == 0 else -12),
            textcoords="offset points",
            fontsize=9,
            color=colour,
        )
