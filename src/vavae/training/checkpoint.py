"""Checkpoints: written whole or not at all, verified on load; the newest and the milestones are kept.

A checkpoint is a folder `images-000000640000` written by `torch.distributed.checkpoint`. Each process writes its part
of the tensors from a copy, in the background, while training continues. The folder has a temporary name until the
first process has hashed the files, written `manifest.json` (numbers, the sha256 of every file and its own) and flushed
everything to disk. So a folder with a checkpoint's name is always complete.

A damaged checkpoint is reported and renamed to `damaged-…`, and the one before is used. If none is left, the run ends
instead of starting over. A file that cannot be read (no permission, a failing disk) is not damage: the call fails, and
the next may succeed. Tensors are stored by name and global shape, so another number of processes can read them.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vavae.errors import RunError, UserError, one_line
from vavae.io.files import read_json_object, sha256_file
from vavae.io.hashing import digest
from vavae.training.parallel import World

log = logging.getLogger(__name__)

# A single process is intended; torch would warn at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_PREFIX = "images-"
_DAMAGED = "damaged-"
_PARTIAL = ".partial-"
_MANIFEST = "manifest.json"
_OWN_HASH = "sha256"  # key of the manifest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    numbers: dict[str, Any]  # the numbers it was saved with
    shapes: dict[str, tuple[int, ...]]  # global shape of every tensor, by name
    dtypes: dict[str, torch.dtype]  # type of every tensor, by name
    world: World  # the processes that read it together

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the values of `tensors`, plain or sharded, by name, in place. All processes must call it.

        Raises:
            OSError: A file could not be read.
            RunError: Reading failed for another reason.
        """
        from torch.distributed.checkpoint.api import CheckpointException

        dcp = _dcp()
        reader = dcp.FileSystemReader(self.path)
        alone = self.world.size == 1
        try:
            dcp.load(dict(tensors), storage_reader=reader, process_group=self.world.host, no_dist=alone)
        except (CheckpointException, RuntimeError) as error:
            raise _as_fault(error, self.path, "read") from error

    def read(self, prefix: str = "") -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, unsharded and on the CPU. All processes must call it."""
        names = [name for name in self.shapes if name.startswith(prefix)]
        tensors = {name: torch.empty(self.shapes[name], dtype=self.dtypes[name]) for name in names}
        self.read_into(tensors)
        return tensors


class CheckpointFolder:
    """The checkpoints of one run: the newest `keep` of them, and the milestones."""

    def __init__(self, folder: Path, keep: int = 2, world: World | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.world = world or World()
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def list(self) -> list[Path]:
        """Return the complete checkpoints, oldest first.

        Raises:
            OSError: The folder exists but cannot be read.
        """
        return [path for path in _named(self.folder, _PREFIX) if path.name.removeprefix(_PREFIX).isdecimal()]

    def save(
        self,
        images: int,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        milestone: bool = False,
        checked: int | None = None,
    ) -> None:
        """Copy the state after `images` images, and start to write it in the background.

        Args:
            images: Names the checkpoint.
            tensors: The state by name; the same names in all processes, values plain and equal, or sharded.
            numbers: Values that JSON can represent.
            milestone: Keep this checkpoint forever.
            checked: Images up to which the run is known to be good; the newest checkpoint up to there is kept as well.
                None is `images`.

        Raises:
            OSError: An earlier save failed, for example on a full disk. Older checkpoints are untouched.
            RunError: It failed for another reason.
        """
        dcp = _dcp()
        self.wait()
        partial = self.folder / f"{_PARTIAL}{images:012d}"
        if self.world.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.world.wait()
        written = dcp.async_save(
            dict(tensors),
            storage_writer=dcp.FileSystemWriter(partial),
            process_group=self.world.saving,
            no_dist=self.world.size == 1,
        )
        manifest = {"numbers": dict(numbers), "milestone": milestone}
        checked = images if checked is None else checked
        self._pending = self._finisher.submit(self._finish, written, partial, images, manifest, checked)

    def wait(self) -> None:
        """Wait until the current checkpoint is complete in all processes.

        Raises:
            OSError: It could not be written, for example on a full disk.
            RunError: It could not be written for another reason.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            self.world.wait()

    def settle(self) -> None:
        """Wait until this process writes no checkpoint anymore, whether or not it could be written."""
        if self._pending is not None:
            self._pending.exception()

    def _finish(self, written: Any, partial: Path, images: int, manifest: dict[str, Any], checked: int) -> None:
        try:
            written.result()
            if self.world.first:
                self._complete(partial, self.folder / f"{_PREFIX}{images:012d}", manifest)
                self._prune(checked)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise _as_fault(error, self.folder, "written") from error

    def _complete(self, partial: Path, target: Path, manifest: dict[str, Any]) -> None:
        """Write the manifest, flush all files, and rename the folder."""
        files = {path.name: sha256_file(path) for path in sorted(partial.iterdir())}
        _write_manifest(partial, {"files": files, **manifest})
        for path in (*partial.iterdir(), partial):
            _sync(path)
        if target.exists():
            _remove(target)
        partial.replace(target)
        _sync(self.folder)

    def _prune(self, checked: int) -> None:
        complete = self.list()
        good = [path for path in complete if images_of(path) <= checked]
        for old in complete[: -self.keep]:
            if old not in good[-1:] and not _may_be_milestone(old):
                _remove(old)

    def newest(self, upto: int | None = None) -> Checkpoint | None:
        """Return the newest good checkpoint, of at most `upto` images if given; None if there is none.

        All processes must call it; each hashes its share of the files.

        Raises:
            OSError: A file could not be read, which does not mean that it is damaged.
            UserError: All checkpoints are damaged, and `upto` is None.
        """
        self.wait()
        for path in reversed(self.world.once(self.list)):
            if upto is not None and images_of(path) > upto:
                continue
            if (found := self._opened(path)) is not None:
                return found
        if upto is None:
            self.world.once(self._check_none_is_damaged)
        return None

    def _opened(self, path: Path) -> Checkpoint | None:
        """Return a good checkpoint; rename a damaged one and return None."""
        world = self.world
        found = world.gather(world.each(lambda: self._problem(path)))
        problems = [problem for problem in found if problem is not None]
        if problems:
            world.once(lambda: _rename_damaged(path, problems[0]))
            return None
        return world.each(lambda: Checkpoint(path, _read_manifest(path)["numbers"], *_stored_tensors(path), world))

    def _check_none_is_damaged(self) -> None:
        if _named(self.folder, _DAMAGED):
            raise UserError(
                f"{self.folder}: all its checkpoints are damaged ({_DAMAGED}…); remove this folder to start over"
            )

    def load_newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors, unsharded and on the CPU, and numbers of the newest good checkpoint; None without one."""
        found = self.newest()
        return None if found is None else (found.read(), found.numbers)

    def tidy(self, checked: int) -> None:
        """Remove half-written and old checkpoints that a killed process left; `checked` is that of `save`.

        All processes must call it, before the first save.
        """
        if self.world.first and self.folder.is_dir():
            for partial in self.folder.glob(f"{_PARTIAL}*"):
                shutil.rmtree(partial, ignore_errors=True)
            self._prune(checked)
        self.world.wait()

    def _problem(self, path: Path) -> str | None:
        """Return what is wrong with this process's share of the files, or None; OSError is not damage."""
        try:
            files = sorted(_read_manifest(path)["files"].items())
            for name, expected in files[self.world.rank :: self.world.size]:
                if sha256_file(path / name) != expected:
                    return f"the sha256 of {name} is not the one in the manifest"
        except (FileNotFoundError, NotADirectoryError, UserError, KeyError, AttributeError) as error:
            return one_line(error)
        return None

    def drop_after(self, images: int) -> None:
        """Remove checkpoints of more than `images` images, newest first. All processes must call it."""
        if self.world.first:
            for path in reversed(self.list()):
                if images_of(path) > images:
                    _remove(path)
        self.world.wait()


def _dcp() -> Any:
    """Import `torch.distributed.checkpoint`, which takes seconds."""
    import torch.distributed.checkpoint as dcp

    # It describes every tensor twice, for no handler.
    logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.INFO)
    return dcp


def _as_fault(error: BaseException, path: Path, done: str) -> Exception:
    """Return the file system's error that made a write or read fail, else a RunError with the innermost message."""
    # torch wraps the failures of all processes in one exception that is not an `Exception`, and its writer replaces
    # the error of a full disk by its own.
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            return OSError(cause.errno, os.strerror(cause.errno), str(cause.filename or path))
    innermost = list(_causes(error))[-1]
    return RunError(f"{path}: the checkpoint could not be {done} ({one_line(innermost)[:300]})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its chain of causes, including each failure that torch has collected."""
    following: BaseException | None = error
    while following is not None:
        yield following
        for failure, _ in getattr(following, "failures", {}).values():
            yield from _causes(failure)
        following = following.__cause__ or following.__context__


def _named(folder: Path, prefix: str) -> list[Path]:
    """Return the entries of a folder whose names begin with `prefix`, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.startswith(prefix))
    except (FileNotFoundError, NotADirectoryError):
        return []


def images_of(path: Path) -> int:
    """Return the images seen by the checkpoint in folder `path`."""
    return int(path.name.removeprefix(_PREFIX))


def _remove(path: Path) -> None:
    """Remove a checkpoint; rename it first, so that a kill does not leave half a checkpoint."""
    partial = path.with_name(f"{_PARTIAL}removed-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    path.replace(partial)
    shutil.rmtree(partial)


def copy_checkpoint(source: Path, folder: Path, **numbers: Any) -> Path:
    """Copy a checkpoint into another folder of checkpoints, and change some of its numbers."""
    target = folder / source.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    manifest = _read_manifest(target)
    manifest["numbers"] |= numbers
    _write_manifest(target, manifest)
    return target


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest with the sha256 of its content."""
    signed = {**manifest, _OWN_HASH: digest(json.dumps(manifest))}
    (folder / _MANIFEST).write_text(json.dumps(signed, indent=1))


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint, without its own hash, which older ones lack.

    Raises:
        OSError: It could not be read.
        UserError: It is damaged.
    """
    manifest = read_json_object(folder / _MANIFEST)
    if not isinstance(manifest.get("numbers"), dict):
        raise UserError(f"{_MANIFEST} has no numbers")
    if manifest.pop(_OWN_HASH, None) not in (None, digest(json.dumps(manifest))):
        raise UserError(f"{_MANIFEST} does not match its own sha256")
    if manifest["numbers"].get("images_seen", images_of(folder)) != images_of(folder):
        raise UserError(f"images_seen in {_MANIFEST} does not match the folder name")
    return manifest


def _stored_tensors(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Return the global shapes and the types of the tensors of a checkpoint, by name."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    stored = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    shapes = {name: tuple(entry.size) for name, entry in stored.items()}
    return shapes, {name: entry.properties.dtype for name, entry in stored.items()}


def _may_be_milestone(path: Path) -> bool:
    """Whether a checkpoint is a milestone, or its manifest cannot be read."""
    try:
        return bool(_read_manifest(path).get("milestone"))
    except (OSError, UserError):
        return True


def _rename_damaged(path: Path, problem: str) -> None:
    damaged = path.with_name(f"{_DAMAGED}{path.name}")
    shutil.rmtree(damaged, ignore_errors=True)
    path.replace(damaged)
    log.warning("checkpoint %s is damaged (%s); renamed to %s", path, problem, damaged.name)
