"""`vavae frontier` on the real command line: processes share a grid, no cell is trained twice, damage is repaired."""

import contextlib
import errno
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from html_page import Page

from vavae.cli import run
from vavae.config import load_recipe
from vavae.errors import RunError, UserError
from vavae.frontier import cells as frontier_cells
from vavae.frontier import run as frontier
from vavae.frontier.config import Config
from vavae.frontier.grid import Grid
from vavae.frontier.results import Results
from vavae.training.run_folder import open_run

COMMAND = [sys.executable, "-c", "import torch; torch.set_num_threads(1); from vavae.cli import main; main()"]
RECIPE = str(Path(__file__).with_name("frontier_grid.yaml"))
JOBS = {"tokenizer": 5, "uniformity": 5, "generator": 7, "curve": 2}


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "frontier", RECIPE, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, error = process.communicate()
    return process.returncode, output, error


def here(*arguments: str) -> tuple[int, str, str]:
    """Run the same command in this process, which has loaded its libraries."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        code = run(["frontier", RECIPE, *arguments])
    return code, output.getvalue(), error.getvalue()


def trained(output: str) -> list[str]:
    return re.findall(r"^training (.*)$", output, re.MULTILINE)


def results(folder: Path) -> dict[str, int]:
    """Return the result files with their modification times."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "results").glob("*.json")}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str, str]], list[str]]:
    """Stop a grid once, then finish it with two processes at the same time."""
    folder = tmp_path_factory.mktemp("frontier") / "run"
    first = start("--output", str(folder))
    while first.poll() is None and len(results(folder)) < 3:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    stopped = finish(first)
    assert stopped[0] == 1, stopped
    assert "Traceback" not in stopped[2]
    assert "the same command resumes" in stopped[2].splitlines()[-1]
    before = results(folder)
    assert 3 <= len(before) < sum(JOBS.values())
    pair = [start("--output", str(folder)) for _ in range(2)]
    ended = [finish(process) for process in pair]
    assert {name: at for name, at in results(folder).items() if name in before} == before  # no job ran again
    return folder, ended, trained(stopped[1])


Shared = tuple[Path, list[tuple[int, str, str]], list[str]]


def test_two_processes_share_the_jobs(shared: Shared) -> None:
    folder, ended, _ = shared
    assert [code for code, _, _ in ended] == [0, 0], ended
    found = [name.split("-")[0] for name in results(folder)]
    assert {kind: found.count(kind) for kind in JOBS} == JOBS
    done = [set(re.findall(r"^done: (.*) in \d", output, re.MULTILINE)) for _, output, _ in ended]
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
    _, ended, at_first = shared
    everything = at_first + [label for _, output, _ in ended for label in trained(output)]
    assert len(set(everything)) == 12  # 5 tokenizers and 7 generators, though the tables ask for 16 generators
    assert len(everything) <= 13


def test_all_tables_and_figures_are_written(shared: Shared) -> None:
    folder = shared[0]
    assert {path.name for path in folder.glob("*.csv")} == {f"table{n}.csv" for n in (1, 2, 4, 5, 6)}
    assert {"figure2-nano-2.svg", "figure2-published.svg", "figure4-training.svg"} <= {
        path.name for path in folder.glob("*.svg")
    }
    assert len(list(folder.glob("figure6-*.svg"))) == 5
    tables = json.loads((folder / "tables.json").read_text())
    for table in tables["tables"].values():
        for row in table["rows"]:
            assert all(stat["mean"] is not None for stat in row["ours"].values()), row
    rows = {tuple(row["labels"].values()): row for row in tables["tables"]["table2"]["rows"]}
    shared_cell = rows["4", "none"]["ours"]["gfid/nano/2"]
    assert shared_cell["values"] == tables["tables"]["table4"]["rows"][0]["ours"]["gfid"]["values"]
    for curve in tables["curves"].values():
        assert [images for images, _ in curve] == [32, 64]


def test_page_is_complete_and_self_contained(shared: Shared) -> None:
    html = (shared[0] / "frontier.html").read_text()
    page = Page(html)
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert len([source for source in page.sources if source.startswith("data:image/")]) == 5 + 7
    for published in ("16.24", "36.83", "0.55", "19.50", "too few images", "CIFAR-10", "saliency"):
        assert published in page.text, published
    verdicts = re.findall(r'class="verdict">([^<]+)<', html)
    assert verdicts and not {"reproduced", "not reproduced"} & set(verdicts)  # twenty samples are too few
    assert "missing" not in page.text


def test_damaged_result_is_measured_again_only(shared: Shared) -> None:
    folder = shared[0]
    before = results(folder)
    victim = next(folder.glob("results/generator-*.json"))
    whole = json.loads(victim.read_text())
    whole["content"]["records"][0]["value"] += 1.0  # a wrong number
    victim.write_text(json.dumps(whole))
    code, output, error = here("--output", str(folder))
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
    code, output, error = here("--output", str(tmp_path / "run"), "--page_only")
    assert code == 0, error
    assert "5 of 19 done" in output and trained(output) == []
    page = Page((tmp_path / "run/frontier.html").read_text())
    assert "missing" in page.text and "not yet measured" in page.text


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_time_limit_exits_with_zero(handler: Any, tmp_path: Path) -> None:
    former = signal.signal(signal.SIGINT, handler)
    try:
        code, output, error = here("--output", str(tmp_path / "run"), "--time_limit", "0.02")
    finally:
        signal.signal(signal.SIGINT, former)
    assert code == 0, error
    assert "time limit reached" in output.splitlines()[-1]
    assert (tmp_path / "run/frontier.html").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--experiments.table2.sizes", "[huge/2]"), "huge/2"),
        (("--experiments.table4.teachers", "[none,dinov2-small-focus@wide]"), "wide"),
        (("--experiments.table2.colours", "3"), "colours"),
        (("--experiments.table5.losses", "[half]"), "half"),
        (("--measure.samples", "1"), "samples"),
        (("--generator.curve_points", "1"), "curve_points"),
        (("--generator.batch_size", "0"), "generator.batch_size"),
        (("--generator.images_of_size", "{nano: 32}"), "generator.images_of_size: 'nano'"),
        (("--tokenizer.images", "0"), "tokenizer.images"),
        (("--tokenizer.channel_multipliers", "[]"), "tokenizer.channel_multipliers"),
        (("--experiments.table2.sizes", "[nano]"), "nano/2"),
        (("--experiments.table2.sizes", "[]"), "experiments.table2.sizes"),
        (("--experiments.table5.seeds", "[0,0]"), "experiments.table5.seeds"),
        (("--measure.teacher", "dinov9"), "measure.teacher"),
        (("--measure.network", "incepton"), "incepton"),
        (("--time_limit", "nan"), "time_limit"),
        (("--device", "gpu"), "gpu"),
        (("--data.images", "/no/such/folder"), "/no/such/folder"),
        (("--experiments.table2.teachers", "[none,dinov9]"), "dinov9"),
    ],
)
def test_wrong_recipe_is_one_line(arguments: tuple[str, ...], named: str, tmp_path: Path) -> None:
    code, _, said = here("--output", str(tmp_path / "run"), *arguments)
    assert code == 2
    assert named in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run/work").exists()  # reported before any training


def test_help_shows_types_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["frontier", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--measure.samples" in said and "default: 50000" in said
    assert "--experiments.table2.dimensions" in said


def test_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, said = here("--output", str(tmp_path / "run"))
    assert code == 2 and "plain processes" in said


# One tokenizer with one generator.
ONE = [
    argument
    for key, value in {
        "table2.dimensions": "[2]",
        "table2.teachers": "[none]",
        **{f"{name}.seeds": "[]" for name in ("table4", "table5", "convergence", "ladder")},
    }.items()
    for argument in (f"--experiments.{key}", value)
]
CURVE = [*ONE, "--experiments.convergence.seeds", "[0]", "--experiments.convergence.teachers", "[none]"]
CURVE += ["--experiments.convergence.dimension", "2"]


def one_file(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_latents_follow_the_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert here("--output", str(folder), *ONE)[0] == 0
    first = one_file(folder, "work/tokenizer-*/latents-*/index.json")
    assert json.loads(first.read_text())["settings"]["dtype"] == "float32"
    changed = ("--tokenizer.latent_dtype", "float16", "--tokenizer.flips", "false")
    code, output, error = here("--output", str(folder), *ONE, *changed)
    assert code == 0, error
    assert trained(output) == ["nano/2 on d 2, none, seed 0"]
    second = next(path for path in folder.glob("work/tokenizer-*/latents-*/index.json") if path != first)
    assert json.loads(second.read_text())["settings"]["dtype"] == "float16"
    recipes = [path.read_text() for path in folder.glob("work/generator-*/run/recipe.yaml")]
    assert sorted(str(second.parent) in recipe for recipe in recipes) == [False, True]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt("stopped")


def test_partial_curve_of_another_protocol_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, measure, calls = tmp_path / "run", frontier_cells._distance, []

    def stop_at_the_third(*arguments: Any) -> Any:
        calls.append(arguments)
        return interrupted() if len(calls) == 3 else measure(*arguments)  # the generator, one point, stop

    with monkeypatch.context() as patched:
        patched.setattr(frontier_cells, "_distance", stop_at_the_third)
        assert here("--output", str(folder), *CURVE)[0] == 1
    assert len(json.loads(one_file(folder, "work/generator-*/*.partial.json").read_text())["content"]["points"]) == 1
    code, output, error = here("--output", str(folder), *CURVE, "--measure.curve_samples", "12")
    assert (code, trained(output)) == (0, []), error
    points = json.loads(one_file(folder, "results/curve-*.json").read_text())["content"]["points"]
    assert [point["record"]["protocol"]["samples"] for point in points] == [12, 12]


def test_curve_resumes_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, write = tmp_path / "run", Results.write

    def full(self: Results, name: str, content: dict[str, Any]) -> None:
        if name.startswith("curve"):
            raise OSError(errno.ENOSPC, "No space left on device", name)
        write(self, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(Results, "write", full)
        code, _, error = here("--output", str(folder), *CURVE)
        assert code == 1 and "No space left" in error
    code, output, error = here("--output", str(folder), *CURVE)
    assert (code, trained(output)) == (0, []), error
    assert not list(folder.glob("work/generator-*/*.partial.json")) + list(folder.glob("work/generator-*/run/averages"))


def test_waits_for_an_occupied_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = (*ONE, "--tokenizer.images", "16", "--measure.teacher", "null")
    config = load_recipe(Config, RECIPE, ["--output", str(tmp_path), *quick])
    grid = Grid(config, (config.data.open("train").fingerprint(), config.data.open("test").fingerprint()))
    run_folder = grid.tokenizer_folder(grid.tokenizers[0]) / "run"
    run_folder.mkdir(parents=True)
    other = FileLock(run_folder / ".lock")
    other.acquire()
    # The other process ends while this one would sleep.
    monkeypatch.setattr(frontier, "time", SimpleNamespace(sleep=lambda _: other.release(), monotonic=time.monotonic))
    code, output, error = here("--output", str(tmp_path), *quick, "--kinds", "[tokenizer]")
    assert code == 0, error
    assert output.count("another process is working in this run folder") == 1 and "failed" not in output
    assert len(list((tmp_path / "results").glob("tokenizer-*.json"))) == 1


def test_resume_with_other_sampling_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is part of a cell's name, so neither prevents the resume."""

    def stopped(config: Any, **_: object) -> None:
        folder = Path(config.output)
        with open_run(config, "generator"):
            (folder / "metrics.jsonl").touch()
            interrupted()

    with monkeypatch.context() as patched:
        patched.setattr(frontier_cells.train_dit, "run", stopped)
        assert here("--output", str(tmp_path / "run"), *ONE)[0] == 1
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    code, output, error = here("--output", str(moved), *ONE, "--generator.sampling.steps", "4")
    assert (code, trained(output)) == (0, ["nano/2 on d 2, none, seed 0"]), error


@pytest.mark.parametrize("fault", [ValueError("input contains NaN"), UserError("bad latents"), RunError("diverged")])
def test_failed_job_does_not_stop_the_others(fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do = frontier.run_job

    def fails(context: Any, job: Any, known: Any) -> dict[str, Any]:
        if job.kind == "uniformity":
            raise fault
        return do(context, job, known)

    monkeypatch.setattr(frontier, "run_job", fails)
    code, output, error = here("--output", str(tmp_path / "run"), *ONE)
    assert code == 1
    assert f"failed: uniformity d 2, none, seed 0: {fault}" in output and "2 of 3 done" in error.splitlines()[-1]
    assert (tmp_path / "run/frontier.html").exists()


def test_missing_models_end_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier, "_PATIENCE", 0.0)
    code, output, error = here("--output", str(tmp_path / "run"), *ONE, "--kinds", "[uniformity]")
    assert code == 0, error
    assert "1 jobs need models that have not been trained, first uniformity d 2" in output


def test_page_names_different_precisions(shared: Shared, tmp_path: Path) -> None:
    target = tmp_path / "run/results"
    target.mkdir(parents=True)
    brought = Results(target)
    for number, path in enumerate(sorted(shared[0].glob("results/generator-*.json"))):
        content = json.loads(path.read_text())["content"]
        brought.write(path.stem, content | {"precision": ("fp32", "bf16")[number % 2]})
    assert here("--output", str(tmp_path / "run"), "--page_only")[0] == 0
    assert "some generators were trained in bf16, others in fp32" in (tmp_path / "run/frontier.html").read_text()
    assert "others in" not in (shared[0] / "frontier.html").read_text()
