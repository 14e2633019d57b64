"""Checkpoints that are damaged, temporarily unreadable, or half removed."""

import errno
import json
import logging
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


def remove_own_hash(manifest: Path) -> None:
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
def test_checkpoint_with_damaged_manifest_is_renamed(damage: str, tmp_path: Path) -> None:
    checkpoints = write(tmp_path, 8, 16)
    MANIFESTS[damage](manifest_of(tmp_path, 16))
    found = checkpoints.newest()
    assert found is not None and found.numbers == {"images_seen": 8, "loss": 0.1}
    assert {path.name for path in tmp_path.iterdir()} == {"images-000000000008", "damaged-images-000000000016"}


def test_manifest_without_hash_is_read(tmp_path: Path) -> None:
    checkpoints = write(tmp_path, 8, 16)
    for images in (8, 16):
        remove_own_hash(manifest_of(tmp_path, images))
    found = checkpoints.newest()
    assert found is not None and found.numbers["images_seen"] == 16
    change(manifest_of(tmp_path, 16), '"images_seen": 16', '"images_seen": 12')
    found = checkpoints.newest()
    assert found is not None and found.numbers["images_seen"] == 8


def test_missing_numbers_are_named(tmp_path: Path) -> None:
    """Only a manifest without its own hash can lack them."""
    config = TrainingConfig(images=16, batch_size=8, device="cpu", tensorboard=False)
    Trainer(Regression(), config, tmp_path).run("whole")
    manifest = manifest_of(tmp_path / "checkpoints", 16)
    manifest.write_text(json.dumps({"files": json.loads(manifest.read_text())["files"], "numbers": {}}))
    with pytest.raises(UserError, match=r"its checkpoint does not fit this recipe.*images_seen"):
        Trainer(Regression(), config, tmp_path).run("again")


def test_copy_with_changed_numbers_is_valid(tmp_path: Path) -> None:
    write(tmp_path / "run", 8)
    copy_checkpoint(tmp_path / "run/images-000000000008", tmp_path / "copy", loss=0.3)
    found = CheckpointFolder(tmp_path / "copy").newest()
    assert found is not None and found.numbers == {"images_seen": 8, "loss": 0.3}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("where", ["manifest.json", "__0_0.distcp", ".metadata"])
def test_unreadable_file_is_not_damage(
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
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            checkpoints.newest()
    assert raised.value.filename == str(tmp_path / "images-000000000016" / where)
    found = checkpoints.newest()
    assert found is not None and found.numbers["images_seen"] == 16


def test_unreadable_folder_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = write(tmp_path / "checkpoints", 8)

    def fail(path: Path) -> object:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        checkpoints.newest()


def test_read_error_names_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    found = write(tmp_path, 8).newest()
    assert found is not None

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(FileSystemReader, "read_data", fail)
    with pytest.raises(OSError, match=r"images-000000000008") as raised:
        found.read_into({"a": torch.zeros(3)})
    assert raised.value.errno == errno.EIO


def test_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    """Also on the next start, when the damaged ones have been renamed."""
    checkpoints = write(tmp_path / "checkpoints", 8, 16)
    for images in (8, 16):
        change(manifest_of(tmp_path / "checkpoints", images), '"loss"', '"lost"')
    for _ in range(2):
        with pytest.raises(UserError, match=r"checkpoints: all its checkpoints are damaged.*remove this folder"):
            checkpoints.newest()
    assert checkpoints.newest(upto=8) is None
    shutil.rmtree(tmp_path / "checkpoints")
    assert checkpoints.newest() is None


def test_milestone_with_unreadable_manifest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 8, milestone=True)
    original = Path.read_text

    def fail(path: Path, *arguments: object, **options: object) -> str:
        if path == manifest_of(tmp_path, 8):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", fail)
    checkpoints = write(tmp_path, 16, 24, 32)
    assert [images_of(path) for path in checkpoints.list()] == [8, 24, 32]


def test_read_error_in_one_process_ends_all(launch: Callable[..., None], tmp_path: Path) -> None:
    write(tmp_path, 8)
    launch(2, "unreadable_in_one", tmp_path)
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None and found.numbers["images_seen"] == 8


def test_milestones_are_kept(tmp_path: Path) -> None:
    config = replace(CONFIG, images=320, checkpoint_images=80, milestone_images=160, keep_checkpoints=1)
    Trainer(Regression(), config, tmp_path).run("kept")
    names = [p.name for p in CheckpointFolder(tmp_path / "checkpoints").list()]
    assert names == ["images-000000000160", "images-000000000320"]


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
    checkpoints.tidy(16)
    assert [path.name for path in tmp_path.iterdir()] == [f"images-{left[0]:012d}"]


def test_torch_logs_no_record_of_every_tensor(tmp_path: Path) -> None:
    """No handler would show them, and they take a sixth of the time of a small checkpoint."""
    from torch.distributed.checkpoint.logger import _dcp_logger

    write(tmp_path, 8)
    assert not _dcp_logger.isEnabledFor(logging.DEBUG)


def test_old_checkpoint_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """It was killed between the name of the last checkpoint and the removal of the first."""
    checkpoints = write(tmp_path, 8, 16)
    shutil.copytree(tmp_path / "images-000000000016", tmp_path / "images-000000000024")
    checkpoints.tidy(checked=8)
    assert [images_of(path) for path in checkpoints.list()] == [8, 16, 24], "up to 8 the run is known to be good"
    checkpoints.tidy(checked=24)
    assert [images_of(path) for path in checkpoints.list()] == [16, 24]
