"""`--workers`: several processes started by one command share the grid, stop together, and tell what is wrong once."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vavae.cli import run
from vavae.config import load_recipe
from vavae.errors import UserError
from vavae.frontier import run as frontier
from vavae.frontier import workers as frontier_workers
from vavae.frontier.config import Config
from vavae.frontier.grid import Grid
from vavae.frontier.results import Claims, Owner
from vavae.frontier.workers import call_folder, failures_of_call

RECIPE = str(Path(__file__).with_name("frontier_grid.yaml"))
ONLY = [f"--experiments.{name}.seeds=[]" for name in ("table4", "table5", "convergence", "ladder")]
LONG = ["--tokenizer.images", "100000"]  # neither process ends its first cell before the other begins
FEW = ["--experiments.table2.dimensions", "[4]"]
COMMAND = [sys.executable, "-m", "vavae", "frontier", RECIPE, *ONLY, "--kinds", "[tokenizer,generator]", *FEW]
UNITS = 4  # two tokenizers and two generators


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [*COMMAND, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def results(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "results").glob("*.json")}


def logs_of(folder: Path) -> list[str]:
    """What each process of the last call said."""
    (call,) = (folder / "workers").iterdir()
    return [path.read_text() for path in sorted(call.glob("*.log"))]


def trainings(folder: Path) -> list[str]:
    """What the processes of the last call began to train."""
    return re.findall("^training .*", "\n".join(logs_of(folder)), re.MULTILINE)


def workers_of(folder: Path) -> list[int]:
    """Living processes that work on the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = path.read_bytes()
        except OSError:
            continue
        if b"end_with_parent" in said and str(folder / "workers").encode() in said:
            found.append(int(path.parent.name))
    return found


def begun(running: subprocess.Popen[str], folder: Path) -> None:
    """Wait until both processes of a call have a cell."""
    while running.poll() is None and len(list(folder.glob("claims/tokenizer-*.lock"))) < 2:
        time.sleep(0.05)


def test_one_command_stopped_and_given_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("--output", str(folder), "--workers", "2")
    first = start(*arguments)
    while first.poll() is None and len(results(folder)) < 1:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    output, error = first.communicate()
    assert first.returncode == 1, error
    assert "Traceback" not in error and "the same command goes on" in error.splitlines()[-1]
    assert "stopping: the processes save their state" in output
    assert not workers_of(folder)
    before = results(folder)
    assert 1 <= len(before) < UNITS and (folder / "frontier.html").exists()
    trained = trainings(folder)

    second = start(*arguments)
    output, error = second.communicate()
    assert second.returncode == 0, error
    assert f"{UNITS} of " in output.splitlines()[-1]
    after = results(folder)
    assert len(after) == UNITS
    assert {name: at for name, at in after.items() if name in before} == before  # nothing is done again
    done = [set(re.findall(r"^done: (.*) in \d", log, re.MULTILINE)) for log in logs_of(folder)]
    assert not done[0] & done[1] and len(done[0] | done[1]) == UNITS - len(before)
    trained += trainings(folder)
    assert len(set(trained)) == UNITS and len(trained) <= UNITS + 2  # two were stopped in their training
    assert not list(folder.glob("claims/*.lock"))

    third = start(*arguments)  # nothing is left: no process is started
    output, _ = third.communicate()
    assert third.returncode == 0 and "processes" not in output


def test_a_wrong_recipe_is_told_once(tmp_path: Path) -> None:
    asked = start("--output", str(tmp_path), "--workers", "2", "--measure.network", "teacher:nobody@28")
    _, error = asked.communicate()
    assert asked.returncode == 2
    assert error.startswith("vavae: ") and "nobody" in error and len(error.splitlines()) == 1


def test_processes_that_die_fail_the_run_and_a_page_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = start("--output", str(folder), "--workers", "2", *LONG)
    begun(running, folder)
    for process in workers_of(folder):
        os.kill(process, signal.SIGKILL)
    output, error = running.communicate()
    assert running.returncode == 1
    assert "process 0.log: killed by signal 9" in output  # said at once
    assert error.startswith("vavae: 2 of 2 processes failed, 0.log: killed by signal 9; ")
    assert len(error.splitlines()) == 1
    assert (folder / "frontier.html").exists() and not workers_of(folder)


def test_processes_stop_when_the_command_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = start("--output", str(folder), "--workers", "2", *LONG)
    begun(running, folder)
    running.kill()
    running.communicate()
    until = time.monotonic() + 60
    while workers_of(folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert not workers_of(folder)
    assert all("the same command goes on" in log.splitlines()[-1] for log in logs_of(folder))


def here(monkeypatch: pytest.MonkeyPatch, together: Callable[..., list[str]], *arguments: str) -> tuple[int, str, str]:
    """The command in this process, with something else in place of its processes."""
    monkeypatch.setattr(frontier, "work_together", together)
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        code = run(["frontier", RECIPE, *ONLY, *FEW, "--workers", "2", *arguments])
    return code, output.getvalue(), error.getvalue()


def test_folders_of_calls_that_are_over_are_removed(tmp_path: Path) -> None:
    """And no others, though their process may have the number of this one: containers share a host's name."""
    claims, this = Claims(tmp_path / "claims"), Owner.this()
    other = tmp_path / "workers" / f"{this.host}-{this.pid}-another"
    other.mkdir(parents=True)
    with claims.holding(f"call-{other.name}"), call_folder(tmp_path, claims) as own:
        assert other.is_dir() and own.parent == other.parent and own != other
    own.mkdir()
    with call_folder(tmp_path, claims) as again:
        assert not other.exists() and again == own and not own.exists()
    assert not list((tmp_path / "claims").glob("*.lock"))


def test_a_cell_that_failed_in_one_process_is_told_by_the_command_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def together(config: Config, folder: Path, look: Callable[[], None]) -> list[str]:
        folder.mkdir(parents=True)
        monkeypatch.setenv("VAVAE_FRONTIER_CALL", str(folder))  # as a process of the call has it
        grid = Grid(config, tuple(config.data.open(split).fingerprint() for split in ("train", "test")))
        failures_of_call().add(grid.units[0].result, "no memory left")
        assert failures_of_call().read() == {grid.units[0].result: "no memory left"}  # another process of the call
        look()
        return ["0.log: 1 failed, first no memory left; 0 of 8 done"]

    code, output, error = here(monkeypatch, together, "--output", str(tmp_path))
    assert code == 1
    assert error.startswith("vavae: 1 failed, first no memory left; 0 of ") and error.count("done; page") == 1
    assert "1 failed" in output
    assert "no memory left" in (tmp_path / "frontier.html").read_text()


def test_work_that_waits_for_models_is_no_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--output", str(tmp_path), "--kinds", "[uniformity]", "--time_limit", "60")
    code, output, error = here(monkeypatch, lambda *_: [], *arguments)
    assert (code, error) == (0, "")
    assert "time limit" not in output and "2 pieces of work wait for models that nobody is making" in output


def test_a_limit_that_is_over_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def together(*_: object) -> list[str]:
        time.sleep(0.2)
        return []

    code, output, _ = here(monkeypatch, together, "--output", str(tmp_path), "--time_limit", "0.003")
    assert code == 0 and output.splitlines()[-1].startswith("time limit reached; 0 of ")


def test_gpus_are_dealt_out_and_cores_divided(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_processes_that_share_a_gpu_are_told_of_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    gpus = [{"CUDA_VISIBLE_DEVICES": number} for number in "010"]
    cuda, one = torch.device("cuda"), torch.device("cuda:1")
    assert frontier_workers.take_turns(gpus, cuda) and not frontier_workers.take_turns(gpus[:2], cuda)
    assert frontier_workers.take_turns([{}, {}], one) and not frontier_workers.take_turns([{}], one)
    assert not frontier_workers.take_turns([{}, {}], torch.device("cpu"))
    (tmp_path / "control").touch()
    assert not frontier_workers.take_turns(gpus, cuda)


def test_fewer_than_one_is_refused() -> None:
    with pytest.raises(UserError, match="workers: 0 is less than 1"):
        load_recipe(Config, RECIPE, ["--workers", "0"])
