"""A signal to torchrun saves and stops both processes; if one is killed, the other ends without torchrun too."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import endless
import pytest
from launching import start
from tiny_runs import write_latents

from vavae.training.checkpoint import CheckpointFolder

# Far beyond what is needed on an idle machine; a hang would last two days.
PATIENCE = 200


def wait_until_it_trains(folder: Path, runs: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not CheckpointFolder(folder / "run/checkpoints").list():
        assert runs() and time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_signal_to_torchrun_saves_and_stops_both(tmp_path: Path) -> None:
    write_latents(tmp_path)
    (launcher,) = start(1, tmp_path, endless.launch, tmp_path, tmp_path)
    try:
        wait_until_it_trains(tmp_path, lambda: launcher.exitcode is None)
        launcher.terminate()
        launcher.join(PATIENCE)
    finally:
        launcher.kill()
    processes = [int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)]
    assert not any(alive(process) for process in processes), (tmp_path / "0").read_text()
    messages = [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)]
    assert messages[0] == messages[1] and "same command to resume" in messages[0]  # at the same step
    newest = CheckpointFolder(tmp_path / "run/checkpoints").newest()
    assert newest is not None and f"after {newest.numbers['images_seen']:,} of" in messages[0]
    assert not list((tmp_path / "run/checkpoints").glob(".partial-*"))


@pytest.mark.slow
def test_killed_process_ends_the_other(tmp_path: Path) -> None:
    """The survivor notices the closed connection and ends with an error."""
    write_latents(tmp_path)
    first, second = running = start(2, tmp_path, endless.train, tmp_path, tmp_path)
    try:
        wait_until_it_trains(tmp_path, lambda: all(process.exitcode is None for process in running))
        second.kill()
        first.join(PATIENCE)
        assert first.exitcode not in (None, 0), "the first process kept waiting for the second"
        assert CheckpointFolder(tmp_path / "run/checkpoints").newest() is not None
    finally:
        for process in running:
            process.kill()
            process.join()
