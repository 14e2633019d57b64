"""Draw with Matplotlib to SVG in colors of the page, for light and dark themes.

Matplotlib draws with placeholder colors; in the SVG each becomes a CSS variable with a fallback, as in
`var(--ink, #525c69)`. Inside a page a figure has the page's variables and font.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, RULE, SURFACE = "#010101", "#010102", "#010103"
_RUNS = ("#1f62c4", "#c2570c")
_CLASSES = (
    *("#3b6fb6", "#d9771e", "#2f8a4c", "#c8323c", "#7d57b0"),
    *("#8a5a44", "#cf5fa4", "#6b7480", "#9a8f12", "#1695a8"),
)
RUN_COLORS = tuple(f"#0102{i:02x}" for i in range(len(_RUNS)))
CLASS_COLORS = tuple(f"#0103{i:02x}" for i in range(len(_CLASSES)))
VARIABLES = {
    INK: ("--figure-ink", "#525c69"),
    RULE: ("--rule", "#dfe3e8"),
    SURFACE: ("--surface", "#ffffff"),
    **{key: (f"--run-{i}", color) for i, (key, color) in enumerate(zip(RUN_COLORS, _RUNS, strict=True))},
    **{key: (f"--class-{i}", color) for i, (key, color) in enumerate(zip(CLASS_COLORS, _CLASSES, strict=True))},
}
DASHES = ("solid", (0, (5, 1.6)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
MARKERS = ("o", "^", "s", "D", "v")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vavae",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "path.simplify": True,
    "path.simplify_threshold": 0.4,
}


def short(value: float) -> str:
    """Return a number for an axis: 20000 is "20k"."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def set_ticks(axis: "Axis", multiples: Sequence[int] = ()) -> None:
    """Set few ticks; with `multiples` the axis is logarithmic, and they are at these multiples of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if multiples:
        axis.set_major_locator(LogLocator(subs=multiples))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]
    axis.set_major_formatter(lambda value, _: short(value))


def draw_svg(draw: Callable[["Figure"], None], width: float, height: float) -> str:
    """Draw on a new figure of `width` x `height` inches of 72 CSS pixels; return its SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height))
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _clean(buffer.getvalue())


def _clean(svg: str) -> str:
    """Drop prologue, metadata and names of groups; shorten numbers; replace the placeholder colors."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # A style element applies to the whole page; attributes apply to this figure.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("<svg", '<svg stroke-linejoin="round" stroke-linecap="butt"', 1)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    # All figures number their groups in the same way; ids must be unique in a page, and no element refers to these.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r' (d|x|y|transform)="[^"]*"', _rounded, svg)
    for placeholder, (variable, color) in VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable}, {color})")
    return svg


def _rounded(attribute: re.Match[str]) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), attribute[0])
