"""Figures as SVG whose colours the page decides, so that they read on light and on dark.

Matplotlib draws with placeholder colours; in the SVG each becomes a CSS variable with a fallback, as in
`var(--ink, #525c69)`. Inside a page a figure follows the page's variables and font; for a file of its own, `standalone`
puts the fallbacks (made for white) in their place.
"""

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vavae.report.curves import Panel, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _RULE, _SURFACE = "#010101", "#010102", "#010103"
_RUNS = tuple(f"#0102{i:02x}" for i in range(4))
_CLASSES = tuple(f"#0103{i:02x}" for i in range(10))
_VARIABLES = {
    _INK: ("--figure-ink", "#525c69"),
    _RULE: ("--rule", "#dfe3e8"),
    _SURFACE: ("--surface", "#ffffff"),
    **{
        key: (f"--run-{i}", colour)
        for i, (key, colour) in enumerate(zip(_RUNS, ("#1f62c4", "#c2570c", "#2f8a4c", "#8250b8"), strict=True))
    },
    **{
        key: (f"--class-{i}", colour)
        for i, (key, colour) in enumerate(
            zip(
                _CLASSES,
                (
                    *("#3b6fb6", "#d9771e", "#2f8a4c", "#c8323c", "#7d57b0"),
                    *("#8a5a44", "#cf5fa4", "#6b7480", "#9a8f12", "#1695a8"),
                ),
                strict=True,
            )
        )
    },
}
_DASHES = ("solid", (0, (5, 1.6)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
MARKERS = ("o", "^", "s", "D", "v")
MARKER_SIGNS = ("●", "▲", "■", "◆", "▼")
# Equal areas for the eye.
_MARKER_SCALES = {"o": 1.0, "^": 1.08, "s": 0.88, "D": 0.8, "v": 1.08}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vavae",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "path.simplify": True,
    "path.simplify_threshold": 0.4,
}


def curves_figure(panel: Panel) -> str:
    """One term against images seen, runs overlaid: thin as logged, bold smoothed; SVG.

    The axis is logarithmic where `Panel.logarithmic` says so, and cut to what the curves do after their first
    and wildest values.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.125, 0.13, 0.85, 0.84))
        logarithmic = panel.logarithmic
        spans = []
        for curve in panel.curves:
            colour = _RUNS[curve.run % len(_RUNS)]
            trend = smoothed(curve.values, logarithmic)
            alone = _isolated(curve.values)
            axes.plot(curve.images, curve.values, color=colour, linewidth=0.8, alpha=0.28)
            axes.plot(curve.images, trend, color=colour, linewidth=1.9, linestyle=_DASHES[curve.run % len(_DASHES)])
            axes.plot(curve.images[alone], curve.values[alone], color=colour, marker="o", markersize=4, linestyle="")
            finite = curve.values[np.isfinite(curve.values)]
            spans.append((*np.percentile(finite, (1, 99)), np.nanmin(trend), np.nanmax(trend)))
        _limit(axes, min(map(min, spans)), max(map(max, spans)), logarithmic)
        end = max(float(curve.images[-1]) for curve in panel.curves)
        axes.set_xlim(0, end if end > 0 else 1)
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.xaxis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]
        axes.grid(False, axis="x")
        axes.spines["left"].set_visible(False)

    return _svg(draw, 4.3, 2.7)


def scatter_figure(
    points: NDArray[np.floating], labels: NDArray[np.integer] | Sequence[int] | None, run: int = 0
) -> str:
    """Points in the plane, one colour and marker per class (see `class_style`); SVG.

    Args:
        points: (M, 2); points that are not finite are left out.
        labels: (M,) integers, or None for one colour, that of the run.
        run: Number of the run.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.set_axis_off()
        finite = np.isfinite(points).all(axis=1)
        numbers = np.zeros(len(points), dtype=np.int64) if labels is None else np.asarray(labels)
        size = float(np.clip(9 - np.log10(max(len(points), 1)) * 1.7, 2.5, 7))
        for label in np.unique(numbers):
            chosen = points[finite & (numbers == label)]
            colour, marker = (_RUNS[run % len(_RUNS)], "o") if labels is None else class_style(int(label))
            axes.plot(
                chosen[:, 0],
                chosen[:, 1],
                linestyle="",
                marker=marker,
                color=colour,
                markersize=size * _MARKER_SCALES[marker],
                markeredgecolor=_SURFACE,
                markeredgewidth=0.4,
            )
        axes.margins(0.03)

    return _svg(draw, 4.6, 4.0)


def class_style(label: int) -> tuple[str, str]:
    """Placeholder colour and marker of a class: ten colours, and another marker for each next one."""
    return _CLASSES[label % len(_CLASSES)], MARKERS[label % len(MARKERS)]


def _limit(axes: "Axes", low: float, high: float, logarithmic: bool) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    if logarithmic:
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        margin = (high / low) ** 0.06
        axes.set_ylim(low / margin, high * margin)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 150 else (1,)))
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        axes.minorticks_off()
        return
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]


def _isolated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Finite values with none beside them: no line shows these."""
    finite = np.concatenate(([False], np.isfinite(values), [False]))
    return finite[1:-1] & ~finite[:-2] & ~finite[2:]


def short(value: float) -> str:
    """A number for an axis: 20000 is "20k"."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def _styled() -> AbstractContextManager:
    import matplotlib

    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]


def _svg(draw: Callable[["Figure"], None], width: float, height: float) -> str:
    """Draw on a fresh figure of `width` x `height` inches of 72 CSS pixels."""
    from matplotlib.figure import Figure

    with _styled():
        figure = Figure(figsize=(width, height))
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _clean(buffer.getvalue())


def _clean(svg: str) -> str:
    """Leave what a browser needs: no prologue, metadata or names of groups; short numbers; colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # A style element in a page holds for the whole page; as attributes the same holds for this figure.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("<svg", '<svg stroke-linejoin="round" stroke-linecap="butt"', 1)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # Groups are numbered alike in every figure; ids must be unique in a page, and nothing refers to these.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r' (d|x|y|transform)="[^"]*"', _rounded, svg)
    for placeholder, (variable, colour) in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable}, {colour})")
    return svg


def standalone(svg: str, title: str, legend: Sequence[tuple[int, str, str]] = ()) -> str:
    """A figure as a file of its own: under its title and legend, on white, in colours that no page decides.

    Args:
        svg: The figure, as this module and `series` draw them.
        title: Heading.
        legend: Colour number, sign and name of each series.
    """
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None
    width, height = float(found[1]), float(found[2])
    above = 44 if legend else 26
    colours = [colour for variable, colour in _VARIABLES.values() if variable.startswith("--class-")]
    names = "".join(
        f'<tspan dx="{14 if number else 0}" fill="{colours[colour]}">{sign}</tspan><tspan dx="4">{escape(name)}</tspan>'
        for number, (colour, sign, name) in enumerate(legend)
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


def _rounded(attribute: re.Match[str]) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), attribute[0])
