"""`vavae frontier`: processes share a grid, no cell is trained twice, damage is repaired, mistakes are one line."""

import errno
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from children import CONTEXT
from estimates import skip_estimates
from filelock import FileLock
from frontier_grid import ONE, RECIPE, grid_config, here, here_from, real_grid, trained
from html_page import Page
from stub_jobs import invented, skip_page
from tiny_networks import use_tiny_networks

from vavae.cli import run
from vavae.errors import RunError, UserError
from vavae.frontier import cells as frontier_cells
from vavae.frontier import run as frontier
from vavae.frontier.cells import CellContext
from vavae.frontier.config import ExperimentsConfig, MeasureConfig, SizeConfig, Table2Config, Table5Config
from vavae.frontier.grid import Job
from vavae.frontier.results import Results
from vavae.training.run_folder import open_run

JOBS = {"tokenizer": 3, "uniformity": 3, "generator": 5, "curve": 2}
PART = ["--experiments.table2.dimensions=[4]"]  # every table and figure with fewer cells
pytestmark = pytest.mark.slow


def command(log: str, folder: str) -> None:
    """Run the command in this process, a new one, with small networks; write its output to a file."""
    skip_estimates()
    use_tiny_networks()
    with Path(log).open("w", buffering=1) as output, redirect_stdout(output), redirect_stderr(io.StringIO()):
        sys.exit(run(["frontier", str(RECIPE), *PART, "--output", folder]))


def results(folder: Path) -> dict[str, int]:
    """Return the result files with their modification times."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "results").glob("*.json")}


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt("stopped")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """Stop a grid in its second tokenizer, then finish it with another process and this one at the same time.

    Returns the folder, the outputs of the two processes, and what was trained before the stop.
    """
    folder = tmp_path_factory.mktemp("frontier") / "run"
    do, begun = frontier.run_job, []

    def stop_in_the_second_tokenizer(context: CellContext, job: Job, known: Any) -> Any:
        begun.append(job.kind)
        if begun.count("tokenizer") == 2:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        return do(context, job, known)

    config = grid_config(folder, *PART)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "run_job", stop_in_the_second_tokenizer)
        code, stopped, error = here_from(config, patch)
    assert code == 1, error
    assert "Traceback" not in error and "the same command resumes" in error.splitlines()[-1]
    before = results(folder)
    assert 4 <= len(before) < sum(JOBS.values())
    log = folder.with_name("log")
    log.touch()
    other = CONTEXT.Process(target=command, args=(str(log), str(folder)))
    other.start()
    while other.is_alive() and "-- " not in log.read_text():  # until it begins a job
        time.sleep(0.05)
    with pytest.MonkeyPatch.context() as patch:
        code, own, error = here_from(config, patch)
    assert code == 0, error
    other.join()
    assert other.exitcode == 0
    assert {name: at for name, at in results(folder).items() if name in before} == before  # no job ran again
    return folder, [own, log.read_text()], trained(stopped)


Shared = tuple[Path, list[str], list[str]]


def test_two_processes_share_the_jobs(shared: Shared) -> None:
    folder, outputs, _ = shared
    found = [name.split("-")[0] for name in results(folder)]
    assert {kind: found.count(kind) for kind in JOBS} == JOBS
    done = [set(re.findall(r"^done: (.*) in \d", output, re.MULTILINE)) for output in outputs]
    assert not done[0] & done[1] and done[0] and done[1]
    assert not list((folder / "locks").glob("*.lock"))


def test_results_contain_no_local_paths(shared: Shared) -> None:
    """Results are published in papers and repositories."""
    folder = shared[0]
    for path in folder.glob("results/*.json"):
        assert str(folder.parent) not in path.read_text(), path
    assert list((folder / "teacher-features").glob("**/*.safetensors"))


def test_nothing_is_trained_twice(shared: Shared) -> None:
    """A cell that was stopped during its training resumes and is listed twice, all others once."""
    _, outputs, at_first = shared
    everything = at_first + [label for output in outputs for label in trained(output)]
    assert len(set(everything)) == 8  # 3 tokenizers and 5 generators, though the tables ask for 11 generators
    assert len(everything) <= 9


def test_all_tables_and_figures_are_written(shared: Shared) -> None:
    folder = shared[0]
    assert {path.name for path in folder.glob("*.csv")} == {f"table{n}.csv" for n in (1, 2, 4, 5, 6)}
    assert {"figure2-nano-2.svg", "figure2-published.svg", "figure4-training.svg"} <= {
        path.name for path in folder.glob("*.svg")
    }
    assert len(list(folder.glob("figure6-*.svg"))) == 3
    tables = json.loads((folder / "tables.json").read_text())
    for table in tables["tables"].values():
        for row in table["rows"]:
            assert all(stat["mean"] is not None for stat in row["ours"].values()), row
    rows = {tuple(row["labels"].values()): row for row in tables["tables"]["table2"]["rows"]}
    shared_cell = rows["4", "none"]["ours"]["gfid/nano/2"]
    assert shared_cell["values"] == tables["tables"]["table4"]["rows"][0]["ours"]["gfid"]["values"]
    for curve in tables["curves"].values():
        assert [images for images, _ in curve] == [32, 64]


def test_page_is_complete_and_self_contained(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of the whole recipe, whose other cells have invented results."""
    shutil.copytree(shared[0] / "results", tmp_path / "results")
    config, found = replace(grid_config(tmp_path), page_only=True), Results(tmp_path / "results")
    for number, job in enumerate(real_grid(config).jobs):
        if found.read(job.result) is None:
            found.write(job.result, invented(job, number))
    draft = tmp_path / ".table2.csv.0123456789abcdef.tmp"
    draft.touch()
    assert here_from(config, monkeypatch)[0] == 0
    assert not draft.exists()  # a killed call's
    html = (tmp_path / "frontier.html").read_text()
    page = Page(html)
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert len([source for source in page.sources if source.startswith("data:image/")]) == 3 + 5
    for published in ("16.24", "36.83", "0.55", "19.50", "too few images", "CIFAR-10", "saliency"):
        assert published in page.text, published
    verdicts = re.findall(r'class="verdict">([^<]+)</span></td>', html)
    assert verdicts and not {"reproduced", "not reproduced"} & set(verdicts)  # twenty samples are too few
    assert "missing" not in page.text


def test_damaged_result_is_measured_again_only(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared[0]
    before = results(folder)
    victim = next(folder.glob("results/generator-*.json"))
    whole = json.loads(victim.read_text())
    whole["content"]["records"][0]["value"] += 1.0  # a wrong number
    victim.write_text(json.dumps(whole))
    code, output, error = here_from(grid_config(folder, *PART), monkeypatch)
    assert code == 0, error
    assert f"{victim}: damaged" in output
    assert trained(output) == []  # the generator exists and is measured again
    after = results(folder)
    assert {name for name in after if after[name] != before.get(name)} == {victim.name, f"damaged-{victim.name}"}
    again = json.loads(victim.read_text())["content"]["records"][0]["value"]
    assert again == pytest.approx(whole["content"]["records"][0]["value"] - 1.0, rel=1e-6)


def test_page_from_partial_results(shared: Shared, tmp_path: Path) -> None:
    """Result files copied from another machine are enough."""
    target = tmp_path / "run/results"
    target.mkdir(parents=True)
    for path in shared[0].glob("results/tokenizer-*.json"):
        (target / path.name).write_bytes(path.read_bytes())
    code, output, error = here("--output", str(tmp_path / "run"), "--page_only", *PART)
    assert code == 0, error
    assert "3 of 13 done" in output and trained(output) == []
    page = Page((tmp_path / "run/frontier.html").read_text())
    assert "missing" in page.text and "not yet measured" in page.text


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_time_limit_exits_with_zero(handler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = grid_config(tmp_path / "run", *ONE, "--tokenizer.training.images", "100000", "--time_limit", "0.02")
    former = signal.signal(signal.SIGINT, handler)
    try:
        code, output, error = here_from(config, monkeypatch)
    finally:
        signal.signal(signal.SIGINT, former)
    assert code == 0, error
    assert "time limit reached" in output.splitlines()[-1]
    assert (tmp_path / "run/frontier.html").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--experiments.table2.colors", "3"), "colors"),
        (("--tokenizer.training.seed", "1"), "tokenizer.training.seed is set by the grid"),
    ],
)
def test_wrong_option_is_one_line(arguments: tuple[str, ...], named: str, tmp_path: Path) -> None:
    code, _, error = here("--output", str(tmp_path / "run"), *arguments)
    assert code == 2
    assert named in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run/work").exists()  # reported before any training


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--measure.network=incepton", "incepton"),
        ("--data.images=/no/such/folder", "/no/such/folder"),
        ("--experiments.table2.teachers=[none,dinov9]", "dinov9"),
    ],
)
def test_wrong_name_is_one_line(option: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, error = here_from(grid_config(tmp_path / "run", option), monkeypatch)
    assert code == 2
    assert named in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run/work").exists()  # reported before any training


def wrong(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: real_grid(replace(grid_config(folder), **changes))


def experiments(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: real_grid(
        replace(grid_config(folder), experiments=replace(grid_config(folder).experiments, **changes))
    )


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (experiments(table2=Table2Config(sizes=("huge/2",), seeds=(0,))), "huge/2"),
        (experiments(table2=Table2Config(sizes=("nano",), seeds=(0,))), "nano/2"),
        (experiments(table2=Table2Config(teachers=("dinov2-small-focus@wide",), seeds=(0,))), "wide"),
        (wrong(sizes={"big": SizeConfig(64, 2)}), "sizes.big must have width, depth and heads"),
        (wrong(sizes={"nano": SizeConfig(32, 1, 2, images=0)}), "sizes.nano.images"),
        (wrong(time_limit=float("nan")), "time_limit"),
        (wrong(workers=0), "workers must be at least 1, got 0"),
        (lambda _: ExperimentsConfig(table2=Table2Config(sizes=())), "experiments.table2.sizes"),
        (lambda _: ExperimentsConfig(table5=Table5Config(seeds=(0, 0))), "experiments.table5.seeds"),
        (lambda _: MeasureConfig(samples=1), "measure.samples"),
        (lambda folder: real_grid(grid_config(folder, "--measure.teacher", "dinov9")), "measure.teacher"),
        (lambda folder: grid_config(folder, "--tokenizer.data.size", "64"), "tokenizer.data.size is set by the grid"),
        (lambda folder: grid_config(folder, "--data.crop", "random"), "data.crop random needs"),
        (
            lambda folder: grid_config(folder, "--generator.transformer.width", "64"),
            "generator.transformer.width is set by the grid",
        ),
        (
            lambda folder: grid_config(folder, "--generator.training.averages.snapshot_images", "64"),
            "snapshot_images of at most half",
        ),
    ],
)
def test_wrong_recipe_is_refused(make: Callable[[Path], object], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        make(tmp_path)


def test_unknown_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, error = here_from(replace(grid_config(tmp_path), device="gpu"), monkeypatch)
    assert code == 2 and "gpu" in error


def test_help_shows_types_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["frontier", "--help"]) == 0
    output = capsys.readouterr().out
    assert "--measure.samples" in output and "default: 50000" in output
    assert "--experiments.table2.dimensions" in output


def test_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, error = here_from(grid_config(tmp_path), monkeypatch)
    assert code == 2 and "plain processes" in error


CURVE = [argument for argument in ONE if not argument.startswith("--experiments.convergence")]
CURVE += ["--experiments.convergence.teachers=[none]", "--experiments.convergence.dimension=2"]


def one_file(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a grid whose only tokenizer is trained."""
    folder = tmp_path_factory.mktemp("tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        skip_page(patch.setattr)
        assert here_from(grid_config(folder, *ONE, "--kinds", "[tokenizer]"), patch)[0] == 0
    return folder


@pytest.fixture
def copied(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of `tokenizer`, on which calls draw no page."""
    skip_page(monkeypatch.setattr)
    return Path(shutil.copytree(tokenizer, tmp_path / "run"))


def test_latents_follow_the_recipe(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = grid_config(copied, *ONE, "--kinds", "[tokenizer,generator]")
    code, output, error = here_from(config, monkeypatch)
    assert (code, trained(output)) == (0, ["nano/2 on d 2, none, seed 0"]), error
    first = one_file(copied, "work/tokenizer-*/latents-*/index.json")
    assert json.loads(first.read_text())["settings"]["dtype"] == "float32"
    changed = replace(config, latent_dtype="float16", generator=replace(config.generator, flip=False))
    code, output, error = here_from(changed, monkeypatch)
    assert code == 0, error
    assert trained(output) == ["nano/2 on d 2, none, seed 0"]
    second = next(path for path in copied.glob("work/tokenizer-*/latents-*/index.json") if path != first)
    assert json.loads(second.read_text())["settings"]["dtype"] == "float16"
    recipes = [path.read_text() for path in copied.glob("work/generator-*/run/recipe.yaml")]
    assert sorted(str(second.parent) in recipe for recipe in recipes) == [False, True]


def test_stopped_curve_resumes_unless_its_protocol_changed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = grid_config(copied, *CURVE, "--kinds", "[tokenizer,generator,curve]")
    measure, calls = frontier_cells._distance, []

    def stop_at_the_third(*arguments: Any) -> Any:
        calls.append(arguments)
        return interrupted() if len(calls) == 3 else measure(*arguments)  # the generator, one point, stop

    with monkeypatch.context() as patched:
        patched.setattr(frontier_cells, "_distance", stop_at_the_third)
        assert here_from(config, monkeypatch)[0] == 1
    assert len(json.loads(one_file(copied, "work/generator-*/*.partial.json").read_text())["content"]["points"]) == 1
    changed = replace(config, measure=replace(config.measure, curve_samples=12))
    with monkeypatch.context() as patched:

        def full(self: Results, name: str, content: dict[str, Any]) -> None:
            if name.startswith("curve") and not name.endswith("partial"):
                raise OSError(errno.ENOSPC, "No space left on device", name)
            write(self, name, content)

        write = Results.write
        patched.setattr(Results, "write", full)
        code, _, error = here_from(changed, monkeypatch)
        assert code == 1 and "No space left" in error
    code, output, error = here_from(changed, monkeypatch)
    assert (code, trained(output)) == (0, []), error
    points = json.loads(one_file(copied, "results/curve-*.json").read_text())["content"]["points"]
    assert [point["record"]["protocol"]["samples"] for point in points] == [12, 12]
    assert not list(copied.glob("work/generator-*/run/averages"))


def test_waits_for_an_occupied_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_page(monkeypatch.setattr)
    config = grid_config(tmp_path, *ONE, "--kinds", "[tokenizer]")
    grid = real_grid(config)
    run_folder = grid.cell_folder(grid.tokenizers[0]) / "run"
    run_folder.mkdir(parents=True)
    other = FileLock(run_folder / ".lock")
    other.acquire()
    # The other process ends while this one would sleep.
    monkeypatch.setattr(frontier, "time", SimpleNamespace(sleep=lambda _: other.release(), monotonic=time.monotonic))
    code, output, error = here_from(config, monkeypatch)
    assert code == 0, error
    assert output.count("another process is working in this run folder") == 1 and "failed" not in output
    assert len(list((tmp_path / "results").glob("tokenizer-*.json"))) == 1


def test_resume_with_other_sampling_and_folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling and folder are not part of a cell's name."""

    def stopped(config: Any, **_: object) -> None:
        folder = Path(config.output)
        with open_run(config, "generator"):
            (folder / "metrics.jsonl").touch()
            interrupted()

    config = grid_config(copied, *ONE, "--kinds", "[tokenizer,generator]")
    with monkeypatch.context() as patched:
        patched.setattr(frontier_cells.train_dit, "run", stopped)
        assert here_from(config, monkeypatch)[0] == 1
    moved = copied.rename(copied.with_name("moved"))
    sampling = replace(config.generator.sampling, steps=4)
    changed = replace(config, output=str(moved), generator=replace(config.generator, sampling=sampling))
    code, output, error = here_from(changed, monkeypatch)
    assert (code, trained(output)) == (0, ["nano/2 on d 2, none, seed 0"]), error


@pytest.mark.parametrize("fault", [ValueError("input contains NaN"), UserError("bad latents"), RunError("diverged")])
def test_failed_job_does_not_stop_the_others(fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any, job: Any, known: Any) -> dict[str, Any]:
        if job.kind == "uniformity":
            raise fault
        return invented(job, 1)

    monkeypatch.setattr(frontier, "run_job", fails)
    monkeypatch.setattr(frontier, "trained_tokenizer", lambda *_: True)
    code, output, error = here_from(grid_config(tmp_path, *ONE), monkeypatch)
    assert code == 1
    assert f"failed: uniformity d 2, none, seed 0: {fault}" in output and "2 of 3 done" in error.splitlines()[-1]
    assert (tmp_path / "frontier.html").exists()


def test_missing_models_end_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier, "_PATIENCE", 0.0)
    code, output, error = here_from(grid_config(tmp_path, *ONE, "--kinds", "[uniformity]"), monkeypatch)
    assert code == 0, error
    assert "1 jobs need models that have not been trained, first uniformity d 2" in output


def test_page_names_different_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(grid_config(tmp_path), page_only=True)
    found = Results(tmp_path / "results")
    for number, job in enumerate(real_grid(config).jobs):
        precision = ("fp32", "bf16")[number % 2] if job.kind == "generator" else "fp32"
        found.write(job.result, invented(job, number) | {"precision": precision})
    assert here_from(config, monkeypatch)[0] == 0
    page = (tmp_path / "frontier.html").read_text()
    assert "some generators were trained in bf16, others in fp32" in page and "some tokenizers" not in page
