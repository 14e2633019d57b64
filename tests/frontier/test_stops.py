"""Intermediate files of a job: a stop or damage costs only the work of that job."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from frontier_grid import grid_config, real_grid

from vavae.frontier import cells as frontier_cells
from vavae.frontier.cells import CellContext, delete_intermediates, trained_generator
from vavae.frontier.grid import GeneratorCell, Grid, Job
from vavae.frontier.results import Results

POINTS = [{"images": 32, "record": {"value": 1.5}}]


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return real_grid(grid_config(tmp_path))


@pytest.fixture
def curve(grid: Grid) -> Job:
    """Return the job of a curve whose generator is trained."""
    job = next(job for job in grid.jobs if job.kind == "curve")
    assert isinstance(job.cell, GeneratorCell)
    run = grid.cell_folder(job.cell) / "run"
    for name in ("generator/config.json", "averages/a.safetensors", "averages/b.safetensors"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    return job


def test_partly_removed_averages_do_not_count(grid: Grid, curve: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(curve.cell, GeneratorCell)
    run, remove = grid.cell_folder(curve.cell) / "run", shutil.rmtree

    def stopped(path: Path, **_: Any) -> None:
        if path.name.startswith("averages") and path.exists():
            next(path.iterdir()).unlink()
            raise KeyboardInterrupt

    assert trained_generator(grid, curve.cell, with_averages=True)
    with monkeypatch.context() as patched:
        patched.setattr(frontier_cells.shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            delete_intermediates(grid, curve)
    assert shutil.rmtree is remove
    assert len(list(run.glob("averages*/*"))) == 1
    assert trained_generator(grid, curve.cell)
    assert not trained_generator(grid, curve.cell, with_averages=True)
    delete_intermediates(grid, curve)
    assert not list(run.glob("averages*"))


def test_averages_stay_until_the_curve_is_measured(grid: Grid, curve: Job, tmp_path: Path) -> None:
    """Other jobs of the same generator neither train it again nor remove them; afterwards any job does."""
    assert isinstance(curve.cell, GeneratorCell)
    folder = grid.cell_folder(curve.cell)
    context = CellContext(grid.config, grid, Results(tmp_path / "results"))
    frontier_cells._train_generator(context, curve.cell, folder)
    assert len(list((folder / "run/averages").iterdir())) == 2
    context.results.write(curve.result, {"points": POINTS})
    frontier_cells._train_generator(context, curve.cell, folder)
    assert not (folder / "run/averages").exists() and (folder / "run/generator").exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "bytes"])
def test_damaged_curve_points_are_measured_again(damage: str, curve: Job, tmp_path: Path) -> None:
    name = f"{curve.result}.partial"
    Results(tmp_path).write(name, {"points": POINTS})
    assert frontier_cells._points_so_far(tmp_path, curve) == POINTS
    path = tmp_path / f"{name}.json"
    whole = path.read_bytes()
    damaged = {"cut": whole[:-20], "changed": whole.replace(b"1.5", b"1.4"), "empty": b"", "bytes": b"\xff" * 9}
    path.write_bytes(damaged[damage])
    assert frontier_cells._points_so_far(tmp_path, curve) == []


@pytest.mark.parametrize("damaged", [b"", b"12.5.", b"\xff\xfe", b"nan", b"inf", b"-1"])
def test_damaged_seconds_file_is_ignored(damaged: bytes, tmp_path: Path) -> None:
    path = tmp_path / "curve.seconds"
    path.write_bytes(damaged)
    with frontier_cells._timed(path) as seconds:
        pass
    assert 0 <= seconds[0] < 5 and float(path.read_text()) == seconds[0]
    path.write_text("100.0\n")
    with frontier_cells._timed(path) as seconds:
        pass
    assert seconds[0] > 100
