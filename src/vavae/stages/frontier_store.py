"""Results and claims of a frontier's cells on the disk, so that several processes share one folder.

A result is one JSON file with everything about a cell, written whole, with the sha256 of its content: that it is there
and good is what "done" means. A claim is a file that its owner creates, keeps young, and removes; one whose owner is
dead, or that nobody has touched for ten minutes, is taken over.
"""

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from vavae.files import written_whole

FORMAT = "vavae frontier 1"
_BEAT = 30.0  # seconds between two signs of life
_SILENCE = 600.0  # seconds without one after which an owner counts as dead


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Owner:
    """Who works on a cell.

    Attributes:
        host: Its machine.
        pid: Its process.
    """

    host: str
    pid: int

    @classmethod
    def this(cls) -> "Owner":
        """This process."""
        return cls(socket.gethostname(), os.getpid())

    @property
    def dead(self) -> bool:
        """Whether it is known to be: a process of another machine is not."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


class Results:
    """The result files of a folder.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[int, dict[str, Any]]] = {}

    def path(self, name: str) -> Path:
        """The file of a result."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """A result; None where there is none. A damaged one is set aside under the name `damaged-…` and named."""
        path = self.path(name)
        try:
            changed = path.stat().st_mtime_ns
            if name in self._known and self._known[name][0] == changed:
                return self._known[name][1]
            stored = json.loads(path.read_text(encoding="utf-8"))
            content = stored["content"]
            good = stored["format"] == FORMAT and stored["sha256"] == _digest(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            good = False
        if not good:
            aside = path.with_name(f"damaged-{path.name}")
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                path.replace(aside)
                print(f"{path}: damaged, set aside as {aside.name}; it is made again", flush=True)
            return None
        self._known[name] = changed, content
        return content

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Store a result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read
        whole = {"format": FORMAT, "sha256": _digest(content), "content": content}
        with written_whole(self.path(name)) as temporary:
            temporary.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


class Failures:
    """Units that failed in this call, with the reason. None of its processes tries again what another could not do.

    Args:
        path: A file that the processes of the call share; None for one process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._own: dict[str, str] = {}

    def add(self, name: str, said: str) -> None:
        """Remember a failure."""
        self._own[name] = said
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "said": said}) + "\n")

    def read(self) -> dict[str, str]:
        """All failures, by name, in the order in which they came."""
        if self._path is None or not self._path.exists():
            return self._own
        # A line without its end is being written at this moment.
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        return {(one := json.loads(line))["name"]: one["said"] for line in lines if line.endswith("\n")}


class Claims:
    """The claims of a folder.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def owner(self, name: str) -> Owner | None:
        """Who holds a claim now; None where nobody who lives does."""
        path, age = self._path(name), 0.0
        try:
            age = time.time() - path.stat().st_mtime
            said = json.loads(path.read_text())
            owner = Owner(str(said["host"]), int(said["pid"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            # Being written at this moment, or left half-written by a crash of the machine.
            return Owner("unknown", 0) if path.exists() and age < _SILENCE else None
        return None if owner.dead or age > _SILENCE else owner

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[bool]:
        """Hold a claim for the block, which is told whether it got it."""
        if not self._take(name):
            yield False
            return
        over = threading.Event()
        beating = threading.Thread(target=self._beat, args=(name, over), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            over.set()
            beating.join()
            with self._one_at_a_time():
                if self._is_ours(name):
                    self._path(name).unlink()

    def others(self, prefix: str) -> bool:
        """Whether processes other than this one and the one that started it hold claims whose names begin so."""
        names = [path.stem for path in self.folder.glob(f"{prefix}*.lock")]
        this = Owner.this()
        near = (None, this, Owner(this.host, os.getppid()))
        return any(self.owner(name) not in near for name in names)

    def _one_at_a_time(self) -> FileLock:
        """Of two who find a dead owner's claim only one takes it over, and nobody removes what it has just taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".taking")

    def _take(self, name: str) -> bool:
        with self._one_at_a_time():
            if self.owner(name) is not None:
                return False
            path = self._path(name)
            path.unlink(missing_ok=True)
            owner = Owner.this()
            with path.open("x") as file:
                json.dump({"host": owner.host, "pid": owner.pid}, file)
            return True

    def _is_ours(self, name: str) -> bool:
        """Whether nobody took the claim over, from a machine that slept, say."""
        try:
            said = json.loads(self._path(name).read_text())
        except (OSError, ValueError):
            return False
        return said == {"host": Owner.this().host, "pid": Owner.this().pid}

    def _beat(self, name: str, over: threading.Event) -> None:
        while not over.wait(_BEAT):
            with self._one_at_a_time():
                if self._is_ours(name):
                    os.utime(self._path(name))
