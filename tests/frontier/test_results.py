"""Results written whole and checked; claims that outlive no owner."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from machine_faults import limited

from vavae.frontier import results as frontier_store
from vavae.frontier.results import Claims, Failures, Owner, Results


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


def test_a_result_that_cannot_be_read_now_is_left_alone(tmp_path: Path) -> None:
    Results(tmp_path).write("a", {"value": 1.5})
    with limited("NOFILE"), pytest.raises(OSError, match=r"Too many open files.*a\.json"):
        Results(tmp_path).read("a")
    assert Results(tmp_path).read("a") == {"value": 1.5}


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


def test_claims_of_the_dead_are_swept_away(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    (tmp_path / "dead.lock").write_text(json.dumps({"host": Owner.this().host, "pid": 2**22 + 1}))
    (tmp_path / "elsewhere.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with claims.holding("alive"):
        claims.sweep()
        assert {path.name for path in tmp_path.glob("*.lock")} == {"alive.lock", "elsewhere.lock"}


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process, which holds claim `a`."""
    code = (
        "import sys; from pathlib import Path; from vavae.frontier.results import Claims\n"
        "with Claims(Path(sys.argv[1])).holding('a') as mine:\n"
        "    print(int(mine), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_who_lives_keeps_a_claim_whatever_numbers_and_clocks_say(tmp_path: Path) -> None:
    """A process of another container of this machine, or one that slept: its number is nobody's here, its file is old.

    Once it is dead its claim is free at once, though its number is that of another process and its file of tomorrow.
    """
    other = holder(tmp_path)
    assert other.stdout is not None and other.stdout.readline() == "1\n"
    claims, path = Claims(tmp_path), tmp_path / "a.lock"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"pid": 2**22 + 1}))
    os.utime(path, (1.0, 1.0))
    owner = claims.owner("a")
    assert owner is not None and owner.token == said["token"]
    with claims.holding("a") as mine:
        assert not mine
    path.write_text(json.dumps(said | {"pid": os.getpid()}))
    other.kill()
    other.communicate()
    tomorrow = time.time() + 86400
    os.utime(path, (tomorrow, tomorrow))
    with claims.holding("a") as mine:
        assert mine


@pytest.mark.parametrize("said", [{}, {"token": "b", "locked": True}], ids=["former version", "locked there"])
def test_another_machine_counts_as_dead_after_ten_silent_minutes(
    said: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As this process sees them pass: what the other machine's clock says, tomorrow, does not matter."""
    now = 0.0
    monkeypatch.setattr(frontier_store, "time", SimpleNamespace(monotonic=lambda: now))
    claims, path = Claims(tmp_path), tmp_path / "a.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1} | said))
    os.utime(path, (2**31, 2**31))
    assert claims.owner("a") == Owner("elsewhere", 1, str(said.get("token", "")))
    now = 500.0
    os.utime(path, (2**31 - 1, 2**31 - 1))  # a sign of life, though the clock went back
    with claims.holding("a") as mine:
        assert not mine
    now = 1000.0
    with claims.holding("a") as mine:
        assert not mine
    now = 1101.0
    with claims.holding("a") as mine:
        assert mine


def test_a_claim_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    with limited("FSIZE"), pytest.raises(OSError, match="File too large"), claims.holding("a"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".taking"}
    with claims.holding("a") as mine:
        assert mine


@pytest.mark.parametrize("left", ["", "[]", '{"host": "x"'])
def test_half_a_claim_is_nobodys(left: str, tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text(left)
    with Claims(tmp_path).holding("a") as mine:
        assert mine


def test_without_locks_numbers_of_processes_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier_store, "fcntl", None)
    claims = Claims(tmp_path)
    with claims.holding("a") as mine, claims.holding("a") as second:
        assert (mine, second) == (True, False)
        said = json.loads((tmp_path / "a.lock").read_text())
    assert not said["locked"] and not list(tmp_path.glob("*.lock"))
    for process, free in ((os.getppid(), False), (2**22 + 1, True)):
        (tmp_path / "a.lock").write_text(json.dumps(said | {"token": "another", "pid": process}))
        with claims.holding("a") as mine:
            assert mine is free


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
    racers = [holder(tmp_path) for _ in range(4)]
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
    other.add("curve-c", "killed while it wrote the line before")
    assert one.read() == expected | {"curve-c": "killed while it wrote the line before"}


def test_without_a_file_failures_are_remembered() -> None:
    alone = Failures(None)
    alone.add("a", "why")
    assert alone.read() == {"a": "why"}


def test_who_else_begins(tmp_path: Path) -> None:
    """A process's own claim and that of its parent are nobody else's: waiting for them would never end."""
    claims = Claims(tmp_path)
    assert not claims.others("starting-")
    with claims.holding("starting-own"):
        assert not claims.others("starting-")
    for process, others in ((os.getppid(), False), (1, True)):
        (tmp_path / "starting-x.lock").write_text(json.dumps({"host": Owner.this().host, "pid": process}))
        assert claims.others("starting-") is others
    assert not claims.others("tokenizer-")
