"""Several processes for one grid: on one GPU that a small model does not fill, on several GPUs, or on many cores."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from vavae.config import to_yaml
from vavae.errors import RunError, UserError
from vavae.files import written_whole
from vavae.stages.frontier_recipe import Config
from vavae.training.interrupt import stop_on_signal
from vavae.training.precision import resolve_device

_LOOK = 1.0  # seconds between two looks at the processes


def work_together(config: Config, look: Callable[[], None]) -> None:
    """Run `config.workers` processes on the grid until all have ended; each writes to `workers/N.log`.

    A stop is passed on once, and the processes save their state; a second one ends them at once.

    Args:
        config: The recipe.
        look: Called now and then meanwhile.

    Raises:
        UserError: A process says that the recipe is wrong.
        RunError: A process failed.
        KeyboardInterrupt: A stop was asked for.
    """
    folder = Path(config.output) / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    with written_whole(recipe) as temporary:
        temporary.write_text(to_yaml(replace(config, workers=1)))
    logs = [folder / f"{number}.log" for number in range(config.workers)]
    print(f"{config.workers} processes; what each says is in {folder}", flush=True)
    with ExitStack() as held, stop_on_signal() as stop:
        processes = [_start(recipe, log, environment) for log, environment in zip(logs, _shares(config), strict=True)]
        held.callback(_end, processes)
        told = False
        while any(process.poll() is None for process in processes):
            if stop and not told:
                told = True
                for process in processes:
                    if process.poll() is None:
                        process.send_signal(signal.SIGINT)
            look()
            time.sleep(_LOOK)
        if not stop:
            _judge(processes, logs)


def _shares(config: Config) -> list[dict[str, str]]:
    """What the environment says to each process: its share of the cores, and its GPU where there are several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // config.workers)))
    device = resolve_device(config.device)
    gpus: list[str] = []
    if device.type == "cuda" and device.index is None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = seen.split(",") if seen else [str(number) for number in range(torch.cuda.device_count())]
    return [
        {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
        for number in range(config.workers)
    ]


def _start(recipe: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal would reach it too, and a second time from here.
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "vavae", "frontier", str(recipe)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def _judge(processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]) -> None:
    """Tell the first complaint, a wrong recipe before a failed run."""
    failed = [(process.returncode, log) for process, log in zip(processes, logs, strict=True) if process.returncode]
    if not failed:
        return
    code, log = min(failed, key=lambda pair: pair[0] != 2)
    lines = log.read_text(errors="replace").strip().splitlines() or [f"ended with {code}"]
    said = lines[-1].removeprefix("vavae: ")
    if code == 2:
        raise UserError(said)
    raise RunError(f"{len(failed)} of {len(logs)} processes failed, see {log.parent}; {log.name}: {said}")
