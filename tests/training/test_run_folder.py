"""One recipe per run folder, one process at a time."""

import errno
import fcntl
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml
from machine_faults import limited

from vavae.errors import UserError
from vavae.io.files import exclusive
from vavae.training.optimizer import OptimizerConfig
from vavae.training.run_folder import check_same_data, open_run, open_run_folder
from vavae.training.schedule import ScheduleConfig


@dataclass(frozen=True)
class Training:
    images: int = 10
    device: str = "cpu"
    loggers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    output: str = "x"
    seed: int = 0
    training: Training = field(default_factory=Training)


def test_same_recipe_resumes(tmp_path: Path) -> None:
    open_run_folder(tmp_path, Recipe())
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["training"] == {
        "images": 10,
        "device": "cpu",
        "loggers": [],
    }
    assert "torch" in (tmp_path / "versions.json").read_text()
    open_run_folder(tmp_path, Recipe())
    open_run_folder(tmp_path, Recipe(output="y", training=Training(device="cuda")))  # where it runs may change


@dataclass(frozen=True)
class Compiled(Recipe):
    compile: bool = False


def test_compile_may_change(tmp_path: Path) -> None:
    open_run_folder(tmp_path, Compiled())
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    open_run_folder(tmp_path, Compiled(compile=True))


@pytest.mark.parametrize(
    ("other", "named"),
    [(Recipe(seed=3), "seed = 0, not 3"), (Recipe(training=Training(images=9)), "training.images = 10, not 9")],
)
def test_another_recipe_is_refused(tmp_path: Path, other: Recipe, named: str) -> None:
    open_run_folder(tmp_path, Recipe())
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=named):
        open_run_folder(tmp_path, other)
    open_run_folder(tmp_path, replace(other, seed=0, training=Training()))


@dataclass(frozen=True)
class Scheduled(Recipe):
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


def scheduled(images: int, schedule: ScheduleConfig) -> Scheduled:
    return Scheduled(training=Training(images), optimizer=OptimizerConfig(schedule=schedule))


@pytest.mark.parametrize("schedule", [ScheduleConfig(warmup_images=3), ScheduleConfig("staged", factors=(1.0,))])
def test_longer_run_without_a_falling_schedule(schedule: ScheduleConfig, tmp_path: Path) -> None:
    open_run_folder(tmp_path, scheduled(10, schedule))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    open_run_folder(tmp_path, scheduled(20, schedule))
    recorded = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert recorded["training"]["images"] == 10  # training writes its length as it begins
    with pytest.raises(UserError, match="images = 10, not 5: choose"):
        open_run_folder(tmp_path, scheduled(5, schedule))
    with pytest.raises(UserError, match="seed = 0, not 1"):
        open_run_folder(tmp_path, replace(scheduled(30, schedule), seed=1))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == recorded


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_longer_run_with_a_falling_schedule_is_refused(kind: str, tmp_path: Path) -> None:
    schedule = ScheduleConfig(kind)  # type: ignore[arg-type]
    open_run_folder(tmp_path, scheduled(10, schedule))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    why = rf"images = 10, not 20: optimizer\.schedule\.kind {kind} depends on where the run ends"
    with pytest.raises(UserError, match=why):
        open_run_folder(tmp_path, scheduled(20, schedule))


def test_ignored_keys_may_differ(tmp_path: Path) -> None:
    open_run_folder(tmp_path, Recipe())
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    open_run_folder(tmp_path, Recipe(seed=3), ignored_keys=("seed",))
    with pytest.raises(UserError, match="seed = 0, not 3"):
        open_run_folder(tmp_path, Recipe(seed=3))


def test_other_data_are_refused(tmp_path: Path) -> None:
    open_run_folder(tmp_path, Recipe())
    check_same_data(tmp_path, {"images": "one", "latents": "two"})
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    check_same_data(tmp_path, {"images": "one", "latents": "two"})
    with pytest.raises(UserError, match=f"^latents must name the data that the run in {tmp_path} began with"):
        check_same_data(tmp_path, {"images": "one", "latents": "three"})
    check_same_data(tmp_path, {"images": "one", "latents": "two"})  # the refusal changed nothing
    # Without its recipe, a folder begins a new run with its own data.
    (tmp_path / "recipe.yaml").unlink()
    open_run_folder(tmp_path, Recipe(seed=1))
    check_same_data(tmp_path, {"images": "four"})


def test_data_may_change_before_the_first_step(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        open_run_folder(tmp_path, Recipe())
        check_same_data(tmp_path, {"images": "one"})
    with exclusive(tmp_path):
        open_run_folder(tmp_path, Recipe())
        check_same_data(tmp_path, {"images": "two"})


def test_missing_key_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("output: x\ntraining: {images: 10, device: cpu}\n")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    open_run_folder(tmp_path, Recipe())
    with pytest.raises(UserError, match="seed = 0, not 3"):
        open_run_folder(tmp_path, Recipe(seed=3))


def test_recipe_may_change_before_the_first_step(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        open_run_folder(tmp_path, Recipe(seed=3))
        (tmp_path / "steps.json").write_text("{}")
    with exclusive(tmp_path):
        open_run_folder(tmp_path, Recipe(seed=4))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["seed"] == 4
    assert not (tmp_path / "steps.json").exists()


@pytest.mark.parametrize("any_recipe", [False, True])
@pytest.mark.parametrize("others", [(), ("notes.txt",), ("data.json",)])
def test_own_recipe_of_the_user_is_kept(others: tuple[str, ...], any_recipe: bool, tmp_path: Path) -> None:
    for name in ("recipe.yaml", *others):
        (tmp_path / name).write_text("# notes\noutput: x\n")
    for call in (lambda: open_run_folder(tmp_path, Recipe()), lambda: take_up(tmp_path, Recipe(), any_recipe)):
        with pytest.raises(UserError, match=rf"^{tmp_path}/recipe\.yaml is not the recipe.*another name[^\n]*$"):
            call()
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", *others}
    assert all(path.read_text() == "# notes\noutput: x\n" for path in tmp_path.iterdir())


@pytest.mark.parametrize("last", ["recipe.yaml", "data.json", "steps.json", "versions.json"])
def test_killed_restart_resumes(last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill after any of the removals does not prevent the next call."""
    open_run_folder(tmp_path, Recipe())
    removed = Path.unlink

    def dies_after(path: Path, missing_ok: bool = False) -> None:
        removed(path, missing_ok=missing_ok)
        if path.name == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", dies_after)
    with pytest.raises(KeyboardInterrupt):
        open_run_folder(tmp_path, Recipe(seed=1))
    monkeypatch.setattr(Path, "unlink", removed)
    open_run_folder(tmp_path, Recipe(seed=1))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["seed"] == 1


def test_own_data_file_of_the_user_is_kept(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"own": 1}')
    open_run_folder(tmp_path, Recipe())
    check_same_data(tmp_path, {"images": "one"})
    assert (tmp_path / "data.json").read_text() == '{"own": 1}'


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(UserError, match="another process"), exclusive(tmp_path):
        raise AssertionError("entered twice")
    with exclusive(tmp_path):
        pass


def test_impossible_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"), exclusive(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_read_only_folder_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuses(path: str, *arguments: int, **options: int) -> int:
        if str(path) == str(tmp_path / ".lock"):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuses)
    message = rf"^output: {tmp_path} cannot be written \({os.strerror(number)}\)$"
    with pytest.raises(UserError, match=message), exclusive(tmp_path):
        raise AssertionError("entered")


def without_flock(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fails)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_folder_whose_locks_fail_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(number, monkeypatch)
    message = rf"^output: {tmp_path} cannot be written \({os.strerror(number)}\)$"
    with pytest.raises(UserError, match=message), exclusive(tmp_path):
        raise AssertionError("entered")


def test_folder_without_locks_is_locked_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(errno.ENOSYS, monkeypatch)
    warned = pytest.warns(UserWarning, match="flock not supported")
    with warned, exclusive(tmp_path), pytest.raises(UserError, match="another process"), exclusive(tmp_path):
        raise AssertionError("entered twice")
    with exclusive(tmp_path):
        pass


def test_full_disk_at_the_start(tmp_path: Path) -> None:
    with limited("FSIZE", 0), pytest.raises(OSError, match="File too large") as failed:
        take_up(tmp_path / "run", Recipe())
    assert failed.value.filename == str(tmp_path / "run/versions.json")


def take_up(folder: Path, recipe: Recipe, any_recipe: bool = False) -> bool:
    with open_run(replace(recipe, output=str(folder)), "generator", any_recipe=any_recipe) as run:
        return run.finished


@pytest.mark.parametrize("made", ["checkpoints/images-000000000048", "generator"])
def test_run_without_its_recipe_is_refused(made: str, tmp_path: Path) -> None:
    take_up(tmp_path, Recipe())
    (tmp_path / made).mkdir(parents=True)
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=rf"{tmp_path} has a run, but its recipe\.yaml is missing"):
        take_up(tmp_path, Recipe(seed=1))
    assert not (tmp_path / "recipe.yaml").exists()


def test_any_recipe_resumes_for_callers_that_know_the_run(tmp_path: Path) -> None:
    take_up(tmp_path, Recipe())
    (tmp_path / "checkpoints/images-000000000048").mkdir(parents=True)
    take_up(tmp_path, Recipe(seed=1), any_recipe=True)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["seed"] == 1


@pytest.mark.parametrize("damage", [b"", b"seed: [", b"- 1\n- 2\n", b"seed: \xff\xfe\n", b"seed: \0\n"])
def test_damaged_recipe_is_named(damage: bytes, tmp_path: Path) -> None:
    open_run_folder(tmp_path, Recipe())
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "recipe.yaml").write_bytes(damage)
    with pytest.raises(UserError, match=rf"^{tmp_path}/recipe\.yaml: (not YAML: |must have keys)[^\n]*$"):
        open_run_folder(tmp_path, Recipe())


def test_damaged_number_of_images(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("training: {images: 1x}\n")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"training\.images = 1x, not 10"):
        open_run_folder(tmp_path, Recipe())


@pytest.mark.parametrize("damage", [b"", b'{"images": "o', b"[]", b"\xff\xfe"])
def test_damaged_data_file_is_named(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(damage)
    with pytest.raises(UserError, match=rf"^{tmp_path}/data\.json is damaged: [^\n]*$"):
        check_same_data(tmp_path, {"images": "one"})


@pytest.mark.parametrize("damage", ["", '{"provenance": {"ima', "[]", '{"provenance": 3}'])
def test_damaged_result_is_made_again(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "generator").mkdir()
    result = tmp_path / "generator/config.json"
    open_run_folder(tmp_path, Recipe())
    result.write_text('{"provenance": {"images_seen": 10}}')
    assert take_up(tmp_path, Recipe())
    result.write_text(damage)
    assert not take_up(tmp_path, Recipe())
    assert f"{result} is damaged, so the result is made again" in capsys.readouterr().out


def test_drafts_of_a_killed_call_are_removed(tmp_path: Path) -> None:
    for name in (".samples.npz.4711.tmp", ".grid.png.0ab3.tmp", ".own.tmp", "samples.12.tmp"):
        (tmp_path / name).write_text("half")
    with exclusive(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".own.tmp", "samples.12.tmp"}
