"""Training of a transformer: averages, validation, labels, flips, normalization."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import transformer_recipe, write_latents
from torch import Tensor

from vavae import rng
from vavae.data import LatentDataset
from vavae.flow import FlowConfig
from vavae.models import Generator, Tokenizer
from vavae.stages import train_dit
from vavae.stages.train_dit import TransformerTask
from vavae.training.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def make_task(recipe: train_dit.Config) -> TransformerTask:
    return TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))


def test_generator_has_averaged_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An average that hardly moves keeps the first weights, while the live network moves away from them."""
    recipe = transformer_recipe(tmp_path, data, images=16, ema_decay=1 - 1e-9, ema_warmup=False)
    recipe = replace(recipe, optimizer=OptimizerConfig(learning_rate=0.1))
    tasks: list[TransformerTask] = []
    made = TransformerTask.__init__

    def keep(self: TransformerTask, *arguments: Any) -> None:
        made(self, *arguments)
        tasks.append(self)

    monkeypatch.setattr(TransformerTask, "__init__", keep)
    train_dit.run(recipe)
    written = Generator.from_pretrained(tmp_path / "generator").transformer
    (task,) = tasks
    first = make_task(recipe).transformer.state_dict()
    for name, value in written.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=1e-4, msg=name)
    live = task.transformer.state_dict()
    assert max(float((value - first[name]).abs().max()) for name, value in live.items()) > 0.05


def test_validation_distance_of_averaged_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(replace(transformer_recipe(tmp_path, data, validation_images=48)))
    averaged = {name: torch.full_like(value, 0.5) for name, value in task.transformer.state_dict().items()}
    measured: list[Generator] = []

    def distance(generator: Generator, seed: int) -> Tensor:
        measured.append(generator)
        return torch.tensor(1.0)

    monkeypatch.setattr(TransformerTask, "_distance", staticmethod(distance))
    monkeypatch.setattr(task, "config", replace(task.config, frechet=replace(task.config.frechet, samples=20)))
    task.validate({"transformer": averaged})
    assert all(bool((parameter == 0.5).all()) for parameter in measured[0].transformer.parameters())


def test_validation_times_do_not_depend_on_a_switch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions of validation latents do not count images of the run."""
    drawn: list[Tensor] = []

    def loss(*_: Any, t: Tensor, **__: Any) -> dict[str, Tensor]:
        drawn.append(t)
        return {"total": torch.zeros(len(t))}

    monkeypatch.setattr("vavae.flow.config.flow_matching_loss", loss)
    positions = torch.arange(50)
    batch = train_dit._Batch(positions, torch.zeros(50, 8, 4, 4), positions % 3)
    for switch in (None, 20):
        flow = FlowConfig(uniform_after_images=switch)
        task = make_task(replace(transformer_recipe(tmp_path, data), flow=flow))
        task._loss(task.transformer, batch, "validation ", 0.0)
        task._loss(task.transformer, batch, "", 0.0)
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1][:20], drawn[3][:20]) and not torch.equal(drawn[1][20:], drawn[3][20:])


def test_one_label_in_ten_is_dropped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(transformer_recipe(tmp_path, data))
    dropped: list[Tensor] = []

    def loss(*_: Any, label_drop: Tensor, **__: Any) -> dict[str, Tensor]:
        dropped.append(label_drop)
        return {"total": torch.zeros(len(label_drop), requires_grad=True)}

    monkeypatch.setattr("vavae.flow.config.flow_matching_loss", loss)
    positions = torch.arange(2000)
    latents = rng.normal(0, "latents", positions, (8, 4, 4), torch.device("cpu"))
    batch = train_dit._Batch(positions, latents, positions % 3)
    task.step(batch, 0, 1.0)
    assert 0.08 < float(dropped[0].float().mean()) < 0.12
    task._loss(task.transformer, batch, "validation ", 0.0)
    assert not dropped[1].any()


def test_flips_change_from_epoch_to_epoch(data: Path, tmp_path: Path) -> None:
    """Each of 30 latents is read eight times, about half of them mirrored."""
    task = make_task(transformer_recipe(tmp_path, data, batch_size=30))
    every = torch.arange(30)
    tables = [task.latents.get(every, torch.full((30,), mirrored))[0] for mirrored in (False, True)]
    times = torch.zeros(2, 30, dtype=torch.int64)  # plain and mirrored
    batches = task.batches(0, 0)
    for _ in range(8):
        latents = next(batches).latents
        for i, table in enumerate(tables):
            times[i] += (latents[:, None] == table[None]).flatten(2).all(2).sum(0)
    batches.close()  # type: ignore[attr-defined]
    assert times.sum(0).tolist() == [8] * 30
    assert int((times > 0).all(0).sum()) >= 25 and 80 <= int(times[1].sum()) <= 160


def test_batches_are_normalized_by_the_tokenizer(data: Path, tmp_path: Path) -> None:
    task = make_task(replace(transformer_recipe(tmp_path, data), normalization="tokenizer", flip=False))
    raw = task.latents.get(torch.arange(30), normalize=False)[0]
    wanted = task.tokenizer.statistics.normalize(raw)  # of mean 1 and standard deviation 2
    batch = next(task.batches(0, 0)).latents
    assert bool((batch[:, None] == wanted[None]).flatten(2).all(2).any(1).all())
    torch.testing.assert_close(wanted, (raw - 1) / 2)
    assert not torch.equal(wanted, task.latents.statistics.normalize(raw))
