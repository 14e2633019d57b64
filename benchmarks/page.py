"""Write docs/benchmarks.md from the newest results of each kind under benchmarks/results.

    python benchmarks/page.py

A test compares the page with the results: run this after adding a result.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
Record = dict[str, Any]


def newest(results: Path) -> dict[str, tuple[Path, Record]]:
    """Return the newest file `<date>-<kind>.json` of each kind with its content."""
    found = {}
    for path in sorted(results.glob("????-??-??-*.json")):
        found[path.stem[11:]] = path, json.loads(path.read_text())
    return found


def table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield a Markdown table whose columns after the first are numbers."""
    yield "| " + " | ".join(heads) + " |"
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def circumstances(record: Record) -> str:
    """Return one sentence on date, machine and settings of a result."""
    parts = [record["date"]]
    versions = record.get("versions", {})
    if "gpu" in versions:
        parts.append(versions["gpu"])
    elif "machine" in record:
        parts.append(str(record["machine"]))
    if "threads" in record:
        parts.append(f"{record['threads']} threads")
    parts += [str(record[name]) for name in ("scale", "precision") if name in record]
    if "batch" in record:
        parts.append(f"batch {record['batch']}")
    if "torch" in versions:
        parts.append(f"torch {versions['torch']}")
    if "load_average" in record:
        load = record["load_average"]
        parts.append(f"load average {load['before'][0]:.1f} before, {load['after'][0]:.1f} after")
    return ", ".join(parts) + "."


def paired(record: Record) -> Iterator[str]:
    """Yield a table of ratios to the plain implementation."""
    yield "Time of our step divided by the time of a plain implementation, in pairs in one process; median over pairs."
    yield ""
    rows = []
    for result in record["results"]:
        ratios = result["ratios"]
        reached = "reached" if result["ratio"] <= result["target"] else "missed"
        rows.append(
            [
                result["name"],
                f"{result['ratio']:.3f}",
                f"{min(ratios):.3f} to {max(ratios):.3f}",
                str(len(ratios)),
                f"{result['target']:g}, {reached}",
                *(f"{result[key]:.0%}" if key in result else "" for key in ("of_peak", "products")),
            ]
        )
    limits = ["our FLOP/s of the machine's", "our time in products"]
    yield from table(["measured", "ours / plain", "range", "pairs", "aim", *limits], rows)


def kill_test(record: Record) -> Iterator[str]:
    """Yield a table of runs that were killed repeatedly."""
    yield "Runs killed at random moments and resumed, compared bit for bit with an uninterrupted run."
    yield ""
    rows = []
    for result in record["results"]:
        signals = [hit["signal"] for hit in result["kills"]]
        counted = ", ".join(f"{signals.count(name)} {name}" for name in sorted(set(signals)))
        differing = ", ".join(result["differing"]) or "nothing"
        rows.append([result["stage"], f"{result['images']:,}", f"{len(signals)} ({counted})", differing])
    yield from table(["stage", "images", "kills", "differs"], rows)


def growth(record: Record) -> Iterator[str]:
    """Yield a table of CPU seconds and memory at three sizes."""
    yield "CPU seconds and peak memory at three sizes; work and exponent are explained in the script."
    yield ""
    rows = []
    for result in record["results"]:
        sizes, seconds, memory = (
            " / ".join(shown(one[name]) for one in result["sizes"]) for name in ("size", "seconds", "memory_mb")
        )
        rows.append([result["stage"], sizes, shown(result["work"]), seconds, memory, f"{result['exponent']:.2f}"])
    yield from table(["stage", "sizes", "work grows", "seconds", "MB", "exponent"], rows)


def numbers(record: Record) -> Iterator[str]:
    """Yield a table of any other list of results."""
    results = [entry for entry in record["results"] if isinstance(entry, dict)]
    names = list(dict.fromkeys(key for entry in results for key, value in entry.items() if plain(value)))
    yield from table(
        [name.replace("_", " ") for name in names], [[shown(entry.get(name)) for name in names] for entry in results]
    )


def plain(value: object) -> bool:
    """Return whether a value fits into a cell."""
    return isinstance(value, str | int | float) or value is None


def shown(value: object) -> str:
    """Format a number with four digits; return words unchanged."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


def section(kind: str, path: Path, record: Record) -> Iterator[str]:
    """Yield heading, circumstances, command and table of one result."""
    yield f"## {kind.replace('-', ' ').capitalize().replace('Gpu', 'GPU:')}"
    yield ""
    yield circumstances(record)
    yield ""
    if "command" in record:
        yield from ("```bash", record["command"], "```", "")
    form: Callable[[Record], Iterator[str]] = numbers
    if kind.startswith("paired"):
        form = paired
    elif kind.startswith("kill-test"):
        form = kill_test
    elif kind == "growth":
        form = growth
    yield from form(record)
    yield ""
    if "note" in record:
        yield from (record["note"], "")
    yield f"[{path.name}](../benchmarks/results/{path.name})"
    yield ""


def page(results: Path = RESULTS) -> str:
    """Return the whole page."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python benchmarks/page.py` from the newest result of each kind; do not edit. What each script",
        "measures, and what has not run on a GPU yet: [benchmarks/README.md](../benchmarks/README.md).",
        "",
    ]
    for kind, (path, record) in sorted(newest(results).items()):
        if isinstance(record.get("results"), list):
            lines += section(kind, path, record)
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> int:
    PAGE.write_text(page())
    print(f"page: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
