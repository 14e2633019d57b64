"""A stand-in for the hub's client: repositories are folders, and the cache has the form of huggingface_hub's."""

import fnmatch
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError


class StandInHub:
    """Serve `repositories / owner / name`, and record the requests.

    Attributes:
        fetched: Names of files in the order they were fetched.
        asked: Options of every call.
        online: Whether it can be reached.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repositories, self.cache = folder / "repositories", folder / "cache"
        self.fetched: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.online = True
        monkeypatch.setattr("huggingface_hub.HfApi", self.client)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)
        monkeypatch.delenv("VAVAE_OFFLINE", raising=False)

    def client(self, token: str | bool | None = None) -> "StandInHub":
        self.asked.append({"token": token})
        return self

    def _files(self, repository: str) -> list[str]:
        folder = self.repositories / repository
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def list_repo_files(self, repository: str, revision: str | None) -> list[str]:
        self.asked.append({"revision": revision})
        if not self.online:
            raise ConnectionError("no route")
        return self._files(repository)

    def snapshot_download(self, repository: str, *, allow_patterns: list[str], **options: Any) -> str:
        self.asked.append(options)
        here = (options["cache_dir"] or self.cache) / repository
        snapshot = here / "snapshots" / (options["revision"] or "main")
        if options["local_files_only"]:
            if not snapshot.is_dir():
                raise LocalEntryNotFoundError("not in the cache")
            return str(snapshot)
        for name in self._files(repository):
            link = snapshot / name
            if any(fnmatch.fnmatch(name, p) for p in allow_patterns) and (
                options["force_download"] or not link.exists()
            ):
                self.fetched.append(name)
                content = (self.repositories / repository / name).read_bytes()
                blob = here / "blobs" / _hash(name, content)
                for path in (link, blob):
                    path.parent.mkdir(parents=True, exist_ok=True)
                blob.write_bytes(content)
                link.unlink(missing_ok=True)
                link.symlink_to(os.path.relpath(blob, link.parent))
        return str(snapshot)


def _hash(name: str, content: bytes) -> str:
    """Return the sha256 of a large file, and git's hash of a small one."""
    if name.endswith(".json"):
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()
