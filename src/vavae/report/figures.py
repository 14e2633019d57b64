"""Figures as SVG whose colours the page decides, so that they read on light and on dark.

Matplotlib draws with placeholder colours; in the SVG each becomes a CSS variable with a fallback, as in
`var(--ink, #3a424d)`. Alone, a figure shows its fallbacks (made for white); inside a page it follows the
page's variables and font.
"""

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vavae.report.curves import Panel, smoothed
from vavae.report.glossary import Better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _RULE, _SURFACE, _GOOD, _BAD = "#010101", "#010102", "#010103", "#010104", "#010105"
_RUNS = tuple(f"#0102{i:02x}" for i in range(4))
_CLASSES = tuple(f"#0103{i:02x}" for i in range(10))
_VARIABLES = {
    _INK: ("--figure-ink", "#565f6b"),
    _RULE: ("--rule", "#dfe3e8"),
    _SURFACE: ("--surface", "#ffffff"),
    _GOOD: ("--good", "#1a7f4b"),
    _BAD: ("--bad", "#b4400f"),
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
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vavae",
    "font.size": 10,
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
        axes = figure.add_axes((0.125, 0.125, 0.845, 0.84))
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
        axes.xaxis.set_major_formatter(_short)
        axes.xaxis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]
        axes.grid(False, axis="x")
        axes.spines["left"].set_visible(False)

    return _svg(draw, 4.7, 2.9)


def scatter_figure(points: NDArray[np.floating], labels: NDArray[np.integer] | Sequence[int] | None) -> str:
    """Points in the plane, one colour and marker per class (see `class_key`); SVG.

    Args:
        points: (M, 2).
        labels: (M,) integers, or None for one colour.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.set_axis_off()
        finite = np.isfinite(points).all(axis=1)
        numbers = np.zeros(len(points), dtype=np.int64) if labels is None else np.asarray(labels)
        size = float(np.clip(9 - np.log10(max(len(points), 1)) * 1.7, 2.5, 7))
        for label in np.unique(numbers):
            chosen = points[finite & (numbers == label)]
            colour, marker = (_RUNS[0], "o") if labels is None else class_style(int(label))
            axes.plot(
                *(chosen[:, 0], chosen[:, 1]),
                **{"linestyle": "", "marker": marker, "color": colour, "markersize": size},
                markeredgecolor=_SURFACE,
                markeredgewidth=0.5,
            )
        axes.margins(0.03)

    return _svg(draw, 4.6, 4.0)


def class_style(label: int) -> tuple[str, str]:
    """Placeholder colour and marker of a class: ten colours, and another marker for each next one."""
    return _CLASSES[label % len(_CLASSES)], MARKERS[label % len(MARKERS)]


def comparison_figure(rows: Sequence[tuple[str, float, Better]]) -> str:
    """Each metric of one run as a multiple of another run's; SVG.

    A hollow dot at 1 is the other run, the filled dot this one, on a logarithmic axis; the line between them
    is drawn as good or bad where the metric has a better direction.

    Args:
        rows: Name, ratio (positive) and better direction of each metric.
    """

    def draw(figure: "Figure") -> None:
        height = figure.get_figheight()
        bottom = 0.36 / height
        axes = figure.add_axes((0.03, bottom, 0.94, 1 - bottom - 0.02 / height))
        extent = max([abs(float(np.log2(ratio))) for _, ratio, _ in rows] + [0.1]) * 1.12
        axes.set_xlim(-extent, extent)
        axes.set_ylim(len(rows) - 0.35, -0.62)
        axes.axvline(0, color=_INK, linewidth=0.8)
        for row, (name, ratio, better) in enumerate(rows):
            position = float(np.log2(ratio))
            gain = {"higher": position > 0, "lower": position < 0}.get(better or "")
            colour = _INK if gain is None or position == 0 else _GOOD if gain else _BAD
            axes.plot([0, position], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
            axes.plot([0], [row], "o", color=_SURFACE, markeredgecolor=_INK, markersize=6.5)
            axes.plot([position], [row], "o", color=colour, markersize=8)
            hint = {"higher": " ↑", "lower": " ↓"}.get(better or "", "")
            for x, text, align in ((0.0, name + hint, "left"), (1.0, f"× {ratio:.3g}", "right")):
                label = axes.text(
                    x, row - 0.3, text, ha=align, va="center", transform=axes.get_yaxis_transform(), fontsize=10
                )
                label.set_parse_math(False)
        ticks = _ratio_ticks(extent)
        axes.set_xticks(np.log2(ticks), [f"× {tick:g}" for tick in ticks])
        axes.yaxis.set_visible(False)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)

    return _svg(draw, 5.6, 0.55 * len(rows) + 0.5)


def _ratio_ticks(extent: float) -> list[float]:
    """Ratios on both sides of 1 that fit into ± `extent` powers of two, few and round."""
    for step in (1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0, 100.0):
        if np.log2(step) * 3 > extent:
            break
    count = max(1, int(extent / np.log2(step)))
    return [float(f"{step**k:.3g}") for k in range(-count, count + 1)]


def _limit(axes: "Axes", low: float, high: float, logarithmic: bool) -> None:
    axes.yaxis.set_major_formatter(_short)
    if logarithmic:
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        margin = (high / low) ** 0.06
        axes.set_ylim(low / margin, high * margin)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 150 else (1,)))
        axes.yaxis.set_major_formatter(_short)
        axes.minorticks_off()
        return
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]


def _isolated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Finite values with none beside them: no line shows these."""
    finite = np.concatenate(([False], np.isfinite(values), [False]))
    return finite[1:-1] & ~finite[:-2] & ~finite[2:]


def _short(value: float, _position: int | None = None) -> str:
    """20000 -> 20k."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"


def _styled() -> AbstractContextManager:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


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
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # Groups are numbered alike in every figure; ids must be unique in a page, and nothing refers to these.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r' (d|x|y|transform)="[^"]*"', _rounded, svg)
    for placeholder, (variable, colour) in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable}, {colour})")
    return svg


def _rounded(attribute: re.Match[str]) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), attribute[0])
