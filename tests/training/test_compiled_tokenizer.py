"""A compiled step of the tokenizer: one graph each for encoder, decoder and LPIPS; the numbers of the plain step."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_runs import live_states, tokenizer_recipe, use_tiny_teacher
from torch._dynamo.testing import CompileCounterWithBackend

from vavae.data import InMemoryImages
from vavae.losses import LPIPS, PerceptualConfig
from vavae.stages.train_tokenizer import TokenizerTask
from vavae.training.memory import split_batch
from vavae.training.task import TrainingTask


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    use_tiny_teacher(monkeypatch.setattr)

    def lpips(network: str) -> LPIPS:
        torch.manual_seed(3)
        return LPIPS("alexnet")

    monkeypatch.setattr(LPIPS, "pretrained", lpips)
    with torch._functorch.config.patch(donated_buffer=True):  # torch's default, restored afterwards
        yield


def tasks(folder: Path) -> tuple[TokenizerTask, TokenizerTask]:
    """Return the same task compiled and plain, with every term of the objective and both adaptive weights."""
    recipe = tokenizer_recipe(folder)
    objective = replace(recipe.objective, perceptual=PerceptualConfig(weight=1.0, network="alexnet"))
    data = replace(recipe.data, size=32, crop="center", workers=0)
    source = InMemoryImages(data.open("train"), 32, 0)
    recipe = replace(recipe, objective=objective, data=data)
    compiled, plain = (TokenizerTask(replace(recipe, compile=way), source, folder) for way in (True, False))
    return compiled, plain


def gradients(task: TrainingTask) -> dict[str, torch.Tensor]:
    named = [pair for module in task.modules.values() for pair in module.named_parameters()]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_same_step(compiled: TokenizerTask, plain: TokenizerTask, images_seen: int, size: int) -> None:
    found = []
    for task in (compiled, plain):
        for module in task.modules.values():
            module.zero_grad()
        batch = next(iter(task.batches(0, 0)))
        parts = split_batch(batch, size)
        terms = [task.step(part, images_seen, len(part.positions) / 8) for part in parts]
        found.append((terms, gradients(task)))
    (terms, grads), (expected_terms, expected_grads) = found
    assert grads.keys() == expected_grads.keys() and len(grads) > 50
    for one, other in zip(terms, expected_terms, strict=True):
        assert one["alignment_weight"] > 0 and (one["adversarial_weight"] > 0) == (images_seen >= 16)
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name, value in expected_grads.items():
        largest = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(grads[name], value, rtol=1e-3, atol=1e-5 * largest, msg=name)


def count_graphs(backend: str, monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    counter = CompileCounterWithBackend(backend)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    return counter


@pytest.mark.slow
def test_compiled_tokenizer_step_equals_plain_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the discriminator begins, with compiled backward passes; then for parts of other sizes."""
    counter = count_graphs("aot_eager", monkeypatch)
    compiled, plain = tasks(tmp_path)
    assert compiled.autoencoder.state_dict().keys() == plain.autoencoder.state_dict().keys()
    assert_same_step(compiled, plain, 0, 8)
    assert counter.frame_count == 5  # encoder, decoder, LPIPS of the images and of the reconstruction, their distance
    assert_same_step(compiled, plain, 16, 8)
    assert counter.frame_count == 5

    # Parts of all sizes share graphs. Their operations run as they are, which compiles faster.
    counter.backend = "eager"
    assert_same_step(compiled, plain, 16, 3)  # parts of 3, 3 and 2
    assert counter.frame_count <= 10  # once more each, for any number of images

    # Test images, without gradients
    terms, expected = compiled.validate(live_states(compiled)), plain.validate(live_states(plain))
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5, msg=name)
