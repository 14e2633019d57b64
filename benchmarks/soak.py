"""Train for hours with kills, full disks and damaged files, and compare every run bit for bit with an undisturbed one.

    nice -n 19 python benchmarks/soak.py --hours 2

In each round one of the runs of `kill_test.py` (tokenizer, transformer, joint) meets some faults at random moments,
and the same command resumes it after each:

- `SIGKILL`, `SIGTERM`; two kills in a row, the second while the run stops or starts again
- a full disk: the run works on a small file system of its own, which is filled until the process has ended
- one flipped bit in a file of the newest checkpoint, or in a shard of latents, which the run must notice

Each round starts a new run. A checkpoint that a fault removes counts as lost. The record
`benchmarks/results/<date>-soak.json` is written after every round, and a second call on the same day continues it.
What differs or fails is kept in `runs/soak`. The exit code is 0 if nothing did. Needs Linux, for `unshare` and /proc.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from damage import flip_bit
from kill_test import HERE, KILLED, compare, logged, start
from record import RESULTS, started, write

sys.path.insert(0, str(HERE))

STAGES = ("tokenizer", "transformer", "joint")
FAULTS = ("SIGKILL", "SIGTERM", "two kills", "full disk", "damaged checkpoint", "damaged latents")
_PATIENCE = 600.0  # seconds after which a run without progress counts as hanging


class Problem(Exception):
    """A run that ended without a fault, hangs, lost a checkpoint, or did not notice damage."""


class Run:
    """A run on a small disk, and the faults that it meets.

    Args:
        stage: One of `STAGES`.
        disk: Folder in which the file system is mounted.
        data: Latents and tokenizer, which are copied to the disk.
        images: Length of the run.
        chance: Draws all that is random.
    """

    def __init__(self, stage: str, disk: Path, data: Path, images: int, chance: random.Random) -> None:
        self.stage, self.disk, self.images, self.chance = stage, disk, images, chance
        self.folder, self.data = disk / "run", Path(shutil.copytree(data, disk / "data"))
        self.errors = disk.with_name("errors")  # not on the disk, which may be full
        self.peak = 0  # bytes
        self.start()

    def start(self) -> None:
        with self.errors.open("wb") as file:
            self.process = start(self.stage, self.folder, self.data, self.images, file)

    def reason(self) -> str:
        """Return the last line of the run's errors."""
        return (self.errors.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoints/images-*"))

    def ended(self) -> int:
        """Wait for the process, and return its exit code."""
        try:
            return self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise Problem(f"the run did not end within {_PATIENCE:.0f} seconds") from None

    def train_until(self, images: int) -> bool:
        """Wait until the log has reached `images`; return whether the run continues then."""
        deadline = time.monotonic() + _PATIENCE
        while self.process.poll() is None and logged(self.folder) < images:
            self.measure()
            time.sleep(0.02)
            if time.monotonic() > deadline:
                raise Problem(f"no progress within {_PATIENCE:.0f} seconds")
        return not self.finished()

    def finished(self) -> bool:
        """Whether the run has ended well; a run that ended otherwise is a problem."""
        if self.process.poll() not in (None, 0):
            raise Problem(f"the run ended by itself: {self.reason()}")
        return self.process.poll() == 0

    def measure(self) -> None:
        """Take the highest resident memory of the process so far."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:  # it has just ended
            return
        self.peak = max([self.peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if self.ended() not in (0, *KILLED):
            raise Problem(f"{number.name} ended in an error: {self.reason()}")

    def meet(self, fault: str) -> None:
        """Let the run meet a fault, and start it again.

        Raises:
            Problem: A checkpoint is lost, or damage was not noticed.
        """
        time.sleep(self.chance.uniform(0.0, 0.3))  # also between lines of the log
        before = self.checkpoints()
        if fault == "two kills":
            self.process.terminate()
            time.sleep(self.chance.uniform(0.0, 0.3))
            self.kill(signal.SIGKILL)
            self.start()
            time.sleep(self.chance.uniform(0.0, 15.0))
            self.kill(signal.SIGKILL)
        elif fault == "full disk":
            self.fill()
        elif fault == "SIGTERM":
            self.kill(signal.SIGTERM)
        else:
            self.kill(signal.SIGKILL)
        if before and self.checkpoints()[-1:] < before[-1:]:
            raise Problem(f"after {fault}, checkpoint {before[-1].name} is missing")
        if fault == "damaged checkpoint":
            self.damage_checkpoint()
        elif fault == "damaged latents":
            self.damage_latents()
        else:
            self.start()

    def fill(self) -> None:
        """Fill the disk until the process has ended."""
        ballast = self.disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                while self.process.poll() is None:
                    try:
                        file.write(bytes(size))
                    except OSError:
                        break
        if self.ended() not in (0, 1) or (self.process.returncode and "No space left" not in self.reason()):
            raise Problem(f"a full disk ended in another error: {self.reason()}")
        ballast.unlink()

    def damage_checkpoint(self) -> None:
        newest = self.checkpoints()[-1]
        flip_bit(self.chance.choice(sorted(newest.iterdir())), self.chance)
        damaged = newest.with_name(f"damaged-{newest.name}")
        self.start()
        deadline = time.monotonic() + _PATIENCE
        while not damaged.exists():
            if self.finished() or time.monotonic() > deadline:
                raise Problem(f"damage of {newest.name} was not noticed")
            time.sleep(0.02)
        shutil.rmtree(damaged)

    def damage_latents(self) -> None:
        shard = self.chance.choice(sorted(self.data.glob("latents/*.safetensors")))
        whole = shard.read_bytes()
        flip_bit(shard, self.chance)
        self.start()
        ended, reason = self.ended(), self.reason()
        if ended != 1 or str(shard) not in reason or not ("damaged" in reason or "cannot be read" in reason):
            raise Problem(f"damage of {shard.name} was not noticed: {reason}")
        shard.write_bytes(whole)
        self.start()

    def possible(self) -> list[str]:
        """Return the faults that may come now: a run that loses its only checkpoint ends, as promised."""
        found = list(FAULTS)
        if self.stage != "transformer":
            found.remove("damaged latents")
        if len(self.checkpoints()) < 2:
            found.remove("damaged checkpoint")
        return found


def disturb(run: Run, most: int) -> Counter[str]:
    """Let a run meet up to `most` faults, and then finish; return the faults."""
    met: Counter[str] = Counter()
    for target in sorted(run.chance.sample(range(1, run.images * 9 // 10), run.chance.randint(most // 2, most))):
        if not run.train_until(max(target, logged(run.folder) + 1)):  # it makes progress between two faults
            break
        fault = run.chance.choice(run.possible())
        run.meet(fault)
        met[fault] += 1
    run.train_until(run.images + 1)
    return met


def one_round(number: int, disk: Path, place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one round, and return its record."""
    began, chance = time.monotonic(), random.Random(f"{options.seed}/{number}")
    stage = STAGES[number % len(STAGES)]
    found: dict[str, Any] = {"round": number, "stage": stage, "differing": []}
    run = Run(stage, disk, place / "data", options.images, chance)
    try:
        found["faults"] = disturb(run, options.faults)
        found["differing"] = compare(place / stage, run.folder)
    except Problem as problem:
        found["problem"] = str(problem)
    finally:
        run.process.kill()
        run.process.wait()
    if found["differing"] or "problem" in found:
        shutil.copytree(disk, Path("runs/soak", f"round-{number}"), dirs_exist_ok=True)
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found | {"rss_mb": round(run.peak / 1e6), "seconds": round(time.monotonic() - began, 1)}


def summary(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each stage."""
    rows = []
    for stage in STAGES:
        own = [one for one in rounds if one["stage"] == stage]
        met = sum((Counter(one.get("faults", {})) for one in own), Counter[str]())
        rows.append(
            {"stage": stage, "hours": round(sum(one["seconds"] for one in own) / 3600, 2), "rounds": len(own)}
            | {fault: met[fault] for fault in FAULTS}
            | {"failed": sum("problem" in one for one in own), "differ": sum(bool(one["differing"]) for one in own)}
            | {"max RSS, MB": max((one["rss_mb"] for one in own), default=0)}
        )
    return rows


def soak(place: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run rounds until the time is over, write the record after each, and return the rounds."""
    from tiny_runs import write_latents

    record, path = started("soak.py"), options.output / f"{time.strftime('%Y-%m-%d')}-soak.json"
    rounds: list[dict[str, Any]] = json.loads(path.read_text())["rounds"] if path.exists() else []
    data = write_latents(place / "data")
    for stage in STAGES:
        assert start(stage, place / stage, data, options.images).wait() == 0, f"the undisturbed {stage} run failed"
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={options.disk}m", "soak", str(disk)], check=True)
    try:
        while sum(one["seconds"] for one in rounds) < 3600 * options.hours:
            rounds.append(one_round(len(rounds), disk, place, options))
            print(json.dumps(rounds[-1]), flush=True)
            write(record | {"results": summary(rounds), "rounds": rounds}, options.output, "soak")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--images", type=int, default=1024, help="length of a run")
    parser.add_argument("--faults", type=int, default=8, help="most faults in one run")
    parser.add_argument("--disk", type=int, default=64, help="size of the small file system in MB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if os.environ.get("VAVAE_SOAK") != "mounts":  # the small file system is seen by this process only, without root
        os.environ["VAVAE_SOAK"] = "mounts"
        os.execvp("unshare", ["unshare", "--map-root-user", "--mount", sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory() as name:
        rounds = soak(Path(name), options)
    return int(any("problem" in one or one["differing"] for one in rounds))


if __name__ == "__main__":
    sys.exit(main())
