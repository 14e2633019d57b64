"""Kill a run at random moments until it is finished, and compare it bit for bit with a run that nobody touched.

    python benchmarks/kill_test.py --kills 20 --images 4096

Both stages, tiny networks, everything random switched on (crops, flips, sampled posteriors, label dropout, the
discriminator). Each kill is SIGKILL, SIGTERM or SIGINT after a random time. Compared are parameters, averages,
optimizer slots, and the text of `metrics.jsonl`. Exit code 0 if all is equal.
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

import torch

HERE = Path(__file__).resolve().parents[1] / "tests" / "training"
sys.path.insert(0, str(HERE))


def start(stage: str, folder: Path, data: Path, images: int) -> subprocess.Popen[bytes]:
    arguments = [str(folder), *([str(data)] if stage == "transformer" else []), str(images)]
    code = f"import sys; import workers; workers.{stage}(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def compare(one: Path, other: Path) -> list[str]:
    """Names of what differs."""
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


def torment(stage: str, folder: Path, data: Path, images: int, kills: int, longest: float, seed: int) -> dict[str, int]:
    """Start the run again and again until it ends well; how often it was hit by which signal."""
    chance = random.Random(seed)
    hits: dict[str, int] = {}
    while True:
        process = start(stage, folder, data, images)
        if sum(hits.values()) >= kills:
            assert process.wait() == 0, "the run did not end well"
            return hits
        time.sleep(chance.uniform(0.0, longest))
        number = chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        ended = process.poll()
        if ended is None:
            process.send_signal(number)
            ended = process.wait()
            hits[number.name] = hits.get(number.name, 0) + 1
        elif ended == 0:
            return hits
        else:
            raise AssertionError(f"the run ended by itself with {ended}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from tiny_runs import write_latents

    failed = False
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = write_latents(root / "data")
        for stage in ("tokenizer", "transformer"):
            began = time.monotonic()
            assert start(stage, root / f"{stage}-whole", data, options.images).wait() == 0
            longest = 1.5 * (time.monotonic() - began)
            tormented = root / f"{stage}-killed"
            hits = torment(stage, tormented, data, options.images, options.kills, longest, options.seed)
            differing = compare(root / f"{stage}-whole", tormented)
            failed |= bool(differing)
            print(json.dumps({"stage": stage, "images": options.images, "hits": hits, "differing": differing}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
