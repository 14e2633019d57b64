"""Folders that are whole, marked as unfinished, or not there."""

from pathlib import Path

import pytest

from vavae.errors import UserError
from vavae.unfinished import UNFINISHED, is_free, whole_folder


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    for folder, was_there in ((tmp_path / "new", False), (tmp_path, True)):
        with pytest.raises(KeyboardInterrupt), whole_folder(folder):
            (folder / "part").mkdir()
            (folder / "part/file").touch()
            raise KeyboardInterrupt
        assert folder.exists() is was_there and (not was_there or not list(folder.iterdir()))


def test_what_a_killed_block_left_goes_first(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a"):
        mark = (tmp_path / "a" / UNFINISHED).read_bytes()
    (tmp_path / "a" / UNFINISHED).write_bytes(mark)
    (tmp_path / "a/old").touch()
    with whole_folder(tmp_path / "a"):
        (tmp_path / "a/new").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    """A model that was not saved to its end may lie beside them, in a repository say."""
    (tmp_path / UNFINISHED).touch()
    assert is_free(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert not is_free(tmp_path) and not is_free(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="is not empty"), whole_folder(tmp_path):
        pass
    assert (tmp_path / "notes.txt").exists()
