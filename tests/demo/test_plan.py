"""The recipes of the demo against the files that users start from."""

from dataclasses import replace
from pathlib import Path

import pytest

from vavae.config import load_recipe, to_plain
from vavae.demo.plan import ALIGNED, Config

RECIPES = Path(__file__).parents[2] / "src/vavae/recipes" / "small"


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_recipes_equal_the_small_recipes(stage: str) -> None:
    """Places, the limit of images and the kept checkpoints differ; all else is equal."""
    own = Config(output="runs/small").__getattribute__(stage)(ALIGNED)
    stored = load_recipe(type(own), RECIPES / f"{stage}.yaml")
    training = replace(own.training, keep_checkpoints=stored.training.keep_checkpoints)
    places = {name: getattr(stored, name) for name in ("output", "latents", "data") if hasattr(stored, name)}
    places |= {"tokenizer": stored.tokenizer} if stage == "transformer" else {}
    if stage == "tokenizer":
        data = replace(own.data, limit=stored.data.limit, workers=stored.data.workers)
        assert data == stored.data
    assert to_plain(replace(own, training=training, **places)) == to_plain(stored)
