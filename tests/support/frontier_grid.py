"""The smallest grid with every table, its configuration, its command in this process, and invented results."""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_networks import use_tiny_networks

from vavae.cli import run
from vavae.config import parse_command_line
from vavae.frontier.config import Config
from vavae.frontier.grid import Grid, Job
from vavae.metrics import MeasurementProtocol, MetricRecord

RECIPE = Path(__file__).parents[1] / "frontier/frontier_grid.yaml"
# One tokenizer with one generator.
ONLY = [f"--experiments.{name}.seeds=[]" for name in ("table4", "table5", "convergence", "ladder")]
ONE = [*ONLY, "--experiments.table2.dimensions=[2]", "--experiments.table2.teachers=[none]", "--measure.teacher=null"]
NAMES = {
    "tokenizer": ("rFID", "PSNR", "LPIPS", "SSIM", "linear probe", "alignment: cosine after the best linear map"),
    "uniformity": ("uniformity: density cv", "uniformity: Gini", "uniformity: normalized entropy"),
    "generator": ("FID",),
    "hidden": ("linear probe of hidden states", "CKNNA of hidden states", "held-out velocity loss"),
}


@cache
def _recipe() -> Config:
    return parse_command_line(Config, [str(RECIPE)], "vavae frontier")


def _changed(config: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    return replace(config, **{name: _changed(getattr(config, name), rest, value) if rest else value})


def grid_config(folder: Path, *overrides: str) -> Config:
    """Return the recipe with overrides as on the command line, which takes a second to parse."""
    config, words = _recipe(), iter(overrides)
    for word in words:
        key, equals, text = word.removeprefix("--").partition("=")
        value = yaml.safe_load(text if equals else next(words))
        try:
            config = _changed(config, key, tuple(value) if isinstance(value, list) else value)
        except TypeError:  # a part that the recipe lacks
            return parse_command_line(Config, [str(RECIPE), *overrides, "--output", str(folder)], "vavae frontier")
    return replace(config, output=str(folder))


@cache
def _fingerprints() -> tuple[str, str]:
    data = _recipe().data
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


def invented(job: Job, number: int) -> dict[str, Any]:
    """Return the content of a result file, with numbers that differ between jobs."""
    protocol = MeasurementProtocol(samples=20, reference_samples=20)

    def record(name: str) -> dict[str, Any]:
        return MetricRecord(name, 1.0 + number, protocol).to_dict()

    own: dict[str, dict[str, Any]] = {
        "tokenizer": {"pictures": {"reconstructions": "data:,"}},
        "uniformity": {"points": [[0.0, 1.0], [2.0, 3.0]], "labels": [0, 7]},
        "generator": {"pictures": {"samples": "data:,"}, "parameters": 12_345_678},
        "hidden": {},
        "curve": {"points": [{"images": images, "record": record("FID")} for images in (32, 64)]},
    }
    common = {"kind": job.kind, "seconds": 1.0, "versions": {"machine": "x86_64"}}
    return {**common, "records": [record(name) for name in NAMES.get(job.kind, ())], **own[job.kind]}
