"""Write the help of every command to `src/vavae/help/`, so that `--help` need not import torch (`make help-texts`)."""

import importlib
import os
import re
import textwrap
from pathlib import Path

from jsonargparse import ArgumentParser

from vavae.cli import COMMANDS

FOLDER = Path(__file__).parents[1] / "src/vavae/help"
_COLUMNS = "80"
_HEADING = re.compile(r"^\S.*(\n\S.*)*$", re.MULTILINE)  # of a group; argparse does not wrap it
# Rows of groups: our parser reads no file for a group, and has no help of one group.
_OF_GROUPS = re.compile(r"^  --\S+(\.help| CONFIG)( .*)?\n( {24}.*\n)*", re.MULTILINE)


def text_of(name: str) -> str:
    """Return the help of a command, 80 columns wide: every option with its type, default and meaning."""
    os.environ["COLUMNS"] = _COLUMNS
    command = COMMANDS[name]
    names = {"config": "RECIPE"}
    leading = "".join(
        f"[{names.get(p, p.rstrip('+').upper())}{' ...' if p.endswith('+') else ''}] " for p in command.positionals
    )
    # The help lists the options, so the usage line does not.
    usage = f"vavae {name} {leading}[--key value ...]"
    parser = ArgumentParser(prog=f"vavae {name}", usage=usage, description=command.summary)
    recipe = "A recipe: YAML with any of these keys, or a name that 'vavae recipes' lists."
    parser.add_argument("--config", metavar="RECIPE", help=recipe)
    parser.add_argument("--print_config", action="store_true", help="Print the resolved recipe and exit.")
    parser.add_class_arguments(importlib.import_module(f"vavae.{command.module}").Config)
    return _HEADING.sub(_wrapped, _OF_GROUPS.sub("", parser.format_help()))


def _wrapped(heading: re.Match[str]) -> str:
    return textwrap.fill(heading[0], int(_COLUMNS), break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for command in COMMANDS:
        (FOLDER / f"{command}.txt").write_text(text_of(command), encoding="utf-8")
