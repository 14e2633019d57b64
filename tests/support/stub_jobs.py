"""Jobs of a frontier that train nothing, for processes that share a grid, and invented results."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vavae.frontier import run
from vavae.frontier.cells import CellContext, trained_generator, trained_tokenizer
from vavae.frontier.grid import Job, TokenizerCell
from vavae.metrics import MeasurementProtocol, MetricRecord

NAMES = {
    "tokenizer": ("rFID", "PSNR", "LPIPS", "SSIM", "linear probe", "alignment: cosine after the best linear map"),
    "uniformity": ("uniformity: density cv", "uniformity: Gini", "uniformity: normalized entropy"),
    "generator": ("FID",),
    "hidden": ("linear probe of hidden states", "CKNNA of hidden states", "held-out velocity loss"),
}


def use_stub_jobs(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Let this process announce each training, sleep a second for 16 images of the tokenizer, and invent the numbers.

    It draws no page.

    Args:
        replace: `monkeypatch.setattr`, which a test undoes.
    """
    replace(run, "_WAIT", 0.1)
    replace(run._Runner, "load", lambda self: None)
    replace(run, "run_job", _stub)
    skip_page(replace)


def skip_page(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Let this process draw no page, which takes longer than the tiniest job."""
    replace(run, "write_everything", lambda config, grid, *_: grid.folder / "frontier.html")


def _stub(context: CellContext, job: Job, known: dict[str, Any] | None) -> dict[str, Any]:
    grid, folder = context.grid, context.grid.cell_folder(job.cell)
    tokenizer = isinstance(job.cell, TokenizerCell)
    kind = "tokenizer" if tokenizer else "generator"
    print(f"training {job.cell.label}", flush=True)
    time.sleep(context.config.tokenizer.training.images / 16)
    _touch(folder / f"run/{kind}/config.json")
    if isinstance(job.cell, TokenizerCell):
        _touch(grid.latents_folder(job.cell) / "index.json")
        assert trained_tokenizer(grid, job.cell)
    else:
        assert trained_tokenizer(grid, job.cell.tokenizer) and trained_generator(grid, job.cell)
    return invented(job, 1)


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


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
