"""A generator compiled in the midst of sampling draws the same, with few graphs."""

from functools import partial
from typing import Any

import pytest
import torch
from evaluate_models import make_generator
from torch._dynamo.testing import CompileCounterWithBackend

from vavae.models.compilation import compile_while_sampling


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "settings", "weak"),
    [
        ({}, {"guidance_scale": 1.0}, False),
        ({}, {"guidance_start": 0.5}, False),
        ({"auxiliary_block": 1}, {"guidance_kind": "internal"}, False),
        ({"class_token": 3}, {}, False),
        ({}, {}, True),
    ],
)
def test_samples_are_equal_and_graphs_few(
    network: dict[str, Any], settings: dict[str, Any], weak: bool, counter: CompileCounterWithBackend
) -> None:
    """Batches of 3, doubled and incomplete ones have one graph; a batch of one image has another."""
    generator = make_generator(**network)
    if weak:
        generator = generator.with_weak_model(make_generator(2))
    chosen = {"steps": 4, "guidance_scale": 2.0, **settings}
    draw = partial(generator.latents, **chosen)
    batches = ([1, 2, 3], [4, 5], [6])
    expected = [draw(labels, indices=labels) for labels in batches]
    said: list[str] = []
    compile_while_sampling(generator, True, say=said.append)
    found = [draw(labels, indices=labels) for labels in batches]
    torch.testing.assert_close(found, expected)
    assert 1 <= counter.frame_count <= 2
    assert len(said) == 1 and said[0].startswith("compile: transformer, 3 images: ")
