"""Estimated memory of a step, against the peak of the allocator in a real one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import TinyTeacher, tokenizer_recipe, transformer_recipe, use_tiny_teacher, write_latents

from vavae.data import InMemoryImages, LatentDataset
from vavae.losses import LPIPS, PerceptualConfig
from vavae.models import Tokenizer
from vavae.stages.train_dit import TransformerTask
from vavae.stages.train_tokenizer import TokenizerTask
from vavae.training.activation_checkpointing import Recomputation
from vavae.training.task import TrainingTask
from vavae.training.throughput import count_peak_bytes


def allocated(task: TrainingTask, images_seen: int) -> int:
    """Return the peak memory of one step in bytes, from torch's profile."""
    batch = next(iter(task.batches(0, 0)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        task.step(batch, images_seen, 1.0)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_freed_memory_and_views_do_not_count() -> None:
    weight = torch.ones(100, 100)

    def work() -> None:
        for _ in range(5):
            product = weight.T @ weight  # 40,000 bytes; two products are alive at a time
        product[:10].t()

    assert count_peak_bytes(work) == 80_000


@pytest.mark.slow
@pytest.mark.usefixtures("estimates")
@pytest.mark.parametrize(("precision", "size", "lpips", "levels"), [("fp32", 32, 1.0, 2), ("bf16", 16, 0.0, 1)])
def test_tokenizer_step_bytes(
    precision: str, size: int, lpips: float, levels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_teacher(monkeypatch.setattr)
    monkeypatch.setattr(LPIPS, "pretrained", lambda network: LPIPS(network))
    recipe = tokenizer_recipe(tmp_path, precision=precision)
    recipe = replace(
        recipe,
        data=replace(recipe.data, size=size, crop="center", workers=0),
        tokenizer=replace(recipe.tokenizer, channel_multipliers=(1, 2)[:levels]),
        objective=replace(recipe.objective, perceptual=PerceptualConfig(lpips, "alexnet")),
    )
    task = TokenizerTask(recipe, InMemoryImages(recipe.data.open("train"), size, 0), tmp_path)
    networks = [TinyTeacher(), LPIPS("alexnet")] if lpips else [TinyTeacher()]
    frozen = sum(p.nbytes for network in networks for p in (*network.parameters(), *network.buffers()))
    estimated = task.step_bytes(8) - frozen
    assert estimated == pytest.approx(allocated(task, 16), rel=0.15)
    assert lpips or task.step_bytes(64) - frozen > 5 * estimated


@pytest.mark.slow
@pytest.mark.usefixtures("estimates")
@pytest.mark.parametrize(
    ("precision", "recomputation"), [("fp32", "none"), ("fp32", "selective"), ("fp32", "full"), ("bf16", "none")]
)
def test_transformer_step_bytes(precision: str, recomputation: Recomputation, tmp_path: Path) -> None:
    write_latents(tmp_path)
    recipe = transformer_recipe(tmp_path / "run", tmp_path, precision=precision)
    shape = replace(recipe.transformer, depth=2, activation_checkpointing=recomputation)
    recipe = replace(recipe, transformer=shape)
    task = TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))
    assert task.step_bytes(8) == pytest.approx(allocated(task, 0), rel=0.15)
