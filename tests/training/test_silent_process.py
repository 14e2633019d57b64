"""Exit code and message of a process when another process of its run ends or stops answering."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import silent
from children import CONTEXT, run_child
from launching import shared_variables, start

pytestmark = pytest.mark.slow

# Seconds; far more than needed on an idle machine.
PATIENCE = 120.0
LOST = "vavae: another process of this run has ended, or no longer answers; see its message"


@contextmanager
def two(errors: Path, *arguments: str) -> Iterator[list[BaseProcess]]:
    """Two processes of `silent.py`, killed in the end."""
    running = start(2, errors, silent.run, *arguments)
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.join()


def messages(errors: str) -> list[str]:
    """Return the lines of standard error, without warnings of libraries."""
    return [line for line in errors.splitlines() if not line.startswith("[W")]


def result(process: BaseProcess, errors: Path) -> tuple[int | None, list[str]]:
    """Return the exit code of a process and the lines that it wrote."""
    process.join(PATIENCE)
    return process.exitcode, messages(errors.read_text())


def test_silent_process_is_reported_in_one_line(tmp_path: Path) -> None:
    with two(tmp_path, "vanish") as (first, _):
        assert result(first, tmp_path / "0") == (1, [LOST])


def test_lost_process_is_reported_in_one_line(tmp_path: Path) -> None:
    """In an interpreter of its own: the threads of a group that is not destroyed could abort an interpreter's end."""
    shared = {**os.environ, **shared_variables(2), "OMP_NUM_THREADS": "1"}
    environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    first = subprocess.Popen(
        [sys.executable, "silent.py", "die"],
        cwd=Path(silent.__file__).parent,
        env=environments[0],
        stderr=subprocess.PIPE,
        text=True,
    )
    second = CONTEXT.Process(target=run_child, args=(environments[1], tmp_path / "1", PATIENCE, silent.run, "die"))
    second.start()
    try:
        _, errors = first.communicate(timeout=PATIENCE)
        assert (first.returncode, messages(errors)) == (1, [LOST])
    finally:
        first.kill()
        first.communicate()
        second.kill()
        second.join()


def test_user_error_in_one_process_is_reported(tmp_path: Path) -> None:
    with two(tmp_path, "fail") as (first, second):
        assert result(second, tmp_path / "1") == (2, ["vavae: cannot read image x.png"])
        assert result(first, tmp_path / "0") == (1, [LOST])


def test_first_process_may_work_alone_for_long(tmp_path: Path) -> None:
    with two(tmp_path, "be_long") as running:
        assert [result(process, tmp_path / str(rank)) for rank, process in enumerate(running)] == [(0, []), (0, [])]


def test_second_signal_ends_a_waiting_process(tmp_path: Path) -> None:
    waits = tmp_path / "waits"
    with two(tmp_path, "wait_for_ever", str(waits)) as (first, _):
        deadline = time.monotonic() + PATIENCE
        while not waits.exists():
            assert first.exitcode is None and time.monotonic() < deadline
            time.sleep(0.02)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGINT)
        os.kill(first.pid, signal.SIGTERM)
        status, lines = result(first, tmp_path / "0")
    assert status == 1 and "ended at once by a second signal" in lines[-1]
