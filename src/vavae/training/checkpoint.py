"""Checkpoints: written whole or not at all, verified on load, the last K and the milestones kept.

A checkpoint is a folder `images-000000640000` written by `torch.distributed.checkpoint`: each process writes its
part of the tensors, from a copy and in the background, so training goes on meanwhile. The parts lie in a folder
of another name until the first process has hashed them, written `manifest.json` (numbers and the sha256 of every
file) and flushed all; then the folder gets its name. So a folder with a checkpoint's name is always complete. A
damaged one is reported, set aside under the name `damaged-…`, and the one before is used. Tensors are stored by
name and global shape: another number of processes reads them as well.
"""

import hashlib
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

from vavae.errors import RunError, one_line
from vavae.training.parallel import World

log = logging.getLogger(__name__)

# One process alone is meant, and no reason to warn at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_PREFIX = "images-"
_MANIFEST = "manifest.json"


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: Its folder.
        numbers: The numbers it was saved with.
        shapes: Global shape of every tensor in it, by name.
        dtypes: Its type.
        world: The processes that read it together.
    """

    path: Path
    numbers: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    world: World

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill `tensors`, plain or sharded, with the values of their names. All processes must call it."""
        import torch.distributed.checkpoint as dcp

        reader = dcp.FileSystemReader(self.path)
        dcp.load(dict(tensors), storage_reader=reader, process_group=self.world.host, no_dist=self.world.size == 1)


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; made on the first save.
        keep: How many of the newest to keep, beside the milestones.
        world: The processes that write together.
    """

    def __init__(self, folder: Path, keep: int = 2, world: World | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.world = world or World()
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def list(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{_PREFIX}*")) if self.folder.is_dir() else []

    def save(
        self,
        images: int,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        milestone: bool = False,
        judged: int | None = None,
    ) -> None:
        """Begin to write the state after `images` images; it is copied at once and written in the background.

        Args:
            images: Names the checkpoint.
            tensors: The state by name; the same names in all processes, values plain and equal, or sharded.
            numbers: What JSON can hold.
            milestone: Keep this one for good.
            judged: Up to how many images the run is known to be good; the newest checkpoint up to there is kept as
                well. By default up to `images`.

        Raises:
            OSError: A former save failed (the disk is full, say). Older checkpoints are untouched.
            RunError: It failed for another reason.
        """
        import torch.distributed.checkpoint as dcp  # half of what every --help would wait for

        self.wait()
        partial = self.folder / f".partial-{images:012d}"
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
        judged = images if judged is None else judged
        self._pending = self._finisher.submit(self._finish, written, partial, images, manifest, judged)

    def wait(self) -> None:
        """Until the checkpoint in the making is complete in all processes.

        Raises:
            OSError: It could not be written (the disk is full, say).
            RunError: It could not be written for another reason.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            self.world.wait()

    def _finish(self, written: Any, partial: Path, images: int, manifest: dict[str, Any], judged: int) -> None:
        try:
            written.result()
            if self.world.first:
                self._name(partial, self.folder / f"{_PREFIX}{images:012d}", manifest)
                self._prune(judged)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise _as_fault(error, partial) from error

    def _name(self, partial: Path, target: Path, manifest: dict[str, Any]) -> None:
        files = {path.name: sha256_file(path) for path in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps({"files": files, **manifest}, indent=1))
        for path in (*partial.iterdir(), partial):
            _sync(path)
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
        _sync(self.folder)

    def _prune(self, judged: int) -> None:
        complete = self.list()
        good = [path for path in complete if images_of(path) <= judged]
        for old in complete[: -self.keep]:
            if old not in good[-1:] and not _is_milestone(old):
                shutil.rmtree(old)

    def newest(self, upto: int | None = None) -> Checkpoint | None:
        """The newest good checkpoint, of at most `upto` images where that is given; None where there is none.

        All processes must call it; they read each file once between them.
        """
        self.wait()
        for path in reversed(self.list()):
            if upto is not None and images_of(path) > upto:
                continue
            problem = self._problem(path)
            if self.world.any(problem is not None):
                if self.world.first:
                    _set_aside(path, problem or "another process could not read it")
                self.world.wait()
                continue
            numbers = json.loads((path / _MANIFEST).read_text())["numbers"]
            return Checkpoint(path, numbers, *_stored_tensors(path), self.world)
        return None

    def load_newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Whole tensors, on the CPU, and numbers of the newest good checkpoint; None where there is none."""
        found = self.newest()
        if found is None:
            return None
        tensors = {name: torch.empty(shape, dtype=found.dtypes[name]) for name, shape in found.shapes.items()}
        found.read_into(tensors)
        return tensors, found.numbers

    def drop_partial(self) -> None:
        """Remove what a killed run left half-written. All processes must call it, before the first save."""
        if self.world.first and self.folder.is_dir():
            for partial in self.folder.glob(".partial-*"):
                shutil.rmtree(partial, ignore_errors=True)
        self.world.wait()

    def _problem(self, path: Path) -> str | None:
        """What is wrong with this process's share of the files."""
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            files = sorted(manifest["files"].items())
            if not isinstance(manifest["numbers"], dict):
                return f"{_MANIFEST} holds no numbers"
            for name, digest in files[self.world.rank :: self.world.size]:
                if sha256_file(path / name) != digest:
                    return f"the sha256 of {name} is not the one that was written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return str(error) or type(error).__name__
        return None

    def drop_after(self, images: int) -> None:
        """Remove checkpoints of more than `images` images: their run is taken back. All processes must call it."""
        if self.world.first:
            for path in self.list():
                if images_of(path) > images:
                    shutil.rmtree(path)
        self.world.wait()


def _as_fault(error: BaseException, path: Path) -> Exception:
    """What kept a checkpoint from being written: the file system's own error where there is one, with its number.

    torch tells failures of any process as one exception that is no `Exception`, and its writer hides a full disk
    behind an error of its own.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None:
            return OSError(cause.errno, os.strerror(cause.errno), str(cause.filename or path.parent))
    innermost = list(_causes(error))[-1]
    return RunError(f"{path.parent}: the checkpoint could not be written ({one_line(innermost)[:300]})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what led to it, and what led to that; of torch's collected failures each."""
    following: BaseException | None = error
    while following is not None:
        yield following
        for failure, _ in getattr(following, "failures", {}).values():
            yield from _causes(failure)
        following = following.__cause__ or following.__context__


def images_of(path: Path) -> int:
    """Images seen by the checkpoint in folder `path`."""
    return int(path.name.removeprefix(_PREFIX))


def copy_checkpoint(source: Path, folder: Path, **numbers: Any) -> Path:
    """Copy a checkpoint into another folder of checkpoints, with some of its numbers changed."""
    target = folder / source.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    manifest = json.loads((target / _MANIFEST).read_text())
    manifest["numbers"] |= numbers
    (target / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    return target


def _stored_tensors(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Global shapes and types of the tensors of a checkpoint, by name."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    stored = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    shapes = {name: tuple(entry.size) for name, entry in stored.items()}
    return shapes, {name: entry.properties.dtype for name, entry in stored.items()}


def _is_milestone(path: Path) -> bool:
    try:
        return bool(json.loads((path / _MANIFEST).read_text())["milestone"])
    except (OSError, ValueError, KeyError):
        return False


def _set_aside(path: Path, problem: str) -> None:
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.replace(aside)
    log.warning("checkpoint %s is damaged (%s): set aside as %s", path, problem, aside.name)
