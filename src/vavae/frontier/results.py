"""Results and claims of a frontier's cells on the disk, so that several processes share one folder.

A result is one JSON file with everything about a cell, written whole, with the sha256 of its content: that it is there
and good is what "done" means. A claim is a file that its owner creates, locks, touches every half minute, and removes.
On one machine the lock, which the kernel takes from the dead, tells whether the owner lives: numbers of processes,
which containers share, and clocks, which jump, do not matter. Where a lock may not reach, a claim counts as long as it
is seen to be touched: one that was not for ten minutes is taken over.
"""

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from vavae.io.files import naming, written_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "vavae frontier 1"
_BEAT = 30.0  # seconds between two signs of life
_SILENCE = 600.0  # seconds without one after which an owner whose lock tells nothing counts as dead
_TOKEN = uuid.uuid4().hex  # of this process


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Owner:
    """Who works on a cell.

    Attributes:
        host: Its machine.
        pid: Its process.
        token: What no other process has; empty where a former version wrote the claim.
    """

    host: str
    pid: int
    token: str = ""

    @classmethod
    def this(cls) -> "Owner":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _TOKEN)

    @property
    def name(self) -> str:
        """For files and folders."""
        return f"{self.host}-{self.pid}-{self.token[:8]}"

    @property
    def vanished(self) -> bool:
        """Whether this machine has no such process. One in another container, or on another machine, is not seen."""
        if self.host != socket.gethostname() or os.name == "nt":  # there the question would stop the process
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
        """A result; None where there is none. A damaged one is set aside under the name `damaged-…` and named.

        Raises:
            OSError: It cannot be read now, which says nothing about what is in it; the error names the file.
        """
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
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error  # reading itself names no file
        except (ValueError, KeyError, TypeError):
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
            with naming(self._path), self._path.open("a", encoding="utf-8") as file:
                # On a line of its own, whatever a process left that was killed while it wrote.
                file.write("\n" + json.dumps({"name": name, "said": said}) + "\n")

    def read(self) -> dict[str, str]:
        """All failures, by name, in the order in which they came."""
        if self._path is None or not self._path.exists():
            return self._own
        found = {}
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line, or none
                one = json.loads(line)
                found[one["name"]] = one["said"]
        return found


class Claims:
    """The claims of a folder.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[object, float]] = {}

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def owner(self, name: str) -> Owner | None:
        """Who holds a claim now; None where nobody who lives does."""
        owner, touched, lives = Owner("unknown", 0), 0, None
        try:
            with self._path(name).open(encoding="utf-8") as file:
                touched = os.fstat(file.fileno()).st_mtime_ns
                said = json.load(file)
                owner = Owner(str(said["host"]), int(said["pid"]), str(said.get("token", "")))
                lives = _lives(owner, file, bool(said.get("locked", False)))
        except FileNotFoundError:
            return None
        except OSError:
            pass  # it may pass: until then somebody may be there
        except (ValueError, KeyError, TypeError):
            return None  # claims appear whole: a crash of the machine left this one
        if lives is None:
            lives = not self._silent(name, (owner, touched))
        return owner if lives else None

    def _silent(self, name: str, sign: object) -> bool:
        """Whether a claim has shown no other sign of life for so long, by this process's clock, which never jumps."""
        now = time.monotonic()
        former, since = self._seen.get(name, (None, now))
        if former != sign:
            self._seen[name] = sign, now
            return False
        return now - since > _SILENCE

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[bool]:
        """Hold a claim for the block, which is told whether it got it."""
        file = self._take(name)
        if file is None:
            yield False
            return
        over = threading.Event()
        beating = threading.Thread(target=self._beat, args=(name, over), daemon=True)
        with contextlib.closing(file):
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
        this = Owner.this()
        owners = [self.owner(path.stem) for path in self.folder.glob(f"{prefix}*.lock")]
        return any(
            owner is not None and owner != this and (owner.host, owner.pid) != (this.host, os.getppid())
            for owner in owners
        )

    def sweep(self) -> None:
        """Remove the claims of the dead: one that ends while it removes its own leaves it to nobody who asks again."""
        with self._one_at_a_time():
            for path in self.folder.glob("*.lock"):
                if self.owner(path.stem) is None:
                    path.unlink(missing_ok=True)

    def _one_at_a_time(self) -> FileLock:
        """Of two who find a dead owner's claim only one takes it over, and nobody removes what it has just taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".taking")

    def _take(self, name: str) -> IO[str] | None:
        """The claim's file, which holds its lock; None where somebody else has the claim."""
        with naming(self._path(name)), self._one_at_a_time():
            if self.owner(name) is not None:
                return None
            # Under its name it appears whole and locked, or not at all.
            aside = self.folder / f".{name}.{_TOKEN}.tmp"
            file = aside.open("w", encoding="utf-8")
            try:
                locked = bool(_lock(file))
                json.dump(asdict(Owner.this()) | {"locked": locked}, file)
                file.flush()
                os.fsync(file.fileno())
                if not locked:
                    file.close()  # Windows renames no open file
                aside.replace(self._path(name))
            except BaseException:
                with contextlib.suppress(OSError):  # what could not be written is written once more
                    file.close()
                aside.unlink(missing_ok=True)
                raise
            return file

    def _is_ours(self, name: str) -> bool:
        """Whether nobody took the claim over, from a machine that slept, say."""
        try:
            return bool(json.loads(self._path(name).read_text(encoding="utf-8"))["token"] == _TOKEN)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _beat(self, name: str, over: threading.Event) -> None:
        while not over.wait(_BEAT):
            # A network that is away for a while must not end the signs of life.
            with contextlib.suppress(OSError), self._one_at_a_time():
                if self._is_ours(name):
                    os.utime(self._path(name))


def _lock(file: IO[str], shared: bool = False) -> bool | None:
    """Lock a claim for as long as its file is open; false where somebody else has the lock, None where there is none.

    Windows and some file systems have no such lock.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lives(owner: Owner, file: IO[str], locked: bool) -> bool | None:
    """Whether the owner of a claim lives; None where this cannot be told.

    Args:
        owner: The owner.
        file: The claim.
        locked: Whether its owner had the lock when it took the claim.
    """
    if owner.token == _TOKEN:
        return True
    if not locked:
        return False if owner.vanished else None
    free = _lock(file, shared=True)
    if free and owner.host != socket.gethostname():
        return None  # another machine's lock may not reach this one
    return None if free is None else not free
