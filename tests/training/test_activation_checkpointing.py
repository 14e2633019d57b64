"""Activation checkpointing: the same gradients from fewer activations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import transformer_recipe, write_latents
from torch import Tensor

from vavae.data import LatentDataset
from vavae.errors import UserError
from vavae.models import Tokenizer
from vavae.stages.train_dit import TransformerTask
from vavae.training.activation_checkpointing import apply_activation_checkpointing


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def task_of(data: Path, folder: Path, **changes: Any) -> TransformerTask:
    recipe = replace(transformer_recipe(folder, data), **changes)
    return TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_keeps_gradients_and_saves_less(mode: str, data: Path, tmp_path: Path) -> None:
    shape = transformer_recipe(tmp_path, data).transformer
    plain = task_of(data, tmp_path)
    saving = task_of(data, tmp_path, transformer=replace(shape, activation_checkpointing=mode))
    saving.transformer.load_state_dict(plain.transformer.state_dict())
    for p, q in zip(plain.transformer.parameters(), saving.transformer.parameters(), strict=True):
        with torch.no_grad():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
            q.copy_(p)
    kept = []
    for task in (plain, saving):
        sizes = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal sizes
            sizes += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            task.step(next(task.batches(0, 0)), 0, 1.0)
        kept.append(sizes)
    for (name, p), q in zip(plain.transformer.named_parameters(), saving.transformer.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name  # type: ignore[arg-type]
    assert mode == "selective" or kept[1] < 0.6 * kept[0]
    with pytest.raises(UserError, match="must be one of none, selective, full"):
        apply_activation_checkpointing([], "half")  # type: ignore[arg-type]
