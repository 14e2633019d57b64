"""Models of the hub, with a stand-in for the hub's client."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.hf_api import BlobLfsInfo, RepoSibling

from vavae import assets
from vavae.assets import hub
from vavae.cli import run
from vavae.errors import UserError

_FILES = {"config.json": b'{"model_type": "dinov2"}', "model.safetensors": b"weights", "README.md": b"text"}


def _sibling(name: str, content: bytes) -> RepoSibling:
    if name.endswith((".safetensors", ".bin")):
        lfs = BlobLfsInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest(), pointer_size=1)
        return RepoSibling(rfilename=name, size=len(content), blob_id="pointer", lfs=lfs)
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return RepoSibling(rfilename=name, size=len(content), blob_id=blob, lfs=None)


class _Hub:
    """Declares `files` and serves `served`."""

    def __init__(self, folder: Path, files: dict[str, bytes], served: dict[str, bytes] | None = None) -> None:
        self.folder = folder
        self.files = files
        self.served = served or files
        self.downloads = 0

    def model_info(self, repo_id: str, files_metadata: bool) -> SimpleNamespace:
        assert files_metadata
        siblings = [_sibling(name, content) for name, content in self.files.items()]
        return SimpleNamespace(sha="c0ffee", siblings=siblings, card_data=SimpleNamespace(license="apache-2.0"))

    def snapshot_download(self, repo_id: str, revision: str, allow_patterns: list[str], force_download: bool) -> str:
        assert revision == "c0ffee"
        self.downloads += 1
        self.folder.mkdir(exist_ok=True)
        for name in allow_patterns:
            (self.folder / name).write_bytes(self.served[name])
        return str(self.folder)


def _use(monkeypatch: pytest.MonkeyPatch, stand_in: _Hub) -> _Hub:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    return stand_in


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VAVAE_OFFLINE", raising=False)


def test_model_is_fetched_once_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = _use(monkeypatch, _Hub(tmp_path / "hub", _FILES))
    folder = assets.fetch("owner/model")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assets.verify("owner/model")
    monkeypatch.setenv("VAVAE_OFFLINE", "1")
    assert assets.fetch("owner/model") == folder
    assert stand_in.downloads == 1
    status = assets.list_hub_models()[0]
    assert (status.name, status.license, status.cached) == ("owner/model", "apache-2.0", True)
    assert status.source == "hub owner/model@c0ffee"
    (folder / "model.safetensors").write_bytes(b"changed")
    for look in (assets.verify, assets.path):
        with pytest.raises(UserError, match=r"model\.safetensors: damaged: .*: vavae assets fetch owner/model$"):
            look("owner/model")
        with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
            assets.fetch("owner/model")  # offline
    monkeypatch.delenv("VAVAE_OFFLINE")
    assert assets.fetch("owner/model") == assets.path("owner/model") == folder
    assert stand_in.downloads == 2 and (folder / "model.safetensors").read_bytes() == b"weights"


def test_verify_includes_hub_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _use(monkeypatch, _Hub(tmp_path / "hub", _FILES))
    folder = assets.fetch("owner/model")
    assert run(["assets", "verify"]) == 0
    assert capsys.readouterr().out == "owner/model: all hashes match\n"
    (folder / "config.json").write_bytes(b"{}")
    assert run(["assets", "verify"]) == 2


@pytest.mark.parametrize(
    "damage", ['"files": 3', '"files": []', '"files": null', '"other": {}', '"files": {}, "files": {}']
)
def test_damaged_record_counts_as_missing(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = _use(monkeypatch, _Hub(tmp_path / "hub", _FILES))
    folder = assets.fetch("owner/model")
    (record,) = (tmp_path / "cache" / "hub").glob("*.json")
    text = record.read_text()
    record.write_text(text[: text.index('"files"')] + damage + "}")
    assert assets.list_hub_models() == []
    assert assets.fetch("owner/model") == folder and stand_in.downloads == 2


def test_unknown_keys_of_a_record_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = _use(monkeypatch, _Hub(tmp_path / "hub", _FILES))
    assets.fetch("owner/model")
    (record,) = (tmp_path / "cache" / "hub").glob("*.json")
    record.write_text(record.read_text().replace('"license"', '"revision": "main", "other"'))
    assert assets.fetch("owner/model").is_dir() and stand_in.downloads == 1
    assert assets.status("owner/model").license == "not stated"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_file_with_another_hash_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, _Hub(tmp_path / "hub", _FILES, _FILES | {name: b"{}"}))
    with pytest.raises(UserError, match=f"owner/model.*{name}.*the hub declares"):
        assets.fetch("owner/model")
    assert not assets.status("owner/model").cached


def test_shards_and_pytorch_weights_are_found() -> None:
    def needed(*names: str) -> list[str]:
        return [file.rfilename for file in hub._needed_files("o/m", [_sibling(name, b"{}") for name in names])]

    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = "model.safetensors.index.json"
    assert needed("config.json", *shards, index, "pytorch_model.bin") == ["config.json", *shards, index]
    assert needed("config.json", "preprocessor_config.json", "pytorch_model.bin", "tf_model.h5") == [
        "config.json",
        "preprocessor_config.json",
        "pytorch_model.bin",
    ]
    with pytest.raises(UserError, match="no weights"):
        needed("config.json", "tf_model.h5")
    with pytest.raises(UserError, match=r"no config\.json"):
        needed("model.safetensors")


def test_offline_model_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAVAE_OFFLINE", "1")
    with pytest.raises(UserError, match="VAVAE_OFFLINE"):
        assets.fetch("owner/model")


def test_unreachable_hub_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = _use(monkeypatch, _Hub(tmp_path / "hub", _FILES))

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(stand_in, "model_info", unreachable)
    with pytest.raises(UserError, match=r"owner/model.*cannot be reached"):
        assets.fetch("owner/model")
    assert assets.list_hub_models() == []
