"""Checkpoints: written whole or not at all, verified on load, the last K kept.

A checkpoint is a folder `images-000000640000` that holds `state.safetensors` (every tensor of the run) and
`state.json` (the numbers, and the sha256 of the tensors). It is written under a temporary name, flushed to the
disk and then renamed, so a folder with a checkpoint's name is always complete. A damaged one is reported, set
aside under the name `damaged-…`, and the one before is used.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vavae.errors import UserError

log = logging.getLogger(__name__)

_PREFIX = "images-"


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


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; made on the first save.
        keep: How many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def list(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{_PREFIX}*")) if self.folder.is_dir() else []

    def save(self, images: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Path:
        """Write the state after `images` images and drop what is beyond the newest `keep`.

        Raises:
            OSError: The disk is full, say. The former checkpoints are untouched.
        """
        target = self.folder / f"{_PREFIX}{images:012d}"
        partial = self.folder / f".partial-{images:012d}-{os.getpid()}"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            save_file({name: t.detach().contiguous() for name, t in tensors.items()}, partial / "state.safetensors")
            digest = sha256_file(partial / "state.safetensors")
            (partial / "state.json").write_text(json.dumps({"sha256": digest, "numbers": dict(numbers)}, indent=1))
            for name in ("state.safetensors", "state.json"):
                _sync(partial / name)
            if target.exists():
                shutil.rmtree(target)
            partial.replace(target)
            _sync(self.folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in self.list()[: -self.keep]:
            shutil.rmtree(old)
        return target

    def load_newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and numbers of the newest good checkpoint; None where there is none."""
        self._drop_partial()
        for path in reversed(self.list()):
            try:
                return self._load(path)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.replace(aside)
                log.warning("checkpoint %s is damaged (%s): set aside as %s", path, error, aside.name)
        return None

    def _load(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        record = json.loads((path / "state.json").read_text())
        digest = sha256_file(path / "state.safetensors")
        if digest != record["sha256"]:
            raise ValueError(f"sha256 is {digest}, not {record['sha256']}")
        return load_file(path / "state.safetensors"), record["numbers"]

    def _drop_partial(self) -> None:
        if self.folder.is_dir():
            for partial in self.folder.glob(".partial-*"):
                shutil.rmtree(partial, ignore_errors=True)

    def require_empty_or_resume(self, resume: bool) -> None:
        """Refuse to start afresh over a former run's checkpoints.

        Raises:
            UserError: There are checkpoints and `resume` is off.
        """
        if not resume and self.list():
            raise UserError(f"{self.folder} holds checkpoints of a former run; resume it or choose another folder")
