"""Loss curves and scatter plots as SVG, and figures as files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from vavae.report.curves import Panel, smoothed
from vavae.report.svg import CLASS_COLORS, DASHES, MARKERS, RUN_COLORS, SURFACE, VARIABLES, draw_svg, set_ticks, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIGNS = ("●", "▲", "■", "◆", "▼")  # of `MARKERS`, for legends
_MARKER_SCALES = {"o": 1.0, "^": 1.08, "s": 0.88, "D": 0.8, "v": 1.08}  # for equal visible areas


def curves_figure(panel: Panel) -> str:
    """Draw one term against images seen, runs overlaid: thin as logged, bold smoothed; return the SVG.

    The axis is logarithmic if `Panel.logarithmic`, and leaves out the lowest and highest hundredth of the values.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.125, 0.13, 0.85, 0.84))
        logarithmic = panel.logarithmic
        spans = []
        for curve in panel.curves:
            color = RUN_COLORS[curve.run % len(RUN_COLORS)]
            trend = smoothed(curve.values, logarithmic)
            alone = _isolated(curve.values)
            axes.plot(curve.images, curve.values, color=color, linewidth=0.8, alpha=0.28)
            axes.plot(curve.images, trend, color=color, linewidth=1.9, linestyle=DASHES[curve.run % len(DASHES)])
            axes.plot(curve.images[alone], curve.values[alone], color=color, marker="o", markersize=4, linestyle="")
            finite = curve.values[np.isfinite(curve.values)]
            spans.append((*np.percentile(finite, (1, 99)), np.nanmin(trend), np.nanmax(trend)))
        _limit(axes, min(map(min, spans)), max(map(max, spans)), logarithmic)
        end = max(float(curve.images[-1]) for curve in panel.curves)
        axes.set_xlim(0, end if end > 0 else 1)
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.xaxis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]
        axes.grid(False, axis="x")
        axes.spines["left"].set_visible(False)

    return draw_svg(draw, 4.3, 2.7)


def scatter_figure(points: NDArray[np.floating], labels: NDArray[np.integer] | Sequence[int]) -> str:
    """Draw points in the plane, one color and marker per class; return the SVG.

    Args:
        points: (M, 2); points that are not finite are left out.
        labels: (M,) integers. Colors repeat after ten classes, markers after five.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.set_axis_off()
        finite = np.isfinite(points).all(axis=1)
        size = float(np.clip(9 - np.log10(max(len(points), 1)) * 1.7, 2.5, 7))
        for label in np.unique(np.asarray(labels)):
            chosen = points[finite & (np.asarray(labels) == label)]
            marker = MARKERS[label % len(MARKERS)]
            axes.plot(
                chosen[:, 0],
                chosen[:, 1],
                linestyle="",
                marker=marker,
                color=CLASS_COLORS[label % len(CLASS_COLORS)],
                markersize=size * _MARKER_SCALES[marker],
                markeredgecolor=SURFACE,
                markeredgewidth=0.4,
            )
        axes.margins(0.03)

    return draw_svg(draw, 4.6, 4.0)


def _limit(axes: "Axes", low: float, high: float, logarithmic: bool) -> None:
    if logarithmic:
        axes.set_yscale("log")
        margin = (high / low) ** 0.06
        axes.set_ylim(low / margin, high * margin)
        set_ticks(axes.yaxis, (1, 2, 5) if high / low < 150 else (1,))
        axes.minorticks_off()
    else:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
        set_ticks(axes.yaxis)


def _isolated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Find finite values without a finite neighbor, which no line shows."""
    finite = np.concatenate(([False], np.isfinite(values), [False]))
    return finite[1:-1] & ~finite[:-2] & ~finite[2:]


@dataclass(frozen=True)
class LegendLine:
    """A series or a class in a legend: number of its color, marker, name."""

    color: int
    sign: str
    name: str

    @classmethod
    def of(cls, number: int, name: str) -> Self:
        """Return the line of a style or class; colors and markers repeat as in the figures."""
        return cls(number % len(CLASS_COLORS), _SIGNS[number % len(_SIGNS)], name)


def standalone(svg: str, title: str, legend: Sequence[LegendLine] = ()) -> str:
    """Return a figure as a file: with title and legend, on white, in fixed colors.

    Args:
        svg: A figure of this module or `series`.
        title: Heading.
        legend: Its series.
    """
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None
    width, height = float(found[1]), float(found[2])
    above = 44 if legend else 26
    names = "".join(
        f'<tspan dx="{14 if number else 0}" fill="{VARIABLES[CLASS_COLORS[line.color]][1]}">{line.sign}</tspan>'
        f'<tspan dx="4">{escape(line.name)}</tspan>'
        for number, line in enumerate(legend)
    )
    plain = re.sub(r"var\(--[\w-]+, (#[0-9a-f]{6})\)", r"\1", svg)
    inner = plain.replace("<svg", f'<svg x="0" y="{above}" width="{found[1]}" height="{found[2]}"', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {found[1]} {height + above:g}" '
        f'width="{width * 1.5:g}" height="{(height + above) * 1.5:g}" font-family="sans-serif" fill="#1b222c">\n'
        '<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f'<text x="10" y="19" font-size="13" font-weight="bold">{escape(title)}</text>\n'
        f'<text x="10" y="38" font-size="11">{names}</text>\n{inner}\n</svg>\n'
    )
