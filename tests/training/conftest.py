"""Processes as torchrun starts them, without its half minute of start-up."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def launch() -> Callable[..., None]:
    """launch(processes, function, *arguments): call `workers.function` in each of several processes."""

    def start(processes: int, function: str, *arguments: object) -> None:
        code = f"import sys; import workers; workers.{function}(*sys.argv[1:])"
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        running = []
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", code, *map(str, arguments)]
            environment = {**os.environ, **shared, **own}
            running.append(subprocess.Popen(command, cwd=HERE, env=environment, stderr=subprocess.PIPE, text=True))
        failed = []
        for rank, process in enumerate(running):
            try:
                _, errors = process.communicate(timeout=280)
            except subprocess.TimeoutExpired:
                for other in running:
                    other.kill()
                raise
            if process.returncode:
                failed.append(f"process {rank} ended with {process.returncode}:\n{errors}")
        assert not failed, "\n".join(failed)

    return start
