"""The steps as functions: recipes of every form, and the configurations and errors of the commands."""

from pathlib import Path
from typing import Any

import pytest

import vavae
from vavae.cli import run
from vavae.config import load_recipe
from vavae.config.recipes import package_recipe
from vavae.stages import encode, train_tokenizer
from vavae.training.optimizer import OptimizerConfig

RECIPE = "small/tokenizer"
CHANGES = {"output": Path("mine"), "data": {"images": "photos", "size": (32, 64)}, "optimizer.schedule.final": 0.5}
OPTIONS = ["--output", "mine", "--data.images", "photos", "--data.size", "32,64", "--optimizer.schedule.final", "0.5"]


@pytest.mark.parametrize(
    ("step", "recipe", "settings", "arguments"),
    [
        ("train_tokenizer", RECIPE, CHANGES, [RECIPE, *OPTIONS]),
        ("train_tokenizer", None, {"stages": [{"from_images": 8}]}, ["--stages", "[{from_images: 8}]"]),
        ("encode", "demo-model/encode", {"flips": False}, ["demo-model/encode", "--flips", "false"]),
        ("train_dit", {"flow.path": "linear", "fp8": True}, {}, ["--flow.path", "linear", "--fp8"]),
        ("train_joint", "small/joint", {"alignment": {"block": 3}}, ["small/joint", "--alignment.block", "3"]),
        ("sample", None, {"labels": ("cat", 3), "npz": True}, ["--labels", "cat,3", "--npz"]),
        ("evaluate", {"what": "tokenizer"}, {"model": ["a", "b"]}, ["tokenizer", "a", "b"]),
    ],
)
def test_a_function_does_what_its_command_does(
    step: str, recipe: Any, settings: dict[str, Any], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def note(config: Any) -> str:
        asked.append(config)
        return "result"

    monkeypatch.setattr(f"vavae.stages.{step}.run", note)
    assert getattr(vavae, step)(recipe, **settings) == "result"
    assert run([step.replace("_", "-"), *arguments]) == 0
    assert asked[0] == asked[1]


def test_recipes_of_every_form_agree() -> None:
    config = load_recipe(train_tokenizer.Config, RECIPE)
    for recipe in (package_recipe(RECIPE), vars(config), config):
        assert load_recipe(train_tokenizer.Config, recipe) == config


def test_a_group_keeps_its_other_keys() -> None:
    settings = {"optimizer": {"learning_rate": 1e-4}, "optimizer.eps": 1e-6, "optimizer.schedule": {"final": 0.5}}
    found = load_recipe(train_tokenizer.Config, RECIPE, settings).optimizer
    assert (found.learning_rate, found.eps, found.schedule.final) == (1e-4, 1e-6, 0.5)
    assert (found.betas, found.schedule.kind, found.schedule.warmup_images) == ((0.9, 0.95), "cosine", 192)
    assert load_recipe(train_tokenizer.Config, RECIPE, {"optimizer": OptimizerConfig()}).optimizer == OptimizerConfig()


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("small/tokenzer", {}, "small/tokenzer: no such file, .*; did you mean 'small/tokenizer'?"),
        (RECIPE, {"trainin": {"images": 3}}, "'train_tokenizer' has no key trainin; did you mean 'training'?"),
        (RECIPE, {"training.imags": 3}, "has no key training.imags; did you mean 'training.images'?"),
        (RECIPE, {"training.images": "many"}, "training.images must be a whole number, got many"),
        (RECIPE, {"data": "photos"}, r"data must be a group of keys \(images, size, crop, …\), got photos"),
        (RECIPE, {"optimizer.learning_rate": float("inf")}, "optimizer.learning_rate must be a finite number, got inf"),
        (RECIPE, {"data.size": 33}, "data.size must be a multiple of the tokenizer's factor 4, got 33"),
        (encode.Config(), {}, "'train_tokenizer' has no key split, .*; is it a recipe of another command?"),
        (5, {}, "the recipe must be a file, a name, a mapping or a Config, got 5"),
    ],
)
def test_mistakes_are_one_line(recipe: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(vavae.UserError, match=message) as error:
        vavae.train_tokenizer(recipe, **settings)
    assert "\n" not in str(error.value)
