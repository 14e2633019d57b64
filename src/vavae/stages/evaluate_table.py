"""Records as a table, and as a plot over guidance scales or checkpoints."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from vavae.files import written_whole
from vavae.metrics import MetricRecord


def _short(path: str | None) -> str:
    """The last two parts of a path: `…/run-a/generator`."""
    return "/".join(Path(path).parts[-2:]) if path else ""


def print_table(records: Sequence[MetricRecord]) -> None:
    """One line per record; columns that say the same everywhere are left out."""
    from rich.console import Console
    from rich.table import Table

    optional: dict[str, list[str]] = {
        "checkpoint": [_short(record.protocol.checkpoint) for record in records],
        "guidance": [
            f"{record.protocol.guidance_scale:g}" if record.protocol.guidance_scale else "" for record in records
        ],
        "convention": [record.protocol.convention or "" for record in records],
        "network": [record.protocol.feature_network or "" for record in records],
    }
    shown = {name: cells for name, cells in optional.items() if len(set(cells)) > 1}
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
    # Elsewhere than in a terminal nothing limits the width.
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def plot(records: Sequence[MetricRecord], path: Path) -> bool:
    """One panel per metric over guidance scales, a line per checkpoint; over checkpoints where there is one scale.

    Returns:
        Whether there was anything to plot: several scales or several checkpoints.
    """
    scales = sorted({r.protocol.guidance_scale for r in records if r.protocol.guidance_scale is not None})
    checkpoints = list(dict.fromkeys(r.protocol.checkpoint for r in records))
    if len(scales) < 2 and len(checkpoints) < 2:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((r.name, r.protocol.feature_network or "") for r in records))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, network) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        chosen = [r for r in records if (r.name, r.protocol.feature_network or "") == (name, network)]
        if len(scales) > 1:
            for checkpoint in checkpoints:
                line = sorted(
                    (r.protocol.guidance_scale or 1.0, r.value) for r in chosen if r.protocol.checkpoint == checkpoint
                )
                axes.plot(*zip(*line, strict=True), marker="o", label=_short(checkpoint))
            axes.set_xlabel("guidance scale")
            if len(checkpoints) > 1:
                axes.legend(fontsize="small")
        else:
            labels = [_short(r.protocol.checkpoint) for r in chosen]
            axes.plot(range(len(chosen)), [r.value for r in chosen], marker="o")
            axes.set_xticks(range(len(chosen)), labels, rotation=20, ha="right")
        axes.ticklabel_format(axis="y", useOffset=False)
        direction = {True: ", higher is better", False: ", lower is better", None: ""}[chosen[0].higher_is_better]
        axes.set_title(f"{name} ({network})" if network else name, fontsize="medium")
        axes.set_ylabel(f"{name}{direction}", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return True
