"""The dated JSON of a benchmark, which `page.py` shows."""

import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def cpu_name() -> str:
    """Return the processor's name from /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine() -> str:
    """Return the processor and its number of cores."""
    return f"{cpu_name()}, {os.cpu_count()} cores"


def started(script: str) -> dict[str, Any]:
    """Return date, command, versions, machine and load of a call of `script`, without its folder of results."""
    from vavae.training.run_log import versions

    words = sys.argv[1:]
    if "--output" in words:
        place = words.index("--output")
        del words[place : place + 2]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", f"benchmarks/{script}", *words]),
        "versions": versions(),
        "machine": machine(),
        "load_average": {"before": os.getloadavg()},
    }


def write(record: dict[str, Any], folder: Path, kind: str) -> None:
    """Write the record of `started`, with its results and the load now, as `<date>-<kind>.json`."""
    record["load_average"]["after"] = os.getloadavg()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['date']}-{kind}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"results: {path}")
