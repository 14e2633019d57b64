"""Chunks and micro-batches: halved until they fit, with the same results."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from regression_task import CONFIG, Unnormed, weights
from tiny_runs import live_states, tokenizer_recipe, transformer_recipe, use_tiny_teacher, write_latents
from torch import Tensor

from vavae.data import LatentDataset
from vavae.errors import RunError, UserError
from vavae.models import Tokenizer
from vavae.stages import train_dit, train_tokenizer
from vavae.tokenizer import AutoencoderKL
from vavae.training.memory import Chunks, MicroBatch, split_batch
from vavae.training.trainer import Trainer

FULL = torch.OutOfMemoryError("CUDA out of memory")
FULL_ELSEWHERE = [
    MemoryError(),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
    RuntimeError("Invalid buffer size: 11.25 GB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
]


def lengths_that_fit(fits: int, error: Exception = FULL) -> tuple[list[int], Any]:
    """Return the lengths tried so far, and work that runs out of "memory" beyond `fits` images."""
    tried: list[int] = []

    def work(part: tuple[Tensor]) -> Tensor:
        tried.append(len(part[0]))
        if len(part[0]) > fits:
            raise error
        return part[0] * 2

    return tried, work


def test_chunks_are_halved_until_they_fit() -> None:
    chunks = Chunks(8)
    tried, work = lengths_that_fit(3)
    found = list(chunks.over((torch.arange(11),), work))
    assert torch.cat([part[0] for part, _ in found]).tolist() == list(range(11))
    assert torch.cat([result for _, result in found]).tolist() == list(range(0, 22, 2))
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1] and chunks.size == 2
    assert len(list(chunks.over((torch.arange(4),), work))) == 2 and tried[8:] == [2, 2]


@pytest.mark.parametrize("error", FULL_ELSEWHERE, ids=["machine", "Apple's GPU", "one buffer", "CPU"])
def test_other_out_of_memory_errors(error: Exception) -> None:
    tried, work = lengths_that_fit(2, error)
    assert len(list(Chunks(4).over((torch.arange(4),), work))) == 2 and tried == [4, 2, 2]


def test_other_errors_do_not_halve_chunks() -> None:
    tried, work = lengths_that_fit(2, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(Chunks(4).over((torch.arange(4),), work))
    assert tried == [4]


def test_chunks_raise_if_they_cannot_be_halved() -> None:
    tried, work = lengths_that_fit(0)
    with pytest.raises(torch.OutOfMemoryError):
        list(Chunks(4).over((torch.arange(4),), work))
    assert tried == [4, 2, 1]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> train_tokenizer.TokenizerTask:
    use_tiny_teacher(monkeypatch.setattr)
    recipe = tokenizer_recipe(tmp_path, batch_size=16)
    recipe = replace(recipe, data=replace(recipe.data, limit=40))
    return train_tokenizer.TokenizerTask(recipe, recipe.data.open("train"), tmp_path)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the images of each call of the encoder; more than 12 at once run out of "memory"."""
    seen: list[int] = []
    original = AutoencoderKL.encode

    def encode(self: AutoencoderKL, images: Tensor) -> Any:
        seen.append(len(images))
        if len(images) > 12:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        return original(self, images)

    monkeypatch.setattr(AutoencoderKL, "encode", encode)
    return seen


def test_statistics_do_not_depend_on_chunks(task: train_tokenizer.TokenizerTask, encoded: list[int]) -> None:
    model = task.averaged_model(task.autoencoder.state_dict())
    whole = task.statistics(model, 12)
    assert max(encoded) == 12
    encoded.clear()
    few = task.statistics(model, 3)
    assert max(encoded) == 3
    encoded.clear()
    halved = task.statistics(model)
    assert encoded[:3] == [16, 8, 8] and max(encoded[1:]) == 8
    for other in (few, halved):
        assert other.count == whole.count == 40
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other.std, whole.std, rtol=1e-5, atol=1e-6)


def test_large_images_have_small_chunks(
    task: train_tokenizer.TokenizerTask, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_tokenizer, "_PIXELS_AT_ONCE", 5 * 8**2)
    task.statistics(task.averaged_model(task.autoencoder.state_dict()))
    assert max(encoded) == 5 and sum(encoded) == 40
    encoded.clear()
    task.validate(live_states(task))
    assert max(encoded) == 5


@pytest.mark.slow
def test_tokenizer_validation_does_not_depend_on_chunks(
    task: train_tokenizer.TokenizerTask, encoded: list[int]
) -> None:
    whole = task.validate(live_states(task), 12)
    encoded.clear()
    few, halved = task.validate(live_states(task), 3), task.validate(live_states(task))
    assert encoded[0] == 3 and 16 in encoded and 8 in encoded
    for name, value in whole.items():
        torch.testing.assert_close(few[name], value, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(halved[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_transformer_validation_does_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_latents(tmp_path / "data")
    recipe = transformer_recipe(tmp_path / "run", data, validation_images=48)
    recipe = replace(recipe, validation_latents=str(data / "latents"))
    task = train_dit.TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))
    seen: list[int] = []
    original = task._loss

    def loss(model: Any, batch: Any, *arguments: Any) -> dict[str, Tensor]:
        seen.append(len(batch.positions))
        if len(batch.positions) > 7:
            raise torch.OutOfMemoryError("no")
        return original(model, batch, *arguments)

    monkeypatch.setattr(task, "_loss", loss)
    few, halved = task.validate(live_states(task), 3), task.validate(live_states(task))
    assert seen[0] == 3 and seen[10:13] == [8, 4, 4] and sum(seen) == 68
    for name, value in few.items():
        torch.testing.assert_close(halved[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_micro_batch_limits_validation_and_statistics(
    tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run passes it to validation, and to the statistics at its end."""
    use_tiny_teacher(monkeypatch.setattr)
    train_tokenizer.run(tokenizer_recipe(tmp_path, images=16, micro_batch=2, validation_images=16))
    assert max(encoded) == 2


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"micro_batch": 0}', '{"micro_batch": null}', '{"micro_batch": 1']
)
def test_damaged_micro_batch_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "micro_batch.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"micro_batch.json: is damaged; remove it"):
        MicroBatch(tmp_path, None)
    assert MicroBatch(tmp_path, 4).size == 4


def test_full_disk_keeps_the_former_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    micro = MicroBatch(tmp_path, None)
    assert micro.halve(16)

    def full(path: Path, text: str, encoding: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as failing:
        failing.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            micro.halve(16)
    assert MicroBatch(tmp_path, None).size == 8 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_micro_batches_give_the_same_run(tmp_path: Path) -> None:
    short = replace(CONFIG, images=320)
    whole = Trainer(Unnormed(), short, tmp_path / "whole")
    whole.run("whole")
    task = Unnormed()
    parts = Trainer(task, replace(short, micro_batch=3), tmp_path / "parts")
    parts.run("parts")
    assert task.lengths[:3] == [3, 3, 2]
    for one, other in zip(weights(whole), weights(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_micro_batch_is_halved_and_saved(tmp_path: Path) -> None:
    task = Unnormed()
    task.fits = 3
    Trainer(task, replace(CONFIG, images=16), tmp_path).run("halved")
    assert task.lengths == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]  # the second step starts with 2
    again = Unnormed()
    Trainer(again, replace(CONFIG, images=32), tmp_path).run("resumed")
    assert set(again.lengths) == {2}


def test_oom_of_one_image_or_given_micro_batch_ends_the_run(tmp_path: Path) -> None:
    for given, name in ((None, "one"), (4, "given")):
        task = Unnormed()
        task.fits = 0
        with pytest.raises(RunError, match="out of memory with"):
            Trainer(task, replace(CONFIG, micro_batch=given), tmp_path / name).run("no")


def test_split_batch_splits_tensors_of_tuples() -> None:
    parts = list(split_batch((5, torch.arange(5), None), 2))
    assert [p[1].tolist() for p in parts] == [[0, 1], [2, 3], [4]]
    assert all(p[0] == 5 and p[2] is None for p in parts)
