"""`--workers`: several processes started by one command share the grid, stop together, and tell what is wrong once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vavae.config import load_recipe
from vavae.errors import UserError
from vavae.stages import frontier_workers
from vavae.stages.frontier_recipe import Config

RECIPE = str(Path(__file__).with_name("frontier_grid.yaml"))
ONLY = [f"--experiments.{name}.seeds=[]" for name in ("table4", "table5", "convergence", "ladder")]
COMMAND = [sys.executable, "-m", "vavae", "frontier", RECIPE, *ONLY, "--kinds", "[tokenizer,generator]"]
UNITS = 8  # four tokenizers and four generators


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [*COMMAND, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def results(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "results").glob("*.json")}


def trainings(folder: Path) -> list[str]:
    """What the processes of the last call began to train."""
    said = "\n".join(path.read_text() for path in folder.glob("workers/*.log"))
    return re.findall("^training .*", said, re.MULTILINE)


def workers_of(folder: Path) -> list[int]:
    """Living processes that work on the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder / "workers/recipe.yaml").encode() in said:
            found.append(int(path.parent.name))
    return found


def test_one_command_stopped_and_given_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("--output", str(folder), "--workers", "2")
    first = start(*arguments)
    while first.poll() is None and len(results(folder)) < 2:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    output, error = first.communicate()
    assert first.returncode == 1, error
    assert "Traceback" not in error and "the same command goes on" in error.splitlines()[-1]
    assert not workers_of(folder)
    before = results(folder)
    assert 2 <= len(before) < UNITS and (folder / "frontier.html").exists()
    trained = trainings(folder)

    second = start(*arguments)
    output, error = second.communicate()
    assert second.returncode == 0, error
    assert f"{UNITS} of " in output.splitlines()[-1]
    after = results(folder)
    assert len(after) == UNITS
    assert {name: at for name, at in after.items() if name in before} == before  # nothing is done again
    logs = [(folder / f"workers/{number}.log").read_text() for number in range(2)]
    done = [set(re.findall(r"^done: (.*) in \d", log, re.MULTILINE)) for log in logs]
    assert not done[0] & done[1] and len(done[0] | done[1]) == UNITS - len(before)
    trained += trainings(folder)
    assert len(set(trained)) == UNITS and len(trained) <= UNITS + 2  # two were stopped in their training
    assert all(json.loads(path.read_text())["format"] for path in folder.glob("results/*.json"))


def test_a_wrong_recipe_is_told_once(tmp_path: Path) -> None:
    asked = start("--output", str(tmp_path), "--workers", "2", "--measure.network", "teacher:nobody@28")
    _, error = asked.communicate()
    assert asked.returncode == 2
    assert error.startswith("vavae: ") and "nobody" in error and len(error.splitlines()) == 1


def test_processes_that_die_fail_the_run_and_a_page_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    running = start("--output", str(folder), "--workers", "2")
    while running.poll() is None and len(list(folder.glob("claims/*.lock"))) < 2:
        time.sleep(0.05)
    for process in workers_of(folder):
        os.kill(process, signal.SIGKILL)
    _, error = running.communicate()
    assert running.returncode == 1
    assert error.startswith("vavae: 2 of 2 processes failed") and len(error.splitlines()) == 1
    assert (folder / "frontier.html").exists() and not workers_of(folder)


def test_gpus_are_dealt_out_and_cores_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_recipe(Config, RECIPE, ["--workers", "3"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(frontier_workers.os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(frontier_workers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(frontier_workers.torch.cuda, "device_count", lambda: 2)
    shares = frontier_workers._shares(config)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0", "1", "0"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [share["CUDA_VISIBLE_DEVICES"] for share in frontier_workers._shares(config)] == ["5", "7", "5"]
    monkeypatch.setattr(frontier_workers.torch.cuda, "is_available", lambda: False)
    assert all("CUDA_VISIBLE_DEVICES" not in share for share in frontier_workers._shares(config))


def test_fewer_than_one_is_refused() -> None:
    with pytest.raises(UserError, match="workers: 0 is less than 1"):
        load_recipe(Config, RECIPE, ["--workers", "0"])
