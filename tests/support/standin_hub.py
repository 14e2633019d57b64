"""A stand-in for the hub's client: repositories are folders, and the cache has the form of huggingface_hub's."""

import fnmatch
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from published_files import SMALL, autoencoder, golden_dit, lightning_checkpoint, statistics, training_checkpoint
from safetensors.torch import save_file

from vavae.checkpoints.diffusers_autoencoder import diffusers_config, to_diffusers_names
from vavae.checkpoints.statistics import scaling_statistics


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


def put_published(hub: StandInHub) -> None:
    """Write the published repositories of the registry into the hub, under their file names, with small models."""
    vavae, variants, sd = (
        hub.repositories / name
        for name in (
            "hustvl/vavae-imagenet256-f16d32-dinov2",
            "hustvl/va-vae-imagenet256-experimental-variants",
            "stabilityai/sd-vae-ft-mse",
        )
    )
    for folder in (vavae, variants, sd):
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("a card")
    model, projection = autoencoder(SMALL)
    torch.save(model.state_dict(), vavae / f"{vavae.name}.pt")
    torch.save(statistics(8), vavae / "latents_stats.pt")
    for name in ("ldm-imagenet256-f16d32-50ep", "vavae-imagenet256-f16d32-dinov2-50ep"):
        torch.save(lightning_checkpoint(model, projection), variants / f"{name}.ckpt")
    config = diffusers_config(SMALL, scaling_statistics(8, 0.18215))
    del config["scaling_factor"], config["shift_factor"]  # the published file relies on the defaults of diffusers
    (sd / "config.json").write_text(json.dumps(config))
    weights = to_diffusers_names(model.state_dict(), 2)
    save_file(weights, sd / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    torch.save(weights, sd / "diffusion_pytorch_model.bin")
    transformer = golden_dit()[0]
    for epochs, content in ((800, training_checkpoint(transformer)), (64, {"ema": dict(transformer.state_dict())})):
        folder = hub.repositories / f"hustvl/lightningdit-xl-imagenet256-{epochs}ep"
        folder.mkdir()
        torch.save(content, folder / f"{folder.name}.pt")
