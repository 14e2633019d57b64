"""The smallest grid with every table, its configuration, its command in this process, and invented results."""

import contextlib
import io
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vavae.cli import run
from vavae.config import parse_command_line
from vavae.frontier import cells
from vavae.frontier.config import Config
from vavae.frontier.grid import Grid, Job
from vavae.losses import LPIPS
from vavae.metrics import MeasurementProtocol, MetricRecord
from vavae.stages import train_tokenizer

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
def _loaded(overrides: tuple[str, ...]) -> Config:
    return parse_command_line(Config, [str(RECIPE), *overrides], "vavae frontier")


def grid_config(folder: Path, *overrides: str) -> Config:
    """Return the recipe with overrides; each set of overrides is parsed once."""
    return replace(_loaded(overrides), output=str(folder))


@cache
def _fingerprints() -> tuple[str, str]:
    data = _loaded(()).data
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


_load_feature_network = cache(cells.load_feature_network)
_load_teacher = cache(cells.load_teacher)
_load_perceptual = cache(LPIPS.pretrained)


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Any:
    """Load each network once for all runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "load_feature_network", _load_feature_network)
        patch.setattr(cells, "load_teacher", _load_teacher)
        patch.setattr(train_tokenizer, "load_teacher", _load_teacher)
        patch.setattr(LPIPS, "pretrained", _load_perceptual)
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
