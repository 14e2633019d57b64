"""The recipes in the package: `small/tokenizer` names the file `recipes/small/tokenizer.yaml` here."""

from functools import cache
from pathlib import Path

from vavae.errors import UserError, did_you_mean
from vavae.io.files import user_path

_FOLDER = Path(__file__).parents[1] / "recipes"


@cache
def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes in the package, sorted."""
    return tuple(sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in _FOLDER.rglob("*.yaml")))


def package_recipe(name: str) -> Path:
    """Return the file of the package's recipe `name`."""
    return _FOLDER / f"{name}.yaml"


def recipe_file(name: str) -> Path:
    """Return the file of a recipe: the file `name` if there is one, else the package's recipe of that name.

    Raises:
        UserError: There is neither; the message has the nearest name.
    """
    path, known = user_path(name), name in recipe_names()
    if path.exists() and not (known and path.is_dir()):
        return path
    if known:
        return package_recipe(name)
    near = did_you_mean(name.removeprefix("recipes/").removesuffix(".yaml"), recipe_names())
    hint = near or "; 'vavae recipes' lists them"
    raise UserError(f"{name}: no such file, and no recipe of this name in the package{hint}")
