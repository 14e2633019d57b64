"""Logs of a run: wandb, TensorBoard, and lines that a fault cut off."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from regression_task import CONFIG

from vavae.errors import UserError
from vavae.training.run_log import Tracker, read_metrics


class WandbRun:
    def __init__(self, sent: list[Any]) -> None:
        self._sent = sent

    def define_metric(self, *names: str, **options: str) -> None: ...

    def log(self, numbers: dict[str, float]) -> None:
        self._sent.append(numbers)

    def finish(self) -> None:
        self._sent.append("finished")


def use_wandb(monkeypatch: pytest.MonkeyPatch, option: str) -> list[Any]:
    """Replace wandb; return what is sent to it, beginning with `option` of each start."""
    sent: list[Any] = []

    class Wandb:
        @staticmethod
        def init(**options: Any) -> WandbRun:
            sent.append(options[option])
            return WandbRun(sent)

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    return sent


def test_wandb_logs_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = use_wandb(monkeypatch, "project")
    config = replace(CONFIG, wandb="project")
    tracker = Tracker(tmp_path, 0, config)
    tracker.log(8, {"total": 1.0}, {"images_per_second": 2.0})
    tracker.close()
    assert sent == ["project", {"images": 8, "total": 1.0, "images_per_second": 2.0}, "finished"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'vavae\[wandb\]'"):
        Tracker(tmp_path, 0, config)


def test_wandb_id_moves_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = use_wandb(monkeypatch, "id")
    config = replace(CONFIG, wandb="project")

    def started(folder: Path, resumed: int = 0) -> str:
        Tracker(folder, resumed, config).close()
        return str(sent[-2])

    first, other = started(tmp_path / "a/generator"), started(tmp_path / "b/generator")
    assert first != other and len(first) == 12
    assert started(tmp_path / "a/generator", 8) == first
    (tmp_path / "a").rename(tmp_path / "moved")
    assert started(tmp_path / "moved/generator", 16) == first


def test_tensorboard_keeps_points_up_to_the_resume(tmp_path: Path) -> None:
    """Later points are removed; a run that starts over removes all."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown() -> list[int]:
        found = EventAccumulator(str(tmp_path / "tensorboard"))
        found.Reload()
        return [event.step for event in found.Scalars("metrics/total")]

    def log(resumed: int, *images: int) -> None:
        tracker = Tracker(tmp_path, resumed, replace(CONFIG, tensorboard=True))
        for seen in images:
            tracker.log(seen, {"total": 1.0}, {})
        tracker.close()

    log(0, 16, 32, 48)
    log(32, 48, 64)
    assert shown() == [16, 32, 48, 64]
    log(0, 16)
    assert shown() == [16]


def test_rollback_removes_points_of_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker(tmp_path, 0, replace(CONFIG, tensorboard=True))
    for images, total in ((8, 1.0), (16, 2.0), (24, 9.0)):
        tracker.log(images, {"total": total}, {})
    tracker.truncate(8, 24, "total jumped to 9")
    tracker.log(16, {"total": 3.0}, {})
    tracker.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("metrics/total")] == [(8, 1.0), (16, 3.0)]
    assert [line["total"] for line in read_metrics(tmp_path)] == [1.0, 3.0]


def test_cut_off_lines_of_a_log_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"images": 8, "total": 1.0}\n5\n{"images": 16, "to\xff": 0}\n\xff\xfe\n{"images": 16, "tot')
    assert read_metrics(tmp_path) == [{"images": 8, "total": 1.0}]
    Tracker(tmp_path, 16, CONFIG).close()
    assert log.read_bytes() == b'{"images": 8, "total": 1.0}\n'
