"""Training of a tokenizer: averages, validation, statistics, flips."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tokenizer_recipe, use_tiny_teacher
from torch import Tensor

from vavae.data import load_images
from vavae.models import Tokenizer
from vavae.stages import train_tokenizer
from vavae.stages.train_tokenizer import TokenizerTask
from vavae.tokenizer import AutoencoderKL
from vavae.training.optimizer import OptimizerConfig
from vavae.training.parallel import World


@pytest.fixture(autouse=True)
def tiny_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_teacher(monkeypatch.setattr)


def make_task(recipe: train_tokenizer.Config, world: World | None = None) -> TokenizerTask:
    return TokenizerTask(recipe, recipe.data.open("train"), Path(recipe.output), world)


@pytest.mark.slow
def test_tokenizer_has_averaged_weights_and_their_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An average that hardly moves keeps the first weights, while the live network moves away from them."""
    recipe = tokenizer_recipe(tmp_path, images=16, ema_decay=1 - 1e-9, ema_warmup=False)
    recipe = replace(recipe, optimizer=OptimizerConfig(learning_rate=0.1))
    tasks: list[TokenizerTask] = []
    made = TokenizerTask.__init__

    def keep(self: TokenizerTask, *arguments: Any) -> None:
        made(self, *arguments)
        tasks.append(self)

    monkeypatch.setattr(TokenizerTask, "__init__", keep)
    train_tokenizer.run(recipe)
    written = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    live = tasks[0].autoencoder
    first = make_task(recipe)
    for name, value in written.autoencoder.state_dict().items():
        torch.testing.assert_close(value, first.autoencoder.state_dict()[name], rtol=0, atol=1e-4, msg=name)
    statistics = first.statistics(first.autoencoder.eval())
    torch.testing.assert_close(written.statistics.mean, statistics.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(written.statistics.std, statistics.std, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(tasks[0].statistics(live.eval()).std, statistics.std, rtol=0.05)


def test_validation_distance_of_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(tokenizer_recipe(tmp_path, validation_images=48))
    averaged = {name: torch.full_like(value, 0.5) for name, value in task.autoencoder.state_dict().items()}
    measured: list[AutoencoderKL] = []

    def distance(model: AutoencoderKL) -> Tensor:
        measured.append(model)
        return torch.tensor(1.0)

    monkeypatch.setattr(TokenizerTask, "_distance", staticmethod(distance))
    monkeypatch.setattr(task, "config", replace(task.config, frechet=replace(task.config.frechet, samples=20)))
    task.validate({"autoencoder": averaged})
    assert all(bool((parameter == 0.5).all()) for parameter in measured[0].parameters())


def test_statistics_of_all_processes(tmp_path: Path) -> None:
    gathered: list[Any] = []

    class Second(World):
        """One of two processes, which run one after the other."""

        def gather(self, value: Any) -> list[Any]:
            gathered.append(value)
            return list(gathered)

    recipe = tokenizer_recipe(tmp_path)
    recipe = replace(recipe, data=replace(recipe.data, limit=40))
    alone = make_task(recipe)
    model = alone.averaged_model(alone.autoencoder.state_dict())
    wanted = alone.statistics(model, 8)
    for rank in (1, 0):
        found = make_task(recipe, Second(rank, 2)).statistics(model, 8)
    assert len(gathered) == 2
    assert found.count == wanted.count == 40
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.std, wanted.std, rtol=1e-5, atol=1e-6)


def test_flips_change_from_epoch_to_epoch(tmp_path: Path) -> None:
    """Each of 30 images is read eight times, about half of them mirrored."""
    recipe = tokenizer_recipe(tmp_path, batch_size=30)
    task = make_task(replace(recipe, data=replace(recipe.data, crop="center")))
    plain = load_images(task.source, range(30), 8)
    times = torch.zeros(2, 30, dtype=torch.int64)  # plain and mirrored
    batches = task.batches(0, 0)
    for _ in range(8):
        images = next(batches).images
        for i, table in enumerate((plain, plain.flip(3))):
            times[i] += (images[:, None] == table[None]).flatten(2).all(2).sum(0)
    batches.close()  # type: ignore[attr-defined]
    assert times.sum(0).tolist() == [8] * 30
    assert int((times > 0).all(0).sum()) >= 25 and 80 <= int(times[1].sum()) <= 160
