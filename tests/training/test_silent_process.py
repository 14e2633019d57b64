"""Exit code and message of a process when another process of its run ends or stops to answer."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Seconds; far more than needed on an idle machine.
PATIENCE = 120.0
LOST = "vavae: another process of this run has ended, or no longer answers; see its message"


@contextmanager
def two(*arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes of `silent.py`, killed in the end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "silent.py", *arguments],
            cwd=Path(__file__).parents[1] / "support",
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


def result(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Return the exit code and the lines of standard error, without warnings of libraries."""
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, [line for line in errors.splitlines() if not line.startswith("[W")]


@pytest.mark.parametrize("how", ["vanish", "die"])
def test_lost_process_is_reported_in_one_line(how: str) -> None:
    with two(how) as (first, _):
        assert result(first) == (1, [LOST])


def test_user_error_in_one_process_is_reported() -> None:
    with two("fail") as (first, second):
        assert result(second) == (2, ["vavae: cannot read image x.png"])
        assert result(first) == (1, [LOST])


def test_first_process_may_work_alone_for_long() -> None:
    with two("be_long") as running:
        assert [result(process) for process in running] == [(0, []), (0, [])]


def test_second_signal_ends_a_waiting_process(tmp_path: Path) -> None:
    waits = tmp_path / "waits"
    with two("wait_for_ever", str(waits)) as (first, _):
        deadline = time.monotonic() + PATIENCE
        while not waits.exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(signal.SIGINT)
        first.send_signal(signal.SIGTERM)
        status, lines = result(first)
    assert status == 1 and "ended at once by a second signal" in lines[-1]
