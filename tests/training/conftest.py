"""Processes as torchrun starts them, without its half minute of start-up."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PATIENCE = 280.0  # seconds for all processes
GRACE = 30.0  # seconds in which the others must notice that one has failed


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def launch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """launch(processes, function, *arguments): call `workers.function` in each of several processes.

    One that does not end says where each of its threads is.
    """

    def start(processes: int, function: str, *arguments: object) -> None:
        code = (
            f"import faulthandler, sys; faulthandler.dump_traceback_later({PATIENCE - 10}); "
            f"import workers; workers.{function}(*sys.argv[1:])"
        )
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        told = tmp_path_factory.mktemp("errors")  # files, as a full pipe would stop its writer
        running = []
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", code, *map(str, arguments)]
            environment = {**os.environ, **shared, **own}
            with (told / str(rank)).open("wb") as errors:
                running.append(subprocess.Popen(command, cwd=HERE, env=environment, stderr=errors))
        _await(running)
        failed = [
            f"process {rank} ended with {process.returncode}:\n{(told / str(rank)).read_text(errors='replace')}"
            for rank, process in enumerate(running)
            if process.returncode
        ]
        assert not failed, "\n".join(failed)

    return start


def _await(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended; those that do not in time are killed."""
    deadline = time.monotonic() + PATIENCE
    try:
        while any(process.poll() is None for process in running):
            if any(process.returncode for process in running):
                deadline = min(deadline, time.monotonic() + GRACE)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
