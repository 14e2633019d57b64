"""Recipes and options become dataclasses; what cannot is named."""

from pathlib import Path
from typing import Any

import pytest

from vavae.config import load_recipe, parse_command_line, to_yaml
from vavae.errors import UserError
from vavae.stages import demo, encode, evaluate, frontier, train_dit, train_tokenizer
from vavae.stages.sample import Config


def given(recipe: Path, form: str) -> list[str]:
    return {"word": [str(recipe)], "option": ["--config", str(recipe)], "with =": [f"--config={recipe}"]}[form]


@pytest.mark.parametrize("form", ["word", "option", "with ="])
def test_a_file_that_is_no_recipe_is_named_however_it_is_given(form: str, tmp_path: Path) -> None:
    recipe = tmp_path / "list.yaml"
    recipe.write_text("- a\n")
    with pytest.raises(UserError, match=f"^{recipe}: a recipe holds keys with values; this one holds"):
        parse_command_line(Config, given(recipe, form), "vavae sample")
    with pytest.raises(UserError, match=f"^{tmp_path}/none.yaml: no such recipe"):
        parse_command_line(Config, given(tmp_path / "none.yaml", form), "vavae sample")
    recipe.write_text("count: 3\n")
    assert parse_command_line(Config, [*given(recipe, form), "--seed=2"], "vavae sample") == Config(count=3, seed=2)


RECIPES = Path(__file__).parents[1] / "recipes" / "small"
MISTAKES: list[tuple[type, str, str]] = [
    (Config, "--size [32]", "size: expected a whole number, or 2 values, each a whole number, or null; got [32]"),
    (
        Config,
        "--size [24,x]",
        "size: expected a whole number, or 2 values, each a whole number, or null; got [24, 'x']",
    ),
    (Config, "--labels a,b", "labels: expected a list, each item a whole number; got a"),
    (Config, "--size 256 256", "unexpected argument '256': a recipe, or other words, must stand before all options"),
    (Config, "--seed 1 word", "unexpected argument 'word': a recipe, or other words, must stand before all options"),
    (Config, "--colour red", "unknown option --colour; see 'vavae x --help'"),
    (evaluate.Config, "--data.limit x", "data.limit: expected a whole number or null; got x"),
    (
        train_tokenizer.Config,
        "--data.size [192]",
        "data.size: expected a whole number, or 2 values, each a whole number; got [192]",
    ),
    (demo.Config, "--size [24,40]", "size: expected a whole number; got [24, 40]"),
    (
        frontier.Config,
        "--data.size 24,40",
        "data.size: 24x40 is not square, and 'vavae frontier' takes square images only",
    ),
    (train_dit.Config, "--flow.path bent", "flow.path: expected one of linear, cosine, vp; got bent"),
    (train_tokenizer.Config, "--training.batch_size four", "training.batch_size: expected a whole number; got four"),
    (train_tokenizer.Config, "--training x", "training: expected a group of keys (images, batch_size, seed, …); got x"),
    (train_tokenizer.Config, "--teacher.cache_features x", "teacher.cache_features: expected true or false; got x"),
    (train_tokenizer.Config, "--data.imagez x", "unknown option --data.imagez; did you mean '--data.images'?"),
    (
        train_tokenizer.Config,
        f"--print_config {RECIPES}/tokenizer.yaml",
        f"unexpected argument '{RECIPES}/tokenizer.yaml': a recipe, or other words, must stand before all options",
    ),
    (
        train_tokenizer.Config,
        f"{RECIPES}/transformer.yaml",
        f"{RECIPES}/transformer.yaml: 'vavae x' has no key latents, transformer, sampling; "
        "is it a recipe of another command?",
    ),
]


@pytest.mark.parametrize("config_class, options, told", MISTAKES, ids=[options for _, options, _ in MISTAKES])
def test_a_mistake_is_told_without_the_parsers_words(config_class: type, options: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_command_line(config_class, options.split(), "vavae x")
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--data.size", "64"], 64),
        (["--data.size=[64, 64]"], 64),
        (["--data.size", "[192, 320]"], (192, 320)),
        (["--data.size=[192,320]"], (192, 320)),
        (["--data.size", "192,320"], (192, 320)),
    ],
)
def test_a_size_is_a_number_or_two(options: list[str], size: Any, tmp_path: Path) -> None:
    config = parse_command_line(encode.Config, options, "vavae x")
    assert config.data.size == size
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(config))
    assert ("  size: 64\n" if size == 64 else "  size:\n  - 192\n  - 320\n") in recipe.read_text()
    assert load_recipe(encode.Config, recipe) == config
    aligned = parse_command_line(train_tokenizer.Config, ["--teacher.input_size", "168,280"], "vavae x")
    assert aligned.teacher.input_size == (168, 280)


def test_a_key_misspelt_in_a_group_of_a_recipe_is_named_with_its_neighbour(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {images: 100, bacth_size: 8}\n")
    told = f"^{recipe}: 'vavae x' has no key training.bacth_size; did you mean 'training.batch_size'"
    with pytest.raises(UserError, match=told):
        parse_command_line(train_tokenizer.Config, [str(recipe)], "vavae x")
