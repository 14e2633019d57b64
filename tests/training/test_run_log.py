"""Logs of a run: its own files, TensorBoard, the loggers of accelerate, and lines that a fault cut off."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from regression_task import CONFIG, Regression

from vavae.errors import UserError
from vavae.training import loggers
from vavae.training.run_folder import open_run
from vavae.training.run_log import Tracker, read_metrics
from vavae.training.trainer import Trainer


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Replace wandb; return what is sent to it, beginning with the options of each start."""
    accelerate = pytest.importorskip("accelerate.tracking")
    found: list[Any] = []

    class Run:
        def __init__(self, options: dict[str, Any]) -> None:
            self.id = options.get("id") or f"run {len(found)}"
            self.finish = lambda: found.append("finished")

        def log(self, values: dict[str, Any], step: int) -> None:
            found.append((step, values))

    def init(**options: Any) -> Run:
        found.append(options)
        return Run(options)

    wandb = ModuleType("wandb")
    wandb.init, wandb.Image = init, lambda image: image.size  # type: ignore[attr-defined]
    wandb.config = SimpleNamespace(update=lambda values, **_: found.append(values))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(accelerate, "_available_trackers", ["wandb"])
    yield found


WANDB = replace(CONFIG, loggers=("wandb",), project="mine")


def test_wandb_gets_recipe_numbers_and_pictures(tmp_path: Path, sent: list[Any]) -> None:
    (tmp_path / "recipe.yaml").write_text("training: {images: 8}\nflip: true\n")
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    tracker = Tracker(tmp_path, 0, WANDB)
    tracker.log(8, {"total": 1.0, "lr": 2.0, "val/loss": 3.0}, {"mfu": 0.4})
    tracker.picture(8, "samples", tmp_path / "a.png")
    tracker.close()
    assert sent == [
        {"project": "mine", "name": tmp_path.name, "dir": str(tmp_path), "resume": "allow"},
        {"training.images": 8, "flip": True},
        (8, {"train/loss": 1.0, "train/lr": 2.0, "val/loss": 3.0, "perf/mfu": 0.4}),
        (8, {"samples": [(6, 4)]}),
        "finished",
    ]


def test_resumed_run_continues_in_wandb_without_doubled_steps(tmp_path: Path, sent: list[Any]) -> None:
    """Kills, a move of the folder, a rollback and one more kill: each step arrives once, in one run."""

    def log(folder: Path, resumed: int, *images: int) -> None:
        tracker = Tracker(folder, resumed, WANDB)
        for seen in images:
            tracker.log(seen, {"total": 1.0}, {})
        if resumed == 24:
            tracker.truncate(32, 56, "total jumped")
            tracker.log(40, {"total": 1.0}, {})
        tracker.close()

    log(tmp_path / "a", 0, 16, 32, 48)
    log(tmp_path / "a", 16, 24)
    (tmp_path / "a").rename(tmp_path / "b")
    log(tmp_path / "b", 24, 32, 48, 56)
    log(tmp_path / "b", 32, 40, 48, 56, 64)
    assert [step for step, _ in (entry for entry in sent if isinstance(entry, tuple))] == [16, 32, 48, 56, 64]
    assert [entry.get("id") for entry in sent if isinstance(entry, dict)] == [None, "run 1", "run 1", "run 1"]


def test_logger_that_is_missing_or_fails_says_so(
    tmp_path: Path, sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = SimpleNamespace(output=str(tmp_path), training=replace(CONFIG, loggers=("mlflow",)))
    monkeypatch.setattr("vavae.training.run_folder._take_up", lambda *_: False)
    with pytest.raises(UserError) as missing, open_run(recipe, "model"):
        pytest.fail("the run began")
    assert str(missing.value) == "training.loggers: mlflow is not installed: pip install accelerate mlflow"

    def refuse(**options: Any) -> None:
        raise RuntimeError("no API key\n  configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UserError, match=r"^training\.loggers: wandb does not start \(no API key configured\)$"):
        Tracker(tmp_path, 0, WANDB)


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def points(folder: Path, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(name)]


def test_run_in_tensorboard(tmp_path: Path) -> None:
    """Losses, learning rate, speed and validation as numbers, previews as pictures, the recipe as a text."""

    class Pictured(Regression):
        pictures = "reconstructions"

        def preview(self, states: Any, path: Path) -> None:
            Image.new("RGB", (6, 4), (10, 20, 30)).save(path)

        def validate(self, states: Any, at_once: int | None = None) -> Any:
            return {"total": states["body"]["0.weight"].sum()}

    (tmp_path / "recipe.yaml").write_text("training:\n  images: 80\n")
    config = replace(CONFIG, images=80, tensorboard=True, preview_images=40, validation_images=80)
    Trainer(Pictured(), config, tmp_path).run("regression")
    found = events(tmp_path)
    names = found.Tags()["scalars"]
    assert {"train/loss", "train/lr", "train/lr/head", "train/gradient_norm/body", "val/loss"} <= set(names)
    assert {"perf/images_per_second", "perf/memory_gb"} <= set(names)
    assert [event.step for event in found.Scalars("train/loss")] == [40, 80] and len(found.Scalars("val/loss")) == 1
    # Cosine from 32 images of warm-up to 80, at the last steps, which began at 32 and 72 images.
    rates = [value for _, value in points(tmp_path, "train/lr")]
    assert rates[0] == pytest.approx(1e-2) and 0 < rates[1] < 1e-3
    assert rates == pytest.approx([line["lr"] for line in read_metrics(tmp_path)])
    pictures = found.Images("reconstructions")
    assert [(picture.step, picture.width, picture.height) for picture in pictures] == [(40, 6, 4), (80, 6, 4)]
    (recipe,) = found.Tensors("recipe/text_summary")
    assert b"training:\n  images: 80" in recipe.tensor_proto.string_val[0]


@pytest.mark.slow
def test_tensorboard_keeps_points_up_to_the_resume(tmp_path: Path) -> None:
    """Later points and pictures are removed; a run that starts over removes all."""
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")

    def log(resumed: int, *images: int) -> None:
        tracker = Tracker(tmp_path, resumed, replace(CONFIG, tensorboard=True))
        for seen in images:
            tracker.log(seen, {"total": 1.0}, {})
            tracker.picture(seen, "samples", tmp_path / "a.png")
        tracker.close()

    log(0, 16, 32, 48)
    time.sleep(1)  # as in the next test
    log(32, 48, 64)
    assert [step for step, _ in points(tmp_path)] == [16, 32, 48, 64]
    assert [picture.step for picture in events(tmp_path).Images("samples")] == [16, 32, 48, 64]
    time.sleep(1)
    log(0, 16)
    assert [step for step, _ in points(tmp_path)] == [16]


def test_rollback_removes_points_of_tensorboard(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, 0, replace(CONFIG, tensorboard=True))
    for images, total in ((8, 1.0), (16, 2.0), (24, 9.0)):
        tracker.log(images, {"total": total}, {})
    time.sleep(1)  # files of one second are read in the order of a number without leading zeros: 10 before 9
    tracker.truncate(8, 24, "total jumped to 9")
    tracker.log(16, {"total": 3.0}, {})
    tracker.close()
    assert points(tmp_path) == [(8, 1.0), (16, 3.0)]
    assert [line["total"] for line in read_metrics(tmp_path)] == [1.0, 3.0]


def test_cut_off_lines_of_a_log_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"images": 8, "total": 1.0}\n5\n{"images": 16, "to\xff": 0}\n\xff\xfe\n{"images": 16, "tot')
    assert read_metrics(tmp_path) == [{"images": 8, "total": 1.0}]
    Tracker(tmp_path, 16, CONFIG).close()
    assert log.read_bytes() == b'{"images": 8, "total": 1.0}\n'


def test_every_logger_is_known_to_accelerate() -> None:
    tracking = pytest.importorskip("accelerate.tracking")
    assert loggers._LIBRARIES.keys() <= {str(name) for name in tracking.LOGGER_TYPE_TO_CLASS}
