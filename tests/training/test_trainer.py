"""The trainer on a small task: exact resume, averages, skipped steps, clean stops."""

import errno
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from children import CONTEXT
from regression_task import CONFIG, Regression, run_until_killed
from torch import Tensor

from vavae.errors import RunError, UserError
from vavae.training.checkpoint import CheckpointFolder
from vavae.training.run_log import read_metrics
from vavae.training.trainer import Trainer, TrainingConfig

SHORT = replace(CONFIG, images=200, checkpoint_images=100)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is not disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(Regression(), CONFIG, folder).run("whole")
    return folder


def state(folder: Path) -> dict[str, Tensor]:
    tensors, _ = CheckpointFolder(folder / "checkpoints").load_newest() or ({}, {})
    return tensors


@pytest.mark.slow
def test_stopped_run_ends_bit_identical(whole: Path, tmp_path: Path) -> None:
    for stop_at in (104, 336, 600):  # within a log interval, and between checkpoints
        task = Regression()
        task.stop_at = stop_at
        with pytest.raises(KeyboardInterrupt, match="same command to resume"):
            Trainer(task, CONFIG, tmp_path).run("part")
    parts = Trainer(Regression(), CONFIG, tmp_path)
    parts.run("rest")
    assert parts.images_seen == 800
    one, other = state(whole), state(tmp_path)
    assert one.keys() == other.keys()
    assert len([k for k in one if k.startswith("optimizer/body/body/")]) == 12  # 4 parameters, 3 slots each
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "metrics.jsonl").read_text() == (tmp_path / "metrics.jsonl").read_text()


def test_stop_in_the_last_step_saves_and_raises(tmp_path: Path) -> None:
    """The stage that follows must not start."""
    task = Regression()
    task.stop_at = 192
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="finished work is saved; run the same command to resume"):
        Trainer(task, SHORT, tmp_path).run("stopped")
    assert signal.getsignal(signal.SIGINT) is former
    again = Trainer(Regression(), SHORT, tmp_path)
    again.run("again")
    assert again.images_seen == 200 and again.steps_done == 25


@pytest.mark.slow
def test_killed_run_repeats_the_lost_part_exactly(whole: Path, tmp_path: Path) -> None:
    """After SIGKILL the newest checkpoint may be older than the log, which must not repeat lines."""
    killed = CONTEXT.Process(target=run_until_killed, args=(str(tmp_path), torch.get_num_threads()))
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 12  # up to 480, checkpoint at 400
    Trainer(Regression(), CONFIG, tmp_path).run("again")
    one, other = state(whole), state(tmp_path)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "metrics.jsonl").read_text() == (tmp_path / "metrics.jsonl").read_text()


def test_averages_follow_the_formula(tmp_path: Path) -> None:
    task = Regression()
    reference = {k: v.clone().double() for k, v in task.modules["head"].state_dict().items()}
    trainer = Trainer(task, TrainingConfig(images=80, batch_size=8, ema_decay=0.9, tensorboard=False), tmp_path)
    original = trainer._apply
    steps = 0

    def apply(terms: dict[str, Tensor]) -> None:
        nonlocal steps
        original(terms)
        decay = min(0.9, (1 + steps) / (10 + steps))
        for key, value in task.modules["head"].state_dict().items():
            reference[key] = decay * reference[key] + (1 - decay) * value.double()
        steps += 1

    trainer._apply = apply  # type: ignore[method-assign, assignment]
    trainer.run("averages")
    assert steps == 10
    for key, value in trainer.averaged_state("head").items():
        torch.testing.assert_close(value.double(), reference[key], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, task.modules["head"].state_dict()[key])


def test_bad_step_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    task = Regression()
    task.bad_steps = {(0, 0)}
    before = {k: v.clone() for k, v in task.modules["head"].state_dict().items()}
    trainer = Trainer(task, TrainingConfig(images=80, batch_size=8, log_images=80, tensorboard=False), tmp_path)
    terms = task.step(next(task.batches(0, 0)), 0, 1.0)
    trainer._apply(terms)
    assert all(torch.equal(before[k], v) for k, v in task.modules["head"].state_dict().items())
    trainer.run("rest")
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["skipped/head"] == pytest.approx(2 / 11)
    assert not torch.equal(before["weight"], task.modules["head"].state_dict()["weight"])


def test_skipped_step_leaves_running_statistics_and_averages_finite(tmp_path: Path) -> None:
    """A forward pass with NaN changes the statistics of BatchNorm before the loss shows it."""

    class Damaged(Regression):
        def step(self, batch: Any, images_seen: int, scale: float) -> dict[str, Tensor]:
            position, x = batch
            return super().step((position, x * torch.nan if images_seen == 152 else x), images_seen, scale)

    trainer = Trainer(Damaged(), replace(CONFIG, images=400), tmp_path)
    trainer.run("damaged")
    assert read_metrics(tmp_path)[3]["skipped/body"] == pytest.approx(1 / 5)  # the log has a line every 40 images
    for state in (trainer.task.modules["body"].state_dict(), trainer.averaged_state("body")):
        assert {"1.running_mean", "1.running_var"} < state.keys()
        assert all(torch.isfinite(value).all() for value in state.values())


def test_damaged_checkpoint_falls_back_to_the_former(tmp_path: Path) -> None:
    Trainer(Regression(), SHORT, tmp_path).run("all")
    checkpoints = CheckpointFolder(tmp_path / "checkpoints").list()
    assert [p.name for p in checkpoints] == ["images-000000000104", "images-000000000200"]
    damaged = checkpoints[-1] / "__0_0.distcp"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    trainer = Trainer(Regression(), SHORT, tmp_path)
    trainer._resume(trainer._checkpoints.newest())
    assert trainer.images_seen == 104
    assert (tmp_path / "checkpoints/damaged-images-000000000200").is_dir()


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    Trainer(Regression(), SHORT, tmp_path).run("six")
    with pytest.raises(UserError, match="does not fit this recipe"):
        Trainer(Regression(width=7), SHORT, tmp_path).run("seven")


@pytest.mark.parametrize("where", ["in our own files", "within torch's writer", "in another process"])
def test_full_disk_keeps_the_former_checkpoint(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint.api import CheckpointException

    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(8, {"a": torch.ones(3)}, {"n": 1})
    folder.wait()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def hidden(*arguments: object) -> None:
        """Fail as torch's writer does: the archive reports a failed write without its cause."""
        try:
            full()
        except OSError as error:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598") from error

    def elsewhere(*arguments: object) -> None:
        raise CheckpointException("write", {1: (OSError(errno.ENOSPC, "No space left on device"), None)})  # type: ignore[dict-item]

    if where == "in our own files":
        monkeypatch.setattr("vavae.training.checkpoint._sync", full)
    else:
        monkeypatch.setattr(FileSystemWriter, "write_data", hidden if where.startswith("within") else elsewhere)
    folder.save(16, {"a": torch.zeros(3)}, {"n": 2})
    with pytest.raises(OSError, match="No space") as failed:
        folder.wait()
    assert failed.value.errno == errno.ENOSPC
    tensors, numbers = folder.load_newest() or ({}, {})
    assert numbers == {"n": 1} and torch.equal(tensors["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["images-000000000008"]


def test_run_that_fails_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that follows at once in the same process removes half-written files, so none may still be written."""
    from torch.distributed.checkpoint import FileSystemWriter

    write = FileSystemWriter.write_data

    def slow(*arguments: Any) -> Any:
        time.sleep(0.5)
        return write(*arguments)

    def failing_preview(tracker: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", slow)
    trainer = Trainer(Regression(), replace(SHORT, preview_images=112), tmp_path)
    monkeypatch.setattr(trainer, "_preview", failing_preview)
    with pytest.raises(OSError, match="No space"):
        trainer.run("fails")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["images-000000000104"]


def test_writer_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.checkpoint import FileSystemWriter

    def broken(*arguments: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(FileSystemWriter, "write_data", broken)
    folder = CheckpointFolder(tmp_path)
    folder.save(16, {"a": torch.zeros(3)}, {})
    with pytest.raises(RunError, match=r"the checkpoint could not be written \(two lines\)"):
        folder.wait()
    assert list(tmp_path.iterdir()) == []
