"""Recipes and options become dataclasses; what cannot is named."""

from pathlib import Path

import pytest

from vavae.config import parse_command_line
from vavae.errors import UserError
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
