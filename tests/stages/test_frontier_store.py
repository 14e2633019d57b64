"""Results written whole and checked; claims that outlive no owner."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vavae.stages import frontier_store
from vavae.stages.frontier_store import Claims, Failures, Owner, Results


def test_a_result_comes_back(tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    assert results.read("a") is None
    results.write("a", {"value": 1.5, "tuple": (1, 2)})
    assert results.read("a") == {"value": 1.5, "tuple": [1, 2]}
    results.write("a", {"value": 2})
    assert results.read("a") == {"value": 2}


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_a_damaged_result_is_set_aside_and_named(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path)
    results.write("a", {"value": 1.5})
    path = tmp_path / "a.json"
    text = path.read_text()
    path.write_text({"cut": text[:-9], "changed": text.replace("1.5", "1.4"), "empty": "", "other": "[1]"}[damage])
    assert Results(tmp_path).read("a") is None
    assert str(path) in capsys.readouterr().out
    assert not path.exists() and (tmp_path / "damaged-a.json").exists()


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Results(tmp_path).write("a", {"value": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_one_holds_a_claim(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    with claims.holding("a") as mine, claims.holding("a") as second, claims.holding("b") as other:
        assert (mine, second, other) == (True, False, True)
        assert claims.owner("a") == Owner.this()
    assert claims.owner("a") is None and not list(tmp_path.glob("*.lock"))


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    claims = Claims(tmp_path)
    said = {"host": Owner.this().host, "pid": ended.pid}
    (tmp_path / "a.lock").write_text(json.dumps(said))
    assert claims.owner("a") is None
    with claims.holding("a") as mine:
        assert mine and json.loads((tmp_path / "a.lock").read_text())["pid"] == os.getpid()


def test_another_machine_counts_as_dead_after_ten_silent_minutes(tmp_path: Path) -> None:
    claims, path = Claims(tmp_path), tmp_path / "a.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with claims.holding("a") as mine:
        assert not mine
    assert claims.owner("a") == Owner("elsewhere", 1)
    long_ago = time.time() - 601
    os.utime(path, (long_ago, long_ago))
    with claims.holding("a") as mine:
        assert mine


def test_a_claim_that_was_taken_over_is_left_to_its_new_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept for an hour finds its cell in other hands when it wakes."""
    monkeypatch.setattr(frontier_store, "_BEAT", 0.01)
    claims, path = Claims(tmp_path), tmp_path / "a.lock"
    with claims.holding("a") as mine:
        assert mine
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
        time.sleep(0.1)  # a sign of life that was on its way
        a_while_ago = time.time() - 300
        os.utime(path, (a_while_ago, a_while_ago))
        time.sleep(0.2)
        assert path.stat().st_mtime == pytest.approx(a_while_ago)  # not kept young by the old owner
    assert claims.owner("a") == Owner("elsewhere", 1)


def test_processes_that_race_for_a_dead_owners_claim_get_it_once(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text(json.dumps({"host": Owner.this().host, "pid": 2**22 + 1}))
    code = (
        "import sys, time; from pathlib import Path; from vavae.stages.frontier_store import Claims\n"
        "with Claims(Path(sys.argv[1])).holding('a') as mine:\n"
        "    print(int(mine), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    won = [int(racer.stdout.readline()) for racer in racers]  # type: ignore[union-attr]
    for racer in racers:
        racer.communicate("")
    assert sum(won) == 1


def test_failures_of_one_process_are_known_to_another(tmp_path: Path) -> None:
    path = tmp_path / "failed.jsonl"
    one, other = Failures(path), Failures(path)
    assert one.read() == other.read() == {}
    one.add("tokenizer-a", "out of memory\nafter a while")
    other.add("generator-b", "π is no number")
    expected = {"tokenizer-a": "out of memory\nafter a while", "generator-b": "π is no number"}
    assert one.read() == other.read() == expected
    with path.open("a") as file:
        file.write('{"name": "half')  # as another process finds it that reads at the wrong moment
    assert one.read() == expected


def test_without_a_file_failures_are_remembered() -> None:
    alone = Failures(None)
    alone.add("a", "why")
    assert alone.read() == {"a": "why"}


def test_who_else_begins(tmp_path: Path) -> None:
    """A process's own claim and that of its parent are nobody else's: waiting for them would never end."""
    claims = Claims(tmp_path)
    assert not claims.others("starting-")
    for process, others in ((os.getpid(), False), (os.getppid(), False), (1, True)):
        (tmp_path / "starting-x.lock").write_text(json.dumps({"host": Owner.this().host, "pid": process}))
        assert claims.others("starting-") is others
    assert not claims.others("tokenizer-")
