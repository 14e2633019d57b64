"""Write the help of every command to `src/vavae/help/`, so that `--help` need not import torch (`make help-texts`)."""

import importlib
import os
from pathlib import Path

from vavae.cli import COMMANDS
from vavae.config import help_text

FOLDER = Path(__file__).parents[1] / "src/vavae/help"
_COLUMNS = "80"


def text_of(name: str) -> str:
    """Return the help of a command, 80 columns wide."""
    os.environ["COLUMNS"] = _COLUMNS
    command = COMMANDS[name]
    config = importlib.import_module(f"vavae.{command.module}").Config
    return help_text(config, f"vavae {name}", command.summary, command.positionals)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for command in COMMANDS:
        (FOLDER / f"{command}.txt").write_text(text_of(command), encoding="utf-8")
