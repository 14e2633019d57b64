"""Jobs of a frontier that train nothing, for processes that share a grid."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frontier_grid import invented

from vavae.frontier import run
from vavae.frontier.cells import CellContext, trained_generator, trained_tokenizer
from vavae.frontier.grid import Job, TokenizerCell


def use_stub_jobs(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Let this process announce each training, sleep a second for 16 images of the tokenizer, and invent the numbers.

    Args:
        replace: `monkeypatch.setattr`, which a test undoes.
    """
    replace(run, "_WAIT", 0.1)
    replace(run._Runner, "load", lambda self: None)
    replace(run, "run_job", _stub)


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
