"""Files and folders are written completely or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from machine_faults import limited
from safetensors.torch import save_file

from vavae.errors import UserError
from vavae.io.files import UNFINISHED, drop_drafts, is_free, save_torch, whole_folder, written_whole


def test_processes_with_equal_ids_use_separate_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines with one file system may have processes with the same id."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "x.json"
    with written_whole(path) as one:
        one.write_text("one")
        with written_whole(path) as other:
            other.write_text("other")
        assert path.read_text() == "other" and one.read_text() == "one"
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("before")
    with pytest.raises(OSError, match="full"), written_whole(path) as draft:
        draft.write_text("half")
        raise OSError("full")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def _by_text(path: Path) -> None:
    with written_whole(path) as draft:
        draft.write_text("x" * 5000)


def _by_safetensors(path: Path) -> None:
    with written_whole(path) as draft:
        save_file({"x": torch.zeros(5000)}, draft)


@pytest.mark.parametrize("write", [_by_text, _by_safetensors, lambda path: save_torch(torch.zeros(5000), path)])
def test_full_disk_names_the_file(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x"
    with limited("FSIZE", 1000), pytest.raises(OSError, match="File too large") as failed:
        write(path)
    assert failed.value.errno == errno.EFBIG and failed.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def test_errors_of_other_files_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failed, written_whole(tmp_path / "x"):
        (tmp_path / "other").read_text()
    assert failed.value.filename == str(tmp_path / "other")


def test_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    for name in (".a.json.0123456789abcdef.tmp", ".b.json.0123456789abcdef.tmp", ".a.notes.tmp", "a.json"):
        (tmp_path / name).touch()
    drop_drafts(tmp_path, "a")
    assert {path.name for path in tmp_path.iterdir()} == {".b.json.0123456789abcdef.tmp", ".a.notes.tmp", "a.json"}
    drop_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".a.notes.tmp", "a.json"}


def test_failed_block_restores_the_folder(tmp_path: Path) -> None:
    for folder, was_there in ((tmp_path / "new", False), (tmp_path, True)):
        with pytest.raises(KeyboardInterrupt), whole_folder(folder):
            (folder / "part").mkdir()
            (folder / "part/file").touch()
            raise KeyboardInterrupt
        assert folder.exists() is was_there and (not was_there or not list(folder.iterdir()))


def test_remains_of_a_killed_block_are_removed(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a"):
        mark = (tmp_path / "a" / UNFINISHED).read_bytes()
    (tmp_path / "a" / UNFINISHED).write_bytes(mark)
    (tmp_path / "a/old").touch()
    with whole_folder(tmp_path / "a"):
        (tmp_path / "a/new").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    """An incompletely saved model may be next to them, for example in a repository."""
    (tmp_path / UNFINISHED).touch()
    assert is_free(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert not is_free(tmp_path) and not is_free(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="is not empty"), whole_folder(tmp_path):
        pass
    assert (tmp_path / "notes.txt").exists()
