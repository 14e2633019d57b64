"""Print records as a table, and plot them over guidance scales or checkpoints."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from vavae.io.files import written_whole
from vavae.metrics import MetricRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console


# Characters that fit above a panel.
_TITLE = 42


def distinct_names(paths: Iterable[str]) -> dict[str, str]:
    """Return the shortest ends of paths that are distinct, with equally many parts each: `run-a/generator`."""
    whole = dict.fromkeys(paths)
    for length in range(1, max((len(Path(path).parts) for path in whole), default=0) + 1):
        names = {path: str(Path(*Path(path).parts[-length:])) for path in whole}
        if len(set(names.values())) == len(names):
            return names
    return {path: path for path in whole}


def _checkpoint_names(records: Sequence[MetricRecord]) -> dict[str, str]:
    return {"": "", **distinct_names(r.protocol.checkpoint for r in records if r.protocol.checkpoint)}


def distinct_columns(records: Sequence[MetricRecord]) -> dict[str, list[str]]:
    """Return the cells that distinguish records of one name, by heading. Columns of one value are left out."""
    short = _checkpoint_names(records)
    optional: dict[str, list[str]] = {
        "checkpoint": [short[record.protocol.checkpoint or ""] for record in records],
        "guidance": [
            f"{record.protocol.guidance_scale:g}" if record.protocol.guidance_scale else "" for record in records
        ],
        "convention": [record.protocol.convention or "" for record in records],
        "network": [record.protocol.feature_network or "" for record in records],
    }
    return {name: cells for name, cells in optional.items() if len(set(cells)) > 1}


def wide_console() -> "Console":
    """Return a console that prints text as it is, 160 columns wide if the output is not a terminal."""
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)


def print_table(records: Sequence[MetricRecord]) -> None:
    """Print one line per record. Columns of one value are left out."""
    from rich.table import Table

    shown = distinct_columns(records)
    interval = any(record.interval for record in records)
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    if interval:
        table.add_column("95 % interval", justify="right")
    table.add_column("images", justify="right")
    for name in shown:
        table.add_column(name)
    for row, record in enumerate(records):
        value = f"{record.value:.4f}" if math.isfinite(record.value) else "not defined"
        cells = [record.name, f"{value} {record.unit}".strip()]
        if interval:
            cells.append(f"{record.interval[0]:.4f} to {record.interval[1]:.4f}" if record.interval else "")
        cells.append(f"{record.protocol.samples:,}")
        table.add_row(*cells, *(column[row] for column in shown.values()))
    wide_console().print(table)


def _panel(record: MetricRecord) -> tuple[str, str, str]:
    return record.name, record.protocol.feature_network or "", record.protocol.convention or ""


def _draw_scales(axes: "Axes", records: Sequence[MetricRecord], short: Mapping[str, str]) -> None:
    """Draw a line over guidance scales for each checkpoint."""
    checkpoints = list(dict.fromkeys(r.protocol.checkpoint or "" for r in records))
    for checkpoint in checkpoints:
        own = [r for r in records if (r.protocol.checkpoint or "") == checkpoint]
        line = sorted((r.protocol.guidance_scale or 1.0, r.value) for r in own)
        axes.plot(*zip(*line, strict=True), marker="o", label=short[checkpoint])
    axes.set_xlabel("guidance scale")
    if len(checkpoints) > 1:
        axes.legend(fontsize="small")


def _draw_checkpoints(axes: "Axes", records: Sequence[MetricRecord], short: Mapping[str, str]) -> None:
    """Draw a point for each checkpoint, without a line, since nothing is between them."""
    places = range(len(records))
    axes.plot(places, [r.value for r in records], marker="o", linestyle="none")
    axes.set_xticks(places, [short[r.protocol.checkpoint or ""] for r in records], rotation=20, ha="right")
    axes.set_xlim(-0.5, len(records) - 0.5)


def draw(records: Sequence[MetricRecord]) -> "Figure | None":
    """Draw one panel per metric, network and convention, over guidance scales, or over checkpoints of one scale.

    Returns:
        The figure, or None if there is only one scale and one checkpoint.
    """
    scales = {r.protocol.guidance_scale for r in records if r.protocol.guidance_scale is not None}
    if len(scales) < 2 and len({r.protocol.checkpoint for r in records}) < 2:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    short = _checkpoint_names(records)
    panels = list(dict.fromkeys(_panel(r) for r in records))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        chosen = [r for r in records if _panel(r) == panel]
        (_draw_scales if len(scales) > 1 else _draw_checkpoints)(axes, chosen, short)
        axes.ticklabel_format(axis="y", useOffset=False)
        direction = {True: "higher is better", False: "lower is better", None: ""}[chosen[0].higher_is_better]
        name, *details = panel
        detail = ", ".join(filter(None, details))
        axes.set_title(fill(f"{name} ({detail})" if detail else name, _TITLE), fontsize="medium")
        axes.set_ylabel(direction, fontsize="small")
    return figure


def plot(records: Sequence[MetricRecord], path: Path) -> bool:
    """Write the figure of `draw` as a PNG, and return whether there was one."""
    figure = draw(records)
    if figure is None:
        return False
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return True
