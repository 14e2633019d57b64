"""Processes as torchrun starts them, without its half minute of start-up."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import children
import pytest

PATIENCE = 280.0  # seconds for all processes
GRACE = 30.0  # seconds within which the others must notice that one has failed


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def shared_variables(processes: int) -> dict[str, str]:
    """Return the environment variables that torchrun sets alike for all processes of one machine."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}


def start(processes: int, errors: Path, function: Callable[..., None], *arguments: object) -> list[BaseProcess]:
    """Call `function` in each of several processes; the standard error of rank 0 goes to the file `errors / "0"`."""
    shared = shared_variables(processes)
    running: list[BaseProcess] = []
    for rank in range(processes):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        given = (environment, errors / str(rank), PATIENCE - 10, function, *map(str, arguments))
        running.append(children.CONTEXT.Process(target=children.run_child, args=given))
        running[-1].start()
    return running


@pytest.fixture
def launch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """launch(processes, function, *arguments): call `workers.function` in each of several processes.

    A process that does not end prints where its threads are.
    """

    def call(processes: int, function: str, *arguments: object) -> None:
        import workers

        errors = tmp_path_factory.mktemp("errors")  # files, as a full pipe would stop its writer
        running = start(processes, errors, getattr(workers, function), *arguments)
        _await(running)
        failed = [
            f"process {rank} ended with {process.exitcode}:\n{(errors / str(rank)).read_text(errors='replace')}"
            for rank, process in enumerate(running)
            if process.exitcode
        ]
        assert not failed, "\n".join(failed)

    return call


def _await(running: Sequence[BaseProcess]) -> None:
    """Wait for all processes, and kill those that do not end in time."""
    deadline = time.monotonic() + PATIENCE
    try:
        while any(process.exitcode is None for process in running):
            if any(process.exitcode for process in running):
                deadline = min(deadline, time.monotonic() + GRACE)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
    finally:
        for process in running:
            if process.exitcode is None:
                process.kill()
            process.join()
