"""The state of a frontier's cells in the terminal: a table there, plain lines elsewhere."""

import enum
import sys
from collections import Counter
from collections.abc import Sequence

from vavae.frontier.grid import Unit


class State(enum.Enum):
    """Of one unit of work."""

    DONE = "done"
    RUNNING = "running"
    ELSEWHERE = "in another process"
    FAILED = "failed"
    WAITING = "waiting"


_STYLES = {
    State.DONE: "green",
    State.RUNNING: "bold",
    State.FAILED: "red",
    State.ELSEWHERE: "cyan",
    State.WAITING: "dim",
}


def show(rows: Sequence[tuple[Unit, State, str]], now: Unit | None) -> None:
    """Show all units with their states and numbers.

    In a terminal: the whole table, anew before each unit (its progress bars come below). Elsewhere: one line.

    Args:
        rows: Units with states and what else is to be said.
        now: What begins; None at the end.
    """
    counts = Counter(state for _, state, _ in rows)
    summary = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    if not sys.stdout.isatty():
        print(f"-- {now.label} ({summary})" if now is not None else f"-- {summary}", flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=summary, title_justify="left", title_style="bold")
    for name in ("work", "cell", "state", "numbers"):
        table.add_column(name)
    for unit, state, said in rows:
        table.add_row(unit.kind, unit.cell.label, state.value, said, style=_STYLES[state])
    console = Console(highlight=False)
    console.clear()
    console.print(table)
