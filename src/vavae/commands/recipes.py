"""List the recipes in the package, or print one."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from vavae.config.recipes import package_recipe, recipe_file, recipe_names


@dataclass(frozen=True)
class Config:
    """List or print recipes: `vavae recipes small/tokenizer > my.yaml` copies one.

    Attributes:
        name: Recipe to print; null lists all with what they reproduce and their cost.
    """

    name: str | None = None


def run(config: Config) -> None:
    """List all recipes, those of a folder such as `small`, or print the file of one.

    Raises:
        UserError: The package has no such recipe.
    """
    listed = [name for name in recipe_names() if config.name in (None, name.split("/")[0])]
    if config.name and not listed:
        print(recipe_file(config.name).read_text(encoding="utf-8"), end="")
        return
    for name in listed:
        about = summary(package_recipe(name))
        print(f"{name}  ({about['cost']})" if "cost" in about else name)
        lines = [about["title"], f"published: {about['published']}" if "published" in about else ""]
        for line in filter(None, lines):
            print(textwrap.fill(line, 80, initial_indent="    ", subsequent_indent="      "))


def summary(path: Path) -> dict[str, str]:
    """Return what a recipe's header says first: its title and, where they are given, `published` and `cost`."""
    header = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    fields = {"title": header}
    for name, field in (("published", "Published"), ("cost", "Expected")):
        if found := re.search(rf"^# {field}[^:]*: (.*(?:\n#   .*)*)", header, re.MULTILINE):
            fields[name] = found[1]
    sentences = {name: re.sub(r"\s*\n#\s+", " ", text.removeprefix("# ")) for name, text in fields.items()}
    first = {name: re.split(r"\.(?= |$)", text)[0] for name, text in sentences.items()}
    if "cost" in first:
        first["cost"] = re.split(r" \(|[;:]|, ", first["cost"])[0]
    return first
