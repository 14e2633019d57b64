"""Recipes of the package are found by name, files by path."""

from pathlib import Path

import pytest

from vavae.config import load_recipe
from vavae.config.recipes import recipe_file, recipe_names
from vavae.errors import UserError
from vavae.stages import train_tokenizer


def test_every_recipe_file_has_a_name() -> None:
    folder = recipe_file("small/tokenizer").parents[1]
    assert len(recipe_names()) == len(list(folder.rglob("*.yaml"))) > 50
    assert all(recipe_file(name).is_file() for name in recipe_names())


def test_a_command_takes_a_recipe_by_name() -> None:
    named = load_recipe(train_tokenizer.Config, "small/tokenizer")
    assert named == load_recipe(train_tokenizer.Config, recipe_file("small/tokenizer"))
    assert named.output == "runs/small/tokenizer"


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    (tmp_path / "small/tokenizer").write_text("output: elsewhere\n")
    assert load_recipe(train_tokenizer.Config, "small/tokenizer").output == "elsewhere"


@pytest.mark.parametrize("name", ["small/tokeniser", "recipes/small/tokenizer.yaml", "small/tokenizer.yaml"])
def test_the_nearest_name_is_given(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{name}: no such file, .* did you mean 'small/tokenizer'\?"):
        recipe_file(name)
    with pytest.raises(UserError, match="'vavae recipes' lists them"):
        recipe_file("nothing-like-it.yaml")


def test_a_folder_of_a_recipes_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an earlier run's output may have the name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small/tokenizer").mkdir(parents=True)
    assert load_recipe(train_tokenizer.Config, "small/tokenizer").output == "runs/small/tokenizer"


def test_a_path_that_cannot_be_looked_up_is_refused() -> None:
    with pytest.raises(UserError, match="name too long"):
        recipe_file("a" * 300)
