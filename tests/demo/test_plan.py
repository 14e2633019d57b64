"""The demo trains the package's small recipes."""

from dataclasses import replace

import pytest

from vavae.config import load_recipe, to_plain
from vavae.demo.plan import ALIGNED, SAMPLING, UNALIGNED, Config


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_recipes_equal_the_small_recipes(stage: str) -> None:
    """Places, the limit of images and the kept checkpoints differ; all else is equal."""
    own = Config(output="runs/small").__getattribute__(stage)(ALIGNED)
    stored = load_recipe(type(own), f"small/{stage}")
    training = replace(own.training, keep_checkpoints=stored.training.keep_checkpoints)
    places = {name: getattr(stored, name) for name in ("output", "latents", "data") if hasattr(stored, name)}
    places |= {"tokenizer": stored.tokenizer} if stage == "transformer" else {}
    if stage == "tokenizer":
        data = replace(own.data, limit=stored.data.limit, workers=stored.data.workers)
        assert data == stored.data
    else:
        assert own.sampling == SAMPLING
    assert to_plain(replace(own, training=training, **places)) == to_plain(stored)


def test_quick_run_without_alignment_differs_where_it_says() -> None:
    config = Config(quick=True, seed=3, size=64, teacher="mae-base")
    own = config.tokenizer(UNALIGNED)
    assert not own.objective.alignment.enabled
    assert (own.training.images, own.training.seed, own.training.log_images) == (512, 3, 128)
    assert own.optimizer.schedule.warmup_images == 25 and own.optimizer.learning_rate == 3.0e-3
    assert (own.teacher.name, own.teacher.input_size, own.data.size) == ("mae-base", None, 64)
    transformer = config.transformer(UNALIGNED).transformer
    assert (transformer.width, transformer.depth, transformer.heads) == (128, 3, 2)
