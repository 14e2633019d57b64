"""Rollback of bad intervals: where a run resumes, what it keeps, and when it stops."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from regression_task import CONFIG, Regression
from torch import Tensor

from vavae.errors import RunError
from vavae.training.checkpoint import CheckpointFolder, images_of
from vavae.training.run_log import read_metrics
from vavae.training.stability import StabilityConfig
from vavae.training.trainer import Trainer

SHORT = replace(CONFIG, images=200, checkpoint_images=80)


def test_rollback_takes_the_next_data_order(tmp_path: Path) -> None:
    task = Regression()
    task.bad_steps = {(0, p) for p in range(120, 200, 8)}
    trainer = Trainer(task, SHORT, tmp_path)
    trainer.run("back")
    assert trainer.data_order == 1 and trainer.images_seen == 200
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert event["images"] == 160 and "back to 80, data order 1" in event["event"]
    lines = [line["images"] for line in read_metrics(tmp_path)]
    assert lines == list(range(40, 201, 40))  # no gap, no line twice
    assert all(line["skipped/body"] == 0 for line in read_metrics(tmp_path))


@pytest.mark.parametrize(
    ("every", "keep", "back"),
    [
        (40, 2, 120),  # written when all before was known to be good
        (8, 2, 120),  # those within the bad interval do not push it out
        (80, 2, 80),
        (24, 5, 120),
    ],
)
@pytest.mark.slow
def test_rollback_goes_to_the_last_good_checkpoint(every: int, keep: int, back: int, tmp_path: Path) -> None:
    task = Regression()
    task.bad_steps = {(0, p) for p in range(120, 200, 8)}
    Trainer(task, replace(SHORT, checkpoint_images=every, keep_checkpoints=keep), tmp_path).run("back")
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert event["images"] == 160 and f"back to {back}, data order 1" in event["event"]


@pytest.mark.slow
def test_skipped_step_does_not_hide_a_spike(tmp_path: Path) -> None:
    """Means are over the steps that were taken, so a spike in the same interval is seen."""
    steady = replace(CONFIG, images=520, stability=StabilityConfig(spike=20.0, history=8))
    task = Regression()
    task.bad_steps = {(0, 480)}
    Trainer(task, steady, tmp_path / "skipped").run("skipped")
    lines = {line["images"]: line for line in read_metrics(tmp_path / "skipped")}
    assert lines[520]["skipped/body"] == pytest.approx(1 / 5)
    assert lines[520]["total"] is not None and lines[520]["gradient_norm/body"] is not None
    plain = Regression()
    Trainer(plain, steady, tmp_path / "plain").run("plain")
    assert lines[480] == next(line for line in read_metrics(tmp_path / "plain") if line["images"] == 480)
    spiked = Regression()
    original = spiked.step

    def step(batch: Any, images_seen: int, scale: float) -> dict[str, Tensor]:
        terms = original(batch, images_seen, scale)
        return {name: value * 1000 for name, value in terms.items()} if 480 <= images_seen < 520 else terms

    spiked.step = step  # type: ignore[method-assign]
    spiked.bad_steps = {(order, 480) for order in range(3)}
    with pytest.raises(RunError, match="total jumped to"):
        Trainer(spiked, steady, tmp_path / "spiked").run("spiked")


def test_failure_folder_reproduces_the_failure(tmp_path: Path) -> None:
    def bad() -> Regression:
        task = Regression()
        task.bad_steps = {(order, p) for order in range(3) for p in range(120, 200, 8)}
        return task

    with pytest.raises(RunError, match=r"after 2 rollbacks; .*failure reproduces it"):
        Trainer(bad(), SHORT, tmp_path).run("bad")
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2
    repeated = Trainer(bad(), SHORT, tmp_path / "failure")
    with pytest.raises(RunError, match=r"100% of the steps were skipped.*160 images"):
        repeated.run("again")
    assert repeated.data_order == 2


def test_run_without_good_checkpoint_cannot_roll_back(tmp_path: Path) -> None:
    task = Regression()
    task.bad_steps = {(0, p) for p in range(0, 200, 8)}
    with pytest.raises(RunError, match="no checkpoint to go back to"):
        Trainer(task, SHORT, tmp_path).run("bad")
    assert read_metrics(tmp_path)[0]["total"] is None  # JSON has no NaN


@pytest.mark.slow
def test_rollback_removes_checkpoints_of_the_bad_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Regression()
    task.bad_steps = {(0, p) for p in range(120, 200, 8)}
    kept: dict[int, list[int]] = {}
    original = task.batches

    def batches(start: int, data_order: int) -> Iterator[tuple[int, Tensor]]:
        kept[data_order] = [images_of(path) for path in CheckpointFolder(tmp_path / "checkpoints").list()]
        return original(start, data_order)

    monkeypatch.setattr(task, "batches", batches)
    Trainer(task, replace(SHORT, checkpoint_images=8, keep_checkpoints=9), tmp_path).run("bad")
    assert kept[0] == [] and kept[1] == list(range(88, 128, 8))  # of 9, up to 152


@pytest.mark.slow
def test_run_killed_after_a_rollback_ends_bit_identical(tmp_path: Path) -> None:
    """The rollback is repeated, since no checkpoint of the next data order exists yet."""

    class Killed(BaseException):
        pass

    def run(folder: Path, killed: bool = False) -> dict[str, Tensor]:
        task = Regression()
        task.bad_steps = {(0, p) for p in range(120, 200, 8)}
        original = task.step

        def step(batch: Any, images_seen: int, scale: float) -> dict[str, Tensor]:
            if killed and task.order == 1 and images_seen == 128:
                raise Killed
            return original(batch, images_seen, scale)

        task.step = step  # type: ignore[method-assign]
        trainer = Trainer(task, SHORT, folder)
        trainer.run("run")
        assert trainer.data_order == 1
        tensors, _ = CheckpointFolder(folder / "checkpoints").load_newest() or ({}, {})
        return tensors

    expected = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", killed=True)
    found = run(tmp_path / "killed")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert logs[0] == logs[1]
