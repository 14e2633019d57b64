"""Every command meets a full disk and SIGKILL where it writes; benchmarks/write_points.py tries every point."""

import random
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_commands import COMMANDS, Rehearsal, rehearse, use_tiny_networks, write_inputs

pytestmark = pytest.mark.slow

_WHOLE = ("encode", "sample")  # fast enough to fill the disk at each kind of point; of the others one is drawn


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", params=COMMANDS)
def rehearsal(
    request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rehearsal]:
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_networks(patch.setattr)
        yield rehearse(request.param, tmp_path_factory.mktemp("output") / "run", inputs)


def drawn(rehearsal: Rehearsal) -> list[int]:
    """Return two numbers of write points, the same ones at each run."""
    return random.Random(rehearsal.name).choices(range(1, len(rehearsal.points) + 1), k=2)


def kinds(points: list[str]) -> list[int]:
    """Return the number of the first point of each kind: numbers in names do not count, the point before does.

    A file that is opened twice is one point: only between the second one and the next is something written.
    """
    first: dict[tuple[str, ...], int] = {}
    for number, (before, point) in enumerate(pairwise(["", *points]), 1):
        if point != before:
            kind = tuple(re.sub(r"[0-9a-f]{16}|\d+", "0", each) for each in (before, point))
            first.setdefault(kind, number)
    return list(first.values())


def test_full_disk(rehearsal: Rehearsal) -> None:
    for number in kinds(rehearsal.points) if rehearsal.name in _WHOLE else drawn(rehearsal)[:1]:
        assert rehearsal.full_at(number) is None, rehearsal.points[number - 1]


@pytest.mark.parametrize("rehearsal", ["frontier"], indirect=True)
def test_full_disk_after_a_training(rehearsal: Rehearsal) -> None:
    """The generator is there, so the next call does not train; it must still remove the averages."""
    removed = [re.fullmatch(r"os.rename /work/generator-\w+/run/averages", point) for point in rehearsal.points]
    assert rehearsal.full_at(next(number for number, found in enumerate(removed, 1) if found)) is None


def test_two_kills_in_a_row(rehearsal: Rehearsal) -> None:
    numbers = drawn(rehearsal)
    assert rehearsal.killed_at(*numbers) is None, [rehearsal.points[number - 1] for number in numbers]


@pytest.mark.parametrize("rehearsal", ["train-dit"], indirect=True)
def test_kill_between_rename_and_fsync(rehearsal: Rehearsal) -> None:
    """Of a finished checkpoint: its name is there, and the folder is not flushed yet."""
    renamed = next(n for n, point in enumerate(rehearsal.points, 1) if point.startswith("os.rename /checkpoints/.part"))
    after = rehearsal.points.index("fsync", renamed) + 1
    assert rehearsal.killed_at(after) is None
