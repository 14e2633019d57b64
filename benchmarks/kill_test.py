"""Kill a run at random moments until it finishes, and compare it bit for bit with an uninterrupted run.

    python benchmarks/kill_test.py --kills 20 --images 4096

It runs both stages, and the joint training of both, with tiny networks and all random features: crops, flips, sampled
posteriors, label dropout, the discriminator. The moments are drawn over the images of the run; each kill is SIGKILL,
SIGTERM or SIGINT. It compares parameters, averages, optimizer state, and the text of `metrics.jsonl`. It writes
`benchmarks/results/<date>-kill-test.json`. The exit code is 0 if all is equal.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import torch

from record import RESULTS, started, write

HERE = Path(__file__).resolve().parents[1] / "tests" / "support"
sys.path.insert(0, str(HERE))

KILLED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)  # exit codes of a process that a signal ended


def start(
    stage: str, folder: Path, data: Path, images: int, errors: int | IO[bytes] = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start the run in a process whose standard error goes to `errors`."""
    arguments = [str(folder), *([str(data)] if stage == "transformer" else []), str(images)]
    code = f"import sys; import workers; workers.{stage}(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=HERE, stdout=subprocess.DEVNULL, stderr=errors
    )


def compare(one: Path, other: Path) -> list[str]:
    """Return the names of tensors and files that differ."""
    from vavae.training.checkpoint import CheckpointFolder

    states = [CheckpointFolder(folder / "checkpoints").load_newest() for folder in (one, other)]
    assert states[0] is not None
    assert states[1] is not None
    tensors, others = states[0][0], states[1][0]
    differing = sorted(tensors.keys() ^ others.keys())
    differing += [name for name in tensors.keys() & others.keys() if not torch.equal(tensors[name], others[name])]
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        differing.append("metrics.jsonl")
    return differing


def logged(folder: Path) -> int:
    """Return the images of the last line of the log, 0 without a log."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["images"])
    except (OSError, ValueError, IndexError):
        return 0


def kill_until_done(
    stage: str, folder: Path, data: Path, images: int, kills: int, seed: int
) -> list[dict[str, object]]:
    """Start and kill the run until it finishes; return signal and logged images of every kill."""
    chance = random.Random(seed)
    targets = sorted(chance.sample(range(1, images * 9 // 10), kills))
    hits: list[dict[str, object]] = []
    while targets:
        process = start(stage, folder, data, images)
        target = max(targets.pop(0), logged(folder) + 1)  # every run makes progress before it is killed
        while process.poll() is None and logged(folder) < target:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.2))  # also kill between lines of the log
        number = chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        process.send_signal(number)
        ended = process.wait()
        if ended == 0:
            break
        if ended not in KILLED:
            raise AssertionError(f"the run ended before the kill with exit code {ended}")
        hits.append({"signal": number.name, "images": logged(folder)})
    assert start(stage, folder, data, images).wait() == 0, "the run failed"
    return hits


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stages", nargs="+", default=["tokenizer", "transformer", "joint"])
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    from tiny_runs import write_latents

    record, results = started("kill_test.py"), []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = write_latents(root / "data")
        for stage in options.stages:
            began = time.monotonic()
            assert start(stage, root / f"{stage}-whole", data, options.images).wait() == 0
            killed = root / f"{stage}-killed"
            hits = kill_until_done(stage, killed, data, options.images, options.kills, options.seed)
            differing = compare(root / f"{stage}-whole", killed)
            result = {"stage": stage, "images": options.images, "kills": hits, "differing": differing}
            results.append(result | {"seconds": round(time.monotonic() - began, 1)})
            print(f"{stage}: {len(hits)} kills, {len(differing)} differences {differing[:3]}", flush=True)
    write(record | {"results": results}, options.output, "kill-test")
    return int(any(result["differing"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
