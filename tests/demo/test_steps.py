"""Times of the steps of a demo, over several calls."""

from pathlib import Path

import pytest

from vavae.demo.run import _Steps


def test_times_of_several_calls_are_added(tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text('{"train": {"seconds": 100.0, "detail": "all"}}')
    steps = _Steps(tmp_path / "steps.json")
    with steps("train", "all"), steps("measure"):
        pass
    again = _Steps(tmp_path / "steps.json").timings
    assert [(step.name, step.detail) for step in again] == [("train", "all"), ("measure", "")]
    assert 100 <= again[0].seconds < 200


@pytest.mark.parametrize("damage", [b"", b'{"train": {"sec', b"[]", b'{"train": 3}', b'{"train": {}}', b"\xff"])
def test_damaged_times_are_dropped(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_bytes(damage)
    steps = _Steps(tmp_path / "steps.json")
    with steps("train"):
        pass
    assert [step.name for step in _Steps(tmp_path / "steps.json").timings] == ["train"]
