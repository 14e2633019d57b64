"""Let the disk be full, and kill the process, at every point where a command writes; then the same command must finish.

    python benchmarks/write_points.py

Each command has tiny inputs. An undisturbed call counts its write points (`tests/support/write_faults.py`). For each
point a new folder gets a disk that is full from there on: the call must end in one line, and the next one must end
with the same files as an undisturbed call. Then SIGKILL at each point, and at two random points in a row. It writes
`benchmarks/results/<date>-write-points.json`; the exit code is 1 if anything differs or fails.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from tiny_commands import COMMANDS, Rehearsal, rehearse, use_tiny_networks, write_inputs

from record import RESULTS, started, write


def attack(rehearsal: Rehearsal, pairs: int, draw: random.Random) -> dict[str, Any]:
    """Return the row of one command."""
    numbers = range(1, len(rehearsal.points) + 1)
    twice = [(draw.choice(numbers), draw.choice(numbers)) for _ in range(pairs)]
    tried = [("full disk", (number,), rehearsal.full_at) for number in numbers]
    tried += [("kill", kills, rehearsal.killed_at) for kills in [*((number,) for number in numbers), *twice]]
    bad = 0
    for fault, where, meet in tried:
        problem = meet(*where)
        if problem is not None:
            bad += 1
            print(f"{rehearsal.name}: {fault} at {[rehearsal.points[n - 1] for n in where]}: {problem}", flush=True)
    return {
        "command": rehearsal.name,
        "write_points": len(numbers),
        "full_disks": len(numbers),
        "kills": len(numbers),
        "two_kills": pairs,
        "differ_or_fail": bad,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--pairs", type=int, default=10, help="how often each command is killed twice in a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    use_tiny_networks()
    record = started("write_points.py") | {"results": []}
    with tempfile.TemporaryDirectory() as place:
        inputs = write_inputs(Path(place, "inputs"))
        for name in options.commands:
            rehearsal = rehearse(name, Path(place, "output"), inputs)
            record["results"].append(attack(rehearsal, options.pairs, random.Random(options.seed)))
            print(record["results"][-1], flush=True)
            write(record, options.output, "write-points")
    return int(any(row["differ_or_fail"] for row in record["results"]))


if __name__ == "__main__":
    sys.exit(main())
