"""Results are written whole and checked; locks end with their process."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from machine_faults import limited

from vavae.frontier.results import Failures, Locks, Results


def test_result_round_trip(tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    assert results.read("a") is None
    results.write("a", {"value": 1.5, "tuple": (1, 2)})
    assert results.read("a") == {"value": 1.5, "tuple": [1, 2]}
    results.write("a", {"value": 2})
    assert results.read("a") == {"value": 2}


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other", "nested"])
def test_damaged_result_is_renamed_and_reported(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path)
    results.write("a", {"value": 1.5})
    path = tmp_path / "a.json"
    text = path.read_text()
    path.write_text(
        {"cut": text[:-9], "changed": text.replace("1.5", "1.4"), "empty": "", "other": "[1]", "nested": "[" * 9999}[
            damage
        ]
    )
    assert Results(tmp_path).read("a") is None
    assert str(path) in capsys.readouterr().out
    assert not path.exists() and (tmp_path / "damaged-a.json").exists()


def test_unreadable_result_is_not_taken_for_damaged(tmp_path: Path) -> None:
    Results(tmp_path).write("a", {"value": 1.5})
    with limited("NOFILE"), pytest.raises(OSError, match=r"Too many open files.*a\.json"):
        Results(tmp_path).read("a")
    assert Results(tmp_path).read("a") == {"value": 1.5}


def test_result_with_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Results(tmp_path).write("a", {"value": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_lock_is_exclusive(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    with locks.holding("a") as first, locks.holding("a") as second, locks.holding("b") as other:
        assert (first, second, other) == (True, False, True)
        assert locks.held("a") and not locks.held("c")
    assert not locks.held("a") and not list(tmp_path.iterdir())


def holder(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock `a` until its input closes."""
    code = (
        "import sys; from pathlib import Path; from vavae.frontier.results import Locks\n"
        "with Locks(Path(sys.argv[1])).holding('a') as ours:\n"
        "    print(int(ours), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """At once, whatever the age of its file, which may come from a machine with another clock."""
    locks, path = Locks(tmp_path), tmp_path / "a.lock"
    other = holder(tmp_path)
    assert other.stdout is not None and other.stdout.readline() == "1\n"
    os.utime(path, (1.0, 1.0))
    assert locks.held("a")
    with locks.holding("a") as ours:
        assert not ours
    other.kill()
    other.communicate()
    tomorrow = time.time() + 86400
    os.utime(path, (tomorrow, tomorrow))
    with locks.holding("a") as ours:
        assert ours


def test_sweep_removes_files_of_killed_processes_only(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    (tmp_path / "killed.lock").touch()
    with locks.holding("alive"):
        locks.sweep()
        assert {path.name for path in tmp_path.iterdir()} == {"alive.lock"}


def test_lock_on_a_full_disk_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(FileLock, "acquire", full)
        with pytest.raises(OSError, match=r"No space left.*a\.lock"), Locks(tmp_path).holding("a"):
            pass
    with Locks(tmp_path).holding("a") as ours:
        assert ours


def test_only_one_of_several_processes_gets_a_free_lock(tmp_path: Path) -> None:
    (tmp_path / "a.lock").touch()  # left by a killed process
    racers = [holder(tmp_path) for _ in range(4)]
    won = [int(racer.stdout.readline()) for racer in racers]  # type: ignore[union-attr]
    for racer in racers:
        racer.communicate("")
    assert sum(won) == 1


def test_held_locks_by_prefix(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    (tmp_path / "starting-killed.lock").touch()
    assert not locks.any_held("starting-")
    with locks.holding("starting-a"):
        assert locks.any_held("starting-") and not locks.any_held("tokenizer-")


def test_failures_are_shared_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "failed.jsonl"
    one, other = Failures(path), Failures(path)
    assert one.read() == other.read() == {}
    one.add("tokenizer-a", "out of memory\nafter a while")
    other.add("generator-b", "π is not a number")
    expected = {"tokenizer-a": "out of memory\nafter a while", "generator-b": "π is not a number"}
    assert one.read() == other.read() == expected
    with path.open("a") as file:
        file.write('{"name": "half')  # incomplete, as another process may read it
    assert one.read() == expected
    other.add("curve-c", "killed while it wrote the line before")
    assert one.read() == expected | {"curve-c": "killed while it wrote the line before"}


def test_failures_without_a_file() -> None:
    alone = Failures(None)
    alone.add("a", "why")
    assert alone.read() == {"a": "why"}
