"""The best model of a run: chosen by a validation number, replaced as a whole, the same after a kill."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from regression_task import CONFIG, Regression, SavedBody
from tiny_runs import live_states, tokenizer_recipe, transformer_recipe, use_tiny_teacher, write_latents

from vavae.cli import run
from vavae.errors import UserError
from vavae.models import Generator, Tokenizer
from vavae.stages import train_dit, train_tokenizer
from vavae.training.best import BestModel
from vavae.training.run_log import read_metrics
from vavae.training.trainer import Trainer

VALUES = {80: 3.0, 160: 1.0, 240: float("nan"), 320: 2.0, 400: 0.5, 480: 0.7}
RUN = replace(CONFIG, images=480, log_images=40, checkpoint_images=120, validation_images=80, best="val/loss")


class Measured(Regression):
    """Its validation numbers are given; `weights` has the averaged weights that were measured."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.weights: dict[int, float] = {}

    def step(self, batch: Any, images_seen: int, scale: float) -> Any:
        self.seen = images_seen + 8
        return super().step(batch, images_seen, scale)

    def validate(self, states: Any, at_once: int | None = None) -> dict[str, torch.Tensor]:
        self.weights[self.seen] = float(states["body"]["0.weight"].sum())
        return {"total": torch.tensor(VALUES[self.seen])}


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "best/config.json").read_text())


def test_model_with_the_best_number_is_kept(tmp_path: Path) -> None:
    task = Measured()
    Trainer(task, RUN, tmp_path).run("regression")
    found = facts(tmp_path)
    assert found["weight"] == pytest.approx(task.weights[400]) and found["weight"] != pytest.approx(task.weights[480])
    assert found["provenance"]["images_seen"] == 400 and found["provenance"]["val/loss"] == 0.5
    assert sorted(path.name for path in tmp_path.glob("*best*")) == ["best", "best-loss-000000000400"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that is not killed and keeps no best model."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(Measured(), replace(RUN, best=None), folder).run("regression")
    return folder


@pytest.mark.parametrize("moment", ["while it is written", "before the link", "after the link"])
@pytest.mark.slow
def test_kill_loses_nothing(moment: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`best` is a whole model at every moment, and the logs are those of `whole`."""
    folder = tmp_path / "killed"
    save, link = SavedBody.save_pretrained, Path.replace

    def saved(self: SavedBody, path: Path) -> None:
        if moment == "while it is written" and "400" in path.name:
            path.mkdir()
            raise KeyboardInterrupt
        save(self, path)

    def linked(source: Path, target: Any) -> None:
        last = target == folder / "best" and "400" in str(source.readlink())
        if last and moment == "before the link":
            raise KeyboardInterrupt
        link(source, target)
        if last and moment == "after the link":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SavedBody, "save_pretrained", saved)
        patch.setattr(Path, "replace", linked)
        with pytest.raises(KeyboardInterrupt):
            Trainer(Measured(), RUN, folder).run("regression")
    assert facts(folder)["provenance"]["images_seen"] == (400 if moment == "after the link" else 160)
    Trainer(Measured(), RUN, folder).run("regression")
    assert facts(folder)["provenance"]["images_seen"] == 400
    assert read_metrics(folder) == read_metrics(whole)


def test_larger_is_better_for_psnr_only(tmp_path: Path) -> None:
    for number, better in (("val/psnr", 21.0), ("val/loss", 19.0)):
        best = BestModel(tmp_path / number, number)
        (tmp_path / number).mkdir(parents=True)
        assert best.improves(20.0, 8)
        best.replace(8, SavedBody(torch.zeros(1), {"images_seen": 8, number: 20.0}).save_pretrained)
        assert best.improves(better, 16) and not best.improves(40.0 - better, 16) and not best.improves(20.0, 16)
        assert not best.improves(better, 8)  # the same point again, after a resume
        assert BestModel(tmp_path / number, "val/frechet").improves(1e9, 16)  # another number chose the folder


@pytest.mark.slow
def test_commands_read_the_best_of_both_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_teacher(monkeypatch.setattr)
    data = write_latents(tmp_path / "data")
    plain = transformer_recipe(tmp_path / "dit", data, images=32, validation_images=16)
    training = replace(plain.training, best="val/loss")
    last = train_dit.run(replace(plain, training=training, validation_latents=str(data / "latents")))
    measured = {line["images"]: line["val/loss"] for line in read_metrics(tmp_path / "dit") if "val/loss" in line}
    best = Generator.from_pretrained(tmp_path / "dit/best")
    assert best.provenance["val/loss"] == pytest.approx(min(measured.values()), rel=1e-6)
    assert best.provenance["latents"] == last.provenance["latents"]
    sample = ["sample", "--generator", str(tmp_path / "dit/best"), "--count", "2", "--steps", "3"]
    assert run([*sample, "--output", str(tmp_path / "samples")]) == 0

    recipe = tokenizer_recipe(tmp_path / "tokenizer", images=32, validation_images=16, best="val/psnr")
    whole = train_tokenizer.run(recipe)
    found = Tokenizer.from_pretrained(tmp_path / "tokenizer/best")
    assert found.provenance["val/psnr"] > 0 and found.statistics.count == whole.statistics.count == 30


def test_statistics_of_the_best_tokenizer_are_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_teacher(monkeypatch.setattr)
    monkeypatch.setattr(train_tokenizer, "_QUICK_STATISTICS_IMAGES", 7)
    recipe = tokenizer_recipe(tmp_path)
    task = train_tokenizer.TokenizerTask(recipe, recipe.data.open("train"), tmp_path)
    assert [task.model(live_states(task), {}, 8, quick).statistics.count for quick in (True, False)] == [7, 30]


def test_wrong_numbers_are_refused_when_the_recipe_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^training\.best needs training\.validation_images"):
        tokenizer_recipe(tmp_path, best="val/psnr")
    with pytest.raises(UserError, match=r"measures \(val/nll, .*val/psnr, .*\), got psnr$"):
        tokenizer_recipe(tmp_path, best="psnr", validation_images=16)
    with pytest.raises(UserError, match=r"\(nothing: give validation_latents or frechet.samples\), got val/loss$"):
        transformer_recipe(tmp_path, tmp_path, best="val/loss", validation_images=16)
