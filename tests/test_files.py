"""Files that are written whole."""

import os
from pathlib import Path

import pytest

from vavae.files import written_whole


def test_processes_of_equal_numbers_do_not_share_a_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on two machines with one file system."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "x.json"
    with written_whole(path) as one:
        one.write_text("one")
        with written_whole(path) as other:
            other.write_text("other")
        assert path.read_text() == "other" and one.read_text() == "one"
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_a_draft_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("before")
    with pytest.raises(OSError, match="full"), written_whole(path) as draft:
        draft.write_text("half")
        raise OSError("full")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
