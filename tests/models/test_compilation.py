"""A generator compiled in the midst of sampling draws the same, with few graphs."""

from functools import partial
from typing import Any

import pytest
import torch
from evaluate_models import make_generator
from torch._dynamo.testing import CompileCounterWithBackend

from vavae.models.compilation import compile_while_sampling

BATCHES = ([1, 2, 3], [4, 5])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "settings", "weak", "batches"),
    [
        ({}, {"guidance_scale": 1.0}, False, BATCHES),
        ({}, {"guidance_start": 0.5}, False, (*BATCHES, [6])),
        ({"auxiliary_block": 1}, {"guidance_kind": "internal"}, False, BATCHES),
        ({"class_token": 3}, {}, False, BATCHES),
        ({}, {}, True, BATCHES),
    ],
)
def test_samples_are_equal_and_graphs_few(
    network: dict[str, Any],
    settings: dict[str, Any],
    weak: bool,
    batches: tuple[list[int], ...],
    counter: CompileCounterWithBackend,
) -> None:
    """Batches of 3, doubled and incomplete ones have one graph; a batch of one image has another."""
    generator = make_generator(**network)
    if weak:
        generator = generator.with_weak_model(make_generator(2))
    chosen = {"steps": 4, "guidance_scale": 2.0, **settings}
    draw = partial(generator.latents, **chosen)
    expected = [draw(labels, indices=labels) for labels in batches]
    said: list[str] = []
    compile_while_sampling(generator, True, say=said.append)
    found = [draw(labels, indices=labels) for labels in batches]
    torch.testing.assert_close(found, expected)
    assert 1 <= counter.frame_count <= len(batches) - 1 + weak
    assert len(said) == 1 and said[0].startswith("compile: transformer, 3 images: ")
