"""Files of a frontier: results, locks on the jobs that are running, and the failures of one call."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vavae.io.files import naming, write_text

FORMAT = "vavae frontier 1"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Results:
    """The result files of a frontier. A job is done when its file exists and its hash is right.

    Each file is JSON with everything about one job and the sha256 of that content. It is written whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[int, dict[str, Any]]] = {}

    def path(self, name: str) -> Path:
        """Return the path of a result."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a result, or None if there is none. Rename a damaged file to `damaged-…` and print its name.

        Raises:
            OSError: The file cannot be read at the moment, so its content is unknown; the error names the file.
        """
        path = self.path(name)
        try:
            changed = path.stat().st_mtime_ns
            if name in self._known and self._known[name][0] == changed:
                return self._known[name][1]
            stored = json.loads(path.read_text(encoding="utf-8"))
            content = stored["content"]
            good = stored["format"] == FORMAT and stored["sha256"] == _digest(content) and isinstance(content, dict)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error  # errors of read() have no file name
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            renamed = path.with_name(f"damaged-{path.name}")
            with contextlib.suppress(FileNotFoundError):  # another process renamed it first
                path.replace(renamed)
                print(f"{path}: damaged; renamed to {renamed.name}, and the job runs again", flush=True)
            return None
        self._known[name] = changed, content
        return content

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Store a result."""
        content = json.loads(json.dumps(content, allow_nan=False))  # tuples become lists before the hash
        whole = {"format": FORMAT, "sha256": _digest(content), "content": content}
        write_text(self.path(name), json.dumps(whole, ensure_ascii=False, indent=1) + "\n")


class Locks:
    """Named locks that processes on one folder share.

    The kernel releases the lock of a process that ends, however it ends. On file systems without `flock` filelock uses
    the existence of the file instead (docs/cluster.md).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def holding(self, name: str, timeout: float = 0) -> Iterator[bool]:
        """Try for `timeout` seconds to hold a lock for the block; yield whether it succeeded."""
        path = self.folder / f"{name}.lock"
        lock = FileLock(path)
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=timeout)
        if not lock.is_locked:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            lock.release()

    def held(self, name: str) -> bool:
        """Return whether a process holds a lock now; this one counts too."""
        path = self.folder / f"{name}.lock"
        if not path.exists():
            return False
        with naming(path), contextlib.suppress(Timeout), FileLock(path).acquire(timeout=0):
            path.unlink(missing_ok=True)  # its process was killed
            return False
        return True

    def any_held(self, prefix: str) -> bool:
        """Return whether a process holds a lock whose name begins with `prefix`."""
        return any(self.held(path.stem) for path in self.folder.glob(f"{prefix}*.lock"))

    def sweep(self) -> None:
        """Remove the lock files of processes that were killed."""
        for path in self.folder.glob("*.lock"):
            self.held(path.stem)


class Failures:
    """Jobs that failed in this call, with the reason, in a file that its processes share; none runs them again."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._own: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        """Record a failure."""
        self._own[name] = reason
        if self._path is not None:
            with naming(self._path), self._path.open("a", encoding="utf-8") as file:
                # The leading newline ends a line that a killed process left incomplete.
                file.write("\n" + json.dumps({"name": name, "reason": reason}) + "\n")

    def read(self) -> dict[str, str]:
        """Return all failures by name, oldest first."""
        if self._path is None or not self._path.exists():
            return self._own
        found = {}
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # an empty or incomplete line
                one = json.loads(line)
                found[one["name"]] = one["reason"]
        return found
