"""Run several processes on one grid: on one GPU that a small model does not fill, on several GPUs, or on many cores.

Each call has its own folder in `workers/`. It contains the recipe of the processes, their logs, and the jobs that
failed in one of them, which the others then skip.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
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
from vavae.frontier.results import Failures, Locks
from vavae.io.files import write_text
from vavae.training.signals import stop_on_signal

_POLL = 1.0  # seconds between two checks of the processes
_SAVING = 60.0  # seconds for the processes to save their state when the call ends by an error
_FAILURES = "failed.jsonl"
_TURNS = (
    "note: processes on one GPU take turns; `nvidia-cuda-mps-control -d` before this command lets their kernels run "
    "side by side (docs/frontier.md)"
)
_CALL = "VAVAE_FRONTIER_CALL"  # environment variable that gives the processes the folder of their call
_PROGRAM = """
from vavae.frontier.workers import end_with_parent
end_with_parent()
from vavae.cli import main
main()
"""


@contextlib.contextmanager
def call_folder(output: Path, locks: Locks) -> Iterator[Path]:
    """Name a folder for this call and lock it for the block. Remove folders of ended calls on this machine."""
    folder, host = output / "workers", socket.gethostname()
    for old in folder.glob(f"{host}-*"):
        with locks.holding(f"call-{old.name}") as ended:
            if ended:
                shutil.rmtree(old, ignore_errors=True)
    name = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
    with locks.holding(f"call-{name}"):
        yield folder / name


def failures_of_call(folder: Path | None = None) -> Failures:
    """Return the failures of the call with this folder, or of the call that started this process, or a new list."""
    place = folder or os.environ.get(_CALL)
    return Failures(Path(place) / _FAILURES if place else None)


def work_together(config: Config, folder: Path, report: Callable[[], None]) -> list[str]:
    """Run `config.workers` processes on the grid until all have ended; each writes to `<folder>/N.log`.

    The first signal is passed on, and the processes save their state. The second ends them at once. They also save
    their state and stop when this process dies. `report` is called about once a second.

    Returns:
        The last messages of the processes that failed, for example `2.log: out of memory`.

    Raises:
        UserError: All processes rejected the recipe.
        KeyboardInterrupt: The call was stopped by a signal.
    """
    folder.mkdir(parents=True)
    device = resolve_device(config.device)
    recipe = folder / "recipe.yaml"
    # With the name of the device, so that a process that finds no GPU fails. This call keeps the time limit.
    write_text(recipe, to_yaml(replace(config, workers=1, device=str(device), time_limit=None)))
    logs = [folder / f"{number}.log" for number in range(config.workers)]
    print(f"{config.workers} processes; their logs are in {folder}", flush=True)
    environments = shares(config.workers, device)
    if take_turns(environments, device):
        print(_TURNS, flush=True)
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as held, stop_on_signal() as stop:
        held.callback(lambda: _end(processes, at_once=bool(stop)))
        for log, environment in zip(logs, environments, strict=True):
            processes.append(_start(recipe, log, environment | {_CALL: str(folder)}))
        failed: dict[int, str] = {}
        stopping = False
        while True:
            alive = [process.poll() is None for process in processes]
            if stop and not stopping:
                stopping = True
                print("stopping: the processes save their state; a second Ctrl-C ends them at once", flush=True)
                for process in processes:
                    process.terminate()
            for number, (process, log) in enumerate(zip(processes, logs, strict=True)):
                if process.returncode and number not in failed and not stopping:
                    failed[number] = _last_message(process.returncode, log)
                    print(f"process {log.name}: {failed[number]}", flush=True)
            report()
            if not any(alive):
                break
            time.sleep(_POLL)
    if all(process.returncode == 2 for process in processes):
        raise UserError(failed[0])
    return [f"{logs[number].name}: {message}" for number, message in sorted(failed.items())]


def shares(workers: int, device: torch.device) -> list[dict[str, str]]:
    """Return environment variables for each process: its share of the cores, and its GPU if there are several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
    gpus: list[str] = []
    if device.type == "cuda" and device.index is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [
        {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
        for number in range(workers)
    ]


def take_turns(environments: Sequence[dict[str, str]], device: torch.device) -> bool:
    """Return whether processes share a GPU without NVIDIA's MPS, so that their kernels run one at a time."""
    gpus = {environment.get("CUDA_VISIBLE_DEVICES", "the same") for environment in environments}
    # Default folder of MPS's control daemon (NVIDIA's guide to MPS).
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    return device.type == "cuda" and len(gpus) < len(environments) and not (pipes / "control").exists()


def end_with_parent() -> None:
    """Send SIGTERM to this process when its parent ends, which closes standard input."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                continue
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _start(recipe: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            # -P: a file in the current folder must not shadow a module.
            [sys.executable, "-P", "-c", _PROGRAM, "frontier", str(recipe)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C in a terminal would reach it twice
        )


def _end(processes: Sequence[subprocess.Popen[bytes]], at_once: bool) -> None:
    """End all processes of this call."""
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


def _last_message(code: int, log: Path) -> str:
    """Return the error at the end of a log, or the exit code."""
    if code < 0:
        return f"killed by signal {-code}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    message = next((line for line in reversed(lines) if line.startswith("vavae: ")), f"ended with code {code}")
    return message.removeprefix("vavae: ")
