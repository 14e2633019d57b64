"""Under torchrun: a signal to the launcher saves and stops both processes; if one is killed, the other ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import write_latents

from vavae.training.checkpoint import CheckpointFolder

HERE = Path(__file__).parents[1] / "support"
# Far beyond what is needed on an idle machine; a hang would last two days.
PATIENCE = 200


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def launch(folder: Path, data: Path) -> subprocess.Popen[str]:
    """Start two processes that train until stopped, and write their ids into the folder."""
    folder.mkdir()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "endless.py"]
    return subprocess.Popen(
        [sys.executable, *command, str(folder), str(data)],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_it_trains(launcher: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not CheckpointFolder(folder / "run/checkpoints").list():
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()[1]
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def ids(folder: Path) -> list[int]:
    return [int((folder / f"pid-{rank}").read_text()) for rank in range(2)]


def test_signal_to_torchrun_saves_and_stops_both(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    launcher = launch(folder, data)
    wait_until_it_trains(launcher, folder)
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert not any(alive(process) for process in ids(folder)), errors
    messages = [(folder / f"stopped-{rank}").read_text() for rank in range(2)]
    assert messages[0] == messages[1] and "same command to resume" in messages[0]  # at the same step
    newest = CheckpointFolder(folder / "run/checkpoints").newest()
    assert newest is not None and f"after {newest.numbers['images_seen']:,} of" in messages[0]
    assert not list((folder / "run/checkpoints").glob(".partial-*"))


def test_killed_process_ends_the_other(data: Path, tmp_path: Path) -> None:
    """Without the launcher's help too: the survivor sees the connection close and ends with an error."""
    folder = tmp_path / "killed"
    launcher = launch(folder, data)
    wait_until_it_trains(launcher, folder)
    launcher.send_signal(signal.SIGSTOP)  # so that it cannot end the other one itself
    first, second = ids(folder)
    os.kill(second, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while alive(first) and time.monotonic() < deadline:
        time.sleep(0.05)
    survived = alive(first)
    launcher.send_signal(signal.SIGCONT)
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert not survived, "the first process went on waiting for the second"
    assert launcher.returncode != 0
    assert CheckpointFolder(folder / "run/checkpoints").newest() is not None, errors
