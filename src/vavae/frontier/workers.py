"""Several processes for one grid: on one GPU that a small model does not fill, on several GPUs, or on many cores.

Each call has a folder `workers/HOST-PID-TOKEN` of its own with the recipe of its processes, what each of them says, and
the cells that failed in one of them, which the others then leave alone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from vavae.config import to_yaml
from vavae.device import resolve_device
from vavae.errors import UserError
from vavae.frontier.config import Config
from vavae.frontier.results import Claims, Failures, Owner
from vavae.io.files import written_whole
from vavae.training.signals import stop_on_signal

_LOOK = 1.0  # seconds between two looks at the processes
_SAVING = 60.0  # seconds they have to save their state when the call ends by an error
_FAILURES = "failed.jsonl"
_TURNS = (
    "note: processes on one GPU take turns; `nvidia-cuda-mps-control -d` before this command lets their kernels run "
    "side by side (docs/frontier.md)"
)
# Names the folder of the call to its processes.
_CALL = "VAVAE_FRONTIER_CALL"
_PROGRAM = """
from vavae.frontier.workers import end_with_parent
end_with_parent()
from vavae.cli import main
main()
"""


@contextlib.contextmanager
def call_folder(output: Path, claims: Claims) -> Iterator[Path]:
    """Of this process's call, which it claims for the block; those of calls on this machine that are over are removed.

    Args:
        output: The frontier's folder.
        claims: Its claims.
    """
    this, folder = Owner.this(), output / "workers"
    for old in folder.glob(f"{this.host}-*"):
        with claims.holding(_claim(old.name)) as over:
            if over:
                shutil.rmtree(old, ignore_errors=True)
    with claims.holding(_claim(this.name)):
        yield folder / this.name


def _claim(call: str) -> str:
    return f"call-{call}"


def failures_of_call(folder: Path | None = None) -> Failures:
    """What failed in the call whose folder is given, or of which this process is one; in memory where there is none."""
    named = os.environ.get(_CALL)
    place = folder or (Path(named) if named else None)
    return Failures(place / _FAILURES if place is not None else None)


def work_together(config: Config, folder: Path, look: Callable[[], None]) -> list[str]:
    """Run `config.workers` processes on the grid until all have ended; each writes to `<folder>/N.log`.

    A stop is passed on once, and the processes save their state; a second one ends them at once. They also stop, with
    their state saved, when this process dies.

    Args:
        config: The recipe.
        folder: Of this call.
        look: Called now and then meanwhile.

    Returns:
        The last words of the processes that ended badly, `2.log: out of memory`.

    Raises:
        UserError: All of them say that the recipe is wrong.
        KeyboardInterrupt: A stop was asked for.
    """
    folder.mkdir(parents=True)
    device = resolve_device(config.device)
    recipe = folder / "recipe.yaml"
    with written_whole(recipe) as temporary:
        # The device by name: a process that sees no GPU must not go on without.
        temporary.write_text(to_yaml(replace(config, workers=1, device=str(device))), encoding="utf-8")
    logs = [folder / f"{number}.log" for number in range(config.workers)]
    print(f"{config.workers} processes; what each says is in {folder}", flush=True)
    environments = shares(config.workers, device)
    if take_turns(environments, device):
        print(_TURNS, flush=True)
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as held, stop_on_signal() as stop:
        held.callback(lambda: _end(processes, at_once=bool(stop)))
        for log, environment in zip(logs, environments, strict=True):
            processes.append(_start(recipe, log, environment | {_CALL: str(folder)}))
        complaints: dict[int, str] = {}
        stopping = False
        while True:
            alive = [process.poll() is None for process in processes]
            if stop and not stopping:
                stopping = True
                print("stopping: the processes save their state; a second Ctrl-C ends them at once", flush=True)
                for process in processes:
                    process.terminate()
            for number, (process, log) in enumerate(zip(processes, logs, strict=True)):
                if process.returncode and number not in complaints and not stopping:
                    complaints[number] = _last_words(process.returncode, log)
                    print(f"process {log.name}: {complaints[number]}", flush=True)
            look()
            if not any(alive):
                break
            time.sleep(_LOOK)
    if all(process.returncode == 2 for process in processes):
        raise UserError(complaints[0])
    return [f"{logs[number].name}: {said}" for number, said in sorted(complaints.items())]


def shares(workers: int, device: torch.device) -> list[dict[str, str]]:
    """What the environment says to each process: its share of the cores, and its GPU where there are several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
    gpus: list[str] = []
    if device.type == "cuda" and device.index is None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = seen.split(",") if seen else [str(number) for number in range(torch.cuda.device_count())]
    return [
        {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
        for number in range(workers)
    ]


def take_turns(environments: Sequence[dict[str, str]], device: torch.device) -> bool:
    """Whether processes share a GPU without NVIDIA's MPS, so that the kernels of one at a time run on it.

    Args:
        environments: As `shares` gives them.
        device: That of the recipe.
    """
    gpus = {environment.get("CUDA_VISIBLE_DEVICES", "the same") for environment in environments}
    # Where its control daemon listens unless it is told otherwise (NVIDIA's guide to MPS).
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    return device.type == "cuda" and len(gpus) < len(environments) and not (pipes / "control").exists()


def end_with_parent() -> None:
    """Stop this process, as SIGTERM would, when the one that started it is gone: our input closes then."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                continue
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _start(recipe: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            # -P: no file of the current folder may stand in for a module.
            [sys.executable, "-P", "-c", _PROGRAM, "frontier", str(recipe)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C in a terminal would reach it too, and a second time from here
        )


def _end(processes: Sequence[subprocess.Popen[bytes]], at_once: bool) -> None:
    """No process of this call is left behind."""
    deadline = time.monotonic() + _SAVING
    for process in processes if not at_once else ():
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0 if at_once else max(0.0, deadline - time.monotonic()))
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _last_words(code: int, log: Path) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith("vavae: ")), f"ended with code {code}")
    return said.removeprefix("vavae: ")
