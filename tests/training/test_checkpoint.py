"""Checkpoints that are damaged, and those that cannot be got at for a while."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from regression_task import CONFIG, Regression

from vavae.errors import UserError
from vavae.training.checkpoint import CheckpointFolder, copy_checkpoint, images_of
from vavae.training.trainer import Trainer, TrainingConfig


def write(folder: Path, *images: int, milestone: bool = False) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder)
    for seen in images:
        checkpoints.save(seen, {"a": torch.full((3,), float(seen))}, {"images_seen": seen, "loss": 0.1}, milestone)
    checkpoints.wait()
    return checkpoints


def manifest_of(folder: Path, images: int) -> Path:
    return folder / f"images-{images:012d}/manifest.json"


def change(manifest: Path, old: str, new: str) -> None:
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))


def as_before_it_had_a_hash(manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    del content["sha256"]
    manifest.write_text(json.dumps(content, indent=1))


MANIFESTS: dict[str, Callable[[Path], object]] = {
    "another number of images": lambda path: change(path, '"images_seen": 16', '"images_seen": 12'),
    "another number": lambda path: change(path, '"loss": 0.1', '"loss": 0.2'),
    "no milestone": lambda path: change(path, '"milestone": false', '"milestone": true'),
    "cut off": lambda path: path.write_text(path.read_text()[:40]),
    "not text": lambda path: path.write_bytes(bytes(range(256))),
    "a list": lambda path: path.write_text("[]"),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_damaged_manifest_sets_its_checkpoint_aside(damage: str, tmp_path: Path) -> None:
    checkpoints = write(tmp_path, 8, 16)
    MANIFESTS[damage](manifest_of(tmp_path, 16))
    found = checkpoints.newest()
    assert found is not None and found.numbers == {"images_seen": 8, "loss": 0.1}
    assert {path.name for path in tmp_path.iterdir()} == {"images-000000000008", "damaged-images-000000000016"}


def test_a_manifest_from_before_it_had_a_hash_is_read(tmp_path: Path) -> None:
    checkpoints = write(tmp_path, 8, 16)
    for images in (8, 16):
        as_before_it_had_a_hash(manifest_of(tmp_path, images))
    found = checkpoints.newest()
    assert found is not None and found.numbers["images_seen"] == 16
    change(manifest_of(tmp_path, 16), '"images_seen": 16', '"images_seen": 12')
    found = checkpoints.newest()
    assert found is not None and found.numbers["images_seen"] == 8


def test_numbers_that_are_missing_are_told(tmp_path: Path) -> None:
    """Of a manifest without a hash nothing else tells it."""
    config = TrainingConfig(images=16, batch_size=8, device="cpu", tensorboard=False)
    Trainer(Regression(), config, tmp_path).run("whole")
    manifest = manifest_of(tmp_path / "checkpoints", 16)
    manifest.write_text(json.dumps({"files": json.loads(manifest.read_text())["files"], "numbers": {}}))
    with pytest.raises(UserError, match=r"its checkpoint does not fit this recipe.*images_seen"):
        Trainer(Regression(), config, tmp_path).run("again")


def test_a_copy_with_other_numbers_is_good(tmp_path: Path) -> None:
    write(tmp_path / "run", 8)
    copy_checkpoint(tmp_path / "run/images-000000000008", tmp_path / "copy", loss=0.3)
    found = CheckpointFolder(tmp_path / "copy").newest()
    assert found is not None and found.numbers == {"images_seen": 8, "loss": 0.3}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("where", ["manifest.json", "__0_0.distcp", ".metadata"])
def test_a_file_that_cannot_be_got_at_is_no_damage(
    where: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = write(tmp_path, 8, 16)
    original = Path.open

    def fail(path: Path, *arguments: object, **options: object) -> object:
        if path.name == where and path.parent.name == "images-000000000016":
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *arguments, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as failing:
        failing.setattr(Path, "open", fail)
        with pytest.raises(OSError, match=os.strerror(number)) as told:
            checkpoints.newest()
    assert told.value.filename == str(tmp_path / "images-000000000016" / where)
    found = checkpoints.newest()
    assert found is not None and found.numbers["images_seen"] == 16


def test_a_folder_that_cannot_be_read_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = write(tmp_path / "checkpoints", 8)

    def fail(path: Path) -> object:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        checkpoints.newest()


def test_a_read_that_fails_after_the_check_names_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    found = write(tmp_path, 8).newest()
    assert found is not None

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(FileSystemReader, "read_data", fail)
    with pytest.raises(OSError, match=r"images-000000000008") as told:
        found.read_into({"a": torch.zeros(3)})
    assert told.value.errno == errno.EIO


def test_a_run_without_a_good_checkpoint_does_not_begin_anew(tmp_path: Path) -> None:
    """Nor does its next start, when the damaged ones have their other names."""
    checkpoints = write(tmp_path / "checkpoints", 8, 16)
    for images in (8, 16):
        change(manifest_of(tmp_path / "checkpoints", images), '"loss"', '"lost"')
    for _ in range(2):
        with pytest.raises(UserError, match=r"checkpoints: all its checkpoints are damaged.*remove this folder"):
            checkpoints.newest()
    assert checkpoints.newest(upto=8) is None
    shutil.rmtree(tmp_path / "checkpoints")
    assert checkpoints.newest() is None


def test_a_milestone_is_kept_while_its_manifest_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 8, milestone=True)
    original = Path.read_text

    def fail(path: Path, *arguments: object, **options: object) -> str:
        if path == manifest_of(tmp_path, 8):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", fail)
    checkpoints = write(tmp_path, 16, 24, 32)
    assert [images_of(path) for path in checkpoints.list()] == [8, 24, 32]


def test_one_process_that_cannot_read_ends_all_and_nothing_is_set_aside(
    launch: Callable[..., None], tmp_path: Path
) -> None:
    write(tmp_path, 8)
    launch(2, "unreadable_in_one", tmp_path)
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None and found.numbers["images_seen"] == 8


def test_milestones_are_kept(tmp_path: Path) -> None:
    Trainer(Regression(), replace(CONFIG, milestone_images=400, keep_checkpoints=1), tmp_path).run("kept")
    names = [p.name for p in CheckpointFolder(tmp_path / "checkpoints").list()]
    assert names == ["images-000000000400", "images-000000000800"]


@pytest.mark.parametrize("how", ["pruned", "rolled back"])
def test_kill_while_removing_leaves_no_half_checkpoint(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = write(tmp_path, 8, 16)

    def kill(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            if how == "pruned":
                checkpoints.keep = 1
                checkpoints._prune(16)
            else:
                checkpoints.drop_after(8)
    left = [8] if how == "rolled back" else [16]
    assert [images_of(path) for path in checkpoints.list()] == left
    checkpoints.drop_partial()
    assert [path.name for path in tmp_path.iterdir()] == [f"images-{left[0]:012d}"]
