"""The smallest grid with every table, its configuration, and its command in this process."""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_networks import use_tiny_networks
from torch import Tensor, nn

from vavae.cli import run
from vavae.config import parse_command_line
from vavae.frontier import cells
from vavae.frontier.config import Config
from vavae.frontier.grid import Grid
from vavae.grids import to_grid
from vavae.stages import train_tokenizer
from vavae.teachers import TeacherFeatures, load_teacher, registry
from vavae.teachers.base import Backbone

RECIPE = Path(__file__).parents[1] / "frontier/frontier_grid.yaml"
# One tokenizer with one generator.
ONLY = [f"--experiments.{name}.seeds=[]" for name in ("table4", "table5", "convergence", "ladder")]
ONE = [*ONLY, "--experiments.table2.dimensions=[2]", "--experiments.table2.teachers=[none]", "--measure.teacher=null"]


@cache
def _parsed(overrides: tuple[str, ...] = ()) -> Config:
    return parse_command_line(Config, [str(RECIPE), *overrides], "vavae frontier")


def _changed(config: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    return replace(config, **{name: _changed(getattr(config, name), rest, value) if rest else value})


def grid_config(folder: Path, *overrides: str) -> Config:
    """Return the recipe with overrides as on the command line, which takes a second to parse."""
    config, words = _parsed(), iter(overrides)
    for word in words:
        key, equals, text = word.removeprefix("--").partition("=")
        value = yaml.safe_load(text if equals else next(words))
        try:
            config = _changed(config, key, tuple(value) if isinstance(value, list) else value)
        except TypeError:  # a part that the recipe lacks
            config = _parsed(overrides)
            break
    return replace(config, output=str(folder))


@cache
def _fingerprints() -> tuple[str, str]:
    data = _parsed().data
    return data.open("train").fingerprint(), data.open("test").fingerprint()


def real_grid(config: Config) -> Grid:
    """Return the grid with the names that a run gives."""
    return Grid(config, _fingerprints())


def here(*arguments: str) -> tuple[int, str, str]:
    """Run `vavae frontier` in this process, and return exit code, output and errors."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        code = run(["frontier", str(RECIPE), *arguments])
    return code, output.getvalue(), error.getvalue()


def here_from(config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Do `here` with a configuration, which need not be parsed."""
    monkeypatch.setattr("vavae.config.parse_command_line", lambda *_: config)
    return here()


def trained(output: str) -> list[str]:
    """Return the cells whose training the output announces."""
    return re.findall(r"^training (.*)$", output, re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    """Replace the pretrained networks."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_networks(patch.setattr)
        yield


class _Dinov2(Backbone):
    """Width and patch of DINOv2-S, which the grid knows, with one linear block."""

    width, patch = 384, 14

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Conv2d(3, self.width, self.patch, stride=self.patch)
            self.blocks = nn.ModuleList([nn.Linear(self.width, self.width)])
            self.layernorm = nn.LayerNorm(self.width)

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        patches = self.embed(pixels)
        tokens = self.layernorm(self.blocks[0](patches.flatten(2).mT))
        return TeacherFeatures(to_grid(tokens, patches.shape[2:]), tokens.mean(1))


@pytest.fixture
def small_dinov2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load teachers as outside tests, but with a small network in place of DINOv2-S."""
    for module in (cells, train_tokenizer):
        monkeypatch.setattr(module, "load_teacher", load_teacher)
    monkeypatch.setattr(registry, "load_backbone", lambda *_: _Dinov2())
