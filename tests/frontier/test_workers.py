"""`--workers`: processes of one command share the grid, stop together, and report an error once."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import stub_jobs
import torch
from children import CONTEXT
from frontier_grid import ONLY, RECIPE, grid_config, here_from, real_grid
from frontier_grid import trained as trained_by

from vavae.frontier import run as frontier
from vavae.frontier import workers as frontier_workers
from vavae.frontier.config import Config
from vavae.frontier.results import Locks
from vavae.frontier.workers import call_folder, failures_of_call

# Worker processes import nothing of the tests by themselves.
QUICKER = f"""
import sys
sys.path.append({str(Path(stub_jobs.__file__).parent)!r})
from stub_jobs import use_stub_jobs
use_stub_jobs()
"""
REJECTS = "import sys; print('vavae: measure.network: unknown'); sys.exit(2)"
SLEEPS = "import time; time.sleep(200)"
LONG = ["--tokenizer.training.images", "100000"]  # no process ends its first job before the other begins
FEW = ["--experiments.table2.dimensions", "[4]"]
TRAINED = [*ONLY, "--kinds", "[tokenizer,generator]", *FEW]
JOBS = 4  # two tokenizers and two generators


@pytest.fixture
def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(frontier_workers, "_PROGRAM", QUICKER + frontier_workers._PROGRAM)
    monkeypatch.setattr(frontier_workers, "_POLL", 0.05)


@contextmanager
def meanwhile(ready: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Call `act` during the block, when `ready` becomes true."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            if ready():
                act()
                return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def results(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "results").glob("*.json")}


def logs_of(folder: Path) -> list[str]:
    """Return the log of each process of the last call."""
    (call,) = (folder / "workers").iterdir()
    return [path.read_text() for path in sorted(call.glob("*.log"))]


def workers_of(folder: Path) -> list[int]:
    """Return the running processes that work on the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(folder / "workers").encode() in command:
            found.append(int(path.parent.name))
    return found


def kill(processes: list[int]) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


def begun(folder: Path) -> bool:
    """Return whether both processes of a call run a job."""
    return len(list(folder.glob("locks/tokenizer-*.lock"))) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("quicker")
def test_stop_and_resume_with_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    config = replace(grid_config(folder, *TRAINED), workers=2)
    with meanwhile(lambda: len(results(folder)) >= 1, lambda: os.kill(os.getpid(), signal.SIGINT)):
        code, output, error = here_from(config, monkeypatch)
    assert code == 1, error
    assert "Traceback" not in error and "the same command resumes" in error.splitlines()[-1]
    assert "stopping: the processes save their state" in output
    assert not workers_of(folder)
    before = results(folder)
    assert 1 <= len(before) < JOBS and (folder / "frontier.html").exists()
    trained = trained_by("\n".join(logs_of(folder)))

    stub_jobs.use_stub_jobs(monkeypatch.setattr)
    code, output, error = here_from(replace(config, workers=1), monkeypatch)
    assert code == 0, error
    assert f"{JOBS} of " in output.splitlines()[-1]
    after = results(folder)
    assert len(after) == JOBS
    assert {name: at for name, at in after.items() if name in before} == before  # nothing is done again
    assert len(re.findall(r"^done: (.*) in \d", output, re.MULTILINE)) == JOBS - len(before)
    trained += trained_by(output)
    assert len(set(trained)) == JOBS and len(trained) <= JOBS + 2  # two were stopped in their training
    assert not list(folder.glob("locks/*.lock"))

    code, output, _ = here_from(config, monkeypatch)  # nothing is left, so no process is started
    assert code == 0 and "processes" not in output


def test_wrong_recipe_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier_workers, "_PROGRAM", REJECTS)
    monkeypatch.setattr(frontier_workers, "_POLL", 0.05)
    code, _, error = here_from(replace(grid_config(tmp_path, *ONLY, *FEW), workers=2), monkeypatch)
    assert (code, error) == (2, "vavae: measure.network: unknown\n")


def test_killed_workers_fail_the_run_with_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier_workers, "_PROGRAM", SLEEPS)
    monkeypatch.setattr(frontier_workers, "_POLL", 0.05)
    folder = tmp_path / "run"
    config = replace(grid_config(folder, *TRAINED), workers=2)
    with meanwhile(lambda: len(workers_of(folder)) == 2, lambda: kill(workers_of(folder))):
        code, output, error = here_from(config, monkeypatch)
    assert code == 1
    assert "process 0.log: killed by signal 9" in output  # reported at once
    assert error.startswith("vavae: 2 of 2 processes failed, 0.log: killed by signal 9; ")
    assert len(error.splitlines()) == 1
    assert (folder / "frontier.html").exists() and not workers_of(folder)


def command(output: str) -> None:
    """Run the command with two workers in a process of its own."""
    from vavae.cli import run

    os.environ["OMP_NUM_THREADS"] = "1"
    frontier_workers._PROGRAM = QUICKER + frontier_workers._PROGRAM
    run(["frontier", str(RECIPE), *TRAINED, *LONG, "--workers", "2", "--output", output])


@pytest.mark.slow
def test_workers_stop_when_the_command_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = CONTEXT.Process(target=command, args=(str(folder),))
    running.start()
    while running.is_alive() and not begun(folder):
        time.sleep(0.05)
    running.kill()
    running.join()
    assert running.exitcode == -signal.SIGKILL
    until = time.monotonic() + 60
    while workers_of(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert not workers_of(folder)
    assert all("the same command resumes" in log.splitlines()[-1] for log in logs_of(folder))


def with_stub(
    monkeypatch: pytest.MonkeyPatch, together: Callable[..., list[str]], config: Config
) -> tuple[int, str, str]:
    """Run the command in this process, with a stub for its worker processes."""
    monkeypatch.setattr(frontier, "work_together", together)
    return here_from(replace(config, workers=2), monkeypatch)


def test_folders_of_ended_calls_are_removed(tmp_path: Path) -> None:
    locks, workers = Locks(tmp_path / "locks"), tmp_path / "workers"
    other, elsewhere = workers / f"{socket.gethostname()}-1-running", workers / "another machine-1-running"
    for folder in (other, elsewhere):
        folder.mkdir(parents=True)
    with locks.holding(f"call-{other.name}"), call_folder(tmp_path, locks) as own:
        assert other.is_dir() and own.parent == workers and own not in (other, elsewhere)
    own.mkdir()
    with call_folder(tmp_path, locks) as again:
        assert not other.exists() and elsewhere.exists() and again != own and not own.exists()
    assert not list((tmp_path / "locks").glob("*.lock"))


def test_failure_in_a_worker_reaches_command_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def together(config: Config, folder: Path, report: Callable[[], None]) -> list[str]:
        folder.mkdir(parents=True)
        monkeypatch.setenv("VAVAE_FRONTIER_CALL", str(folder))  # as a process of the call has it
        grid = real_grid(config)
        failures_of_call().add(grid.jobs[0].result, "no memory left")
        assert failures_of_call().read() == {grid.jobs[0].result: "no memory left"}  # another process of the call
        report()
        return ["0.log: 1 failed, first no memory left; 0 of 8 done"]

    code, output, error = with_stub(monkeypatch, together, grid_config(tmp_path, *ONLY, *FEW))
    assert code == 1
    assert error.startswith("vavae: 1 failed, first no memory left; 0 of ") and error.count("done; page") == 1
    assert "1 failed" in output
    assert "no memory left" in (tmp_path / "frontier.html").read_text()


def test_waiting_for_models_is_not_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = grid_config(tmp_path, *ONLY, *FEW, "--kinds", "[uniformity]", "--time_limit", "60")
    code, output, error = with_stub(monkeypatch, lambda *_: [], config)
    assert (code, error) == (0, "")
    assert "time limit" not in output and "2 jobs need models that have not been trained" in output


def test_passed_time_limit_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def together(*_: object) -> list[str]:
        time.sleep(60)
        return []

    config = replace(grid_config(tmp_path, *ONLY, *FEW), time_limit=0.003)
    code, output, _ = with_stub(monkeypatch, together, config)
    assert code == 0 and output.splitlines()[-1].startswith("time limit reached; 0 of ")


def test_gpus_and_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(frontier_workers.os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    shares = frontier_workers.shares(3, torch.device("cuda"))
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0", "1", "0"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    shares = frontier_workers.shares(3, torch.device("cuda"))
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["5", "7", "5"]
    for device in ("cpu", "cuda:1"):
        assert all("CUDA_VISIBLE_DEVICES" not in share for share in frontier_workers.shares(3, torch.device(device)))


def test_mps_is_suggested_for_a_shared_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    gpus = [{"CUDA_VISIBLE_DEVICES": number} for number in "010"]
    cuda, one = torch.device("cuda"), torch.device("cuda:1")
    assert frontier_workers.take_turns(gpus, cuda) and not frontier_workers.take_turns(gpus[:2], cuda)
    assert frontier_workers.take_turns([{}, {}], one) and not frontier_workers.take_turns([{}], one)
    assert not frontier_workers.take_turns([{}, {}], torch.device("cpu"))
    (tmp_path / "control").touch()
    assert not frontier_workers.take_turns(gpus, cuda)
