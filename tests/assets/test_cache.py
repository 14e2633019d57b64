"""The cache with a made-up asset: installation, refusals, kills."""

import dataclasses
import errno
import hashlib
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from vavae.assets import cache, convert, registry
from vavae.assets.registry import Asset, Source
from vavae.assets.sources import SourceUnavailable
from vavae.errors import RunError, UserError
from vavae.io import files

_CONTENT = bytes(range(100))
_ASSET = Asset(
    name="made-up",
    description="a hundred numbers",
    license="none",
    size_bytes=len(_CONTENT),
    sources=(Source("wheel", "first", "1", ("numbers.bin",)), Source("npm", "second", "1", ("numbers.bin",))),
    sha256=(hashlib.sha256(_CONTENT).hexdigest(),),
    converter="made-up",
)


def _convert(files: list[Path], folder: Path) -> None:
    save_file({"numbers": torch.tensor(list(files[0].read_bytes()))}, folder / "model.safetensors")


def _serve(content: bytes = _CONTENT, log: Path | None = None, seconds: float = 0.0):
    """Return a source that delivers `content` and adds a line to `log` for each fetch."""

    def fetch(source: object, folder: Path) -> list[Path]:
        if log is not None:
            with log.open("a") as file:
                file.write("fetched\n")
        time.sleep(seconds)
        path = folder / "numbers.bin"
        path.write_bytes(content)
        return [path]

    return fetch


@pytest.fixture(autouse=True)
def _made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VAVAE_OFFLINE", raising=False)
    monkeypatch.setattr(registry, "ASSETS", (_ASSET,))
    monkeypatch.setattr(cache, "ASSETS", (_ASSET,))
    monkeypatch.setattr(cache, "fetch_files", _serve())
    monkeypatch.setitem(convert.CONVERTERS, "made-up", _convert)


def _in_cache(tmp_path: Path) -> list[str]:
    """Return the names in the cache without locks."""
    folder = tmp_path / "cache" / "assets"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


def test_fetch_load_verify_status(tmp_path: Path) -> None:
    assert not cache.status("made-up").cached
    with pytest.raises(UserError, match="not in the cache"):
        cache.verify("made-up")
    path = cache.fetch("made-up")
    assert path == tmp_path / "cache" / "assets" / "made-up" / "model.safetensors" == cache.path("made-up")
    assert torch.equal(cache.load("made-up")["numbers"], torch.arange(100))
    cache.verify("made-up")
    status = cache.list_assets()[0]
    assert status.cached
    assert status.source == "PyPI first==1"
    assert status.size_bytes == path.stat().st_size
    assert _in_cache(tmp_path) == ["made-up"]


def test_second_fetch_uses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(cache, "fetch_files", _serve(log=log))
    cache.fetch("made-up")
    cache.fetch("made-up")
    assert log.read_text() == "fetched\n"


@pytest.mark.parametrize("content", [_CONTENT[:50], b"\xff" + _CONTENT[1:]], ids=["truncated", "changed"])
def test_wrong_hash_installs_nothing(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "fetch_files", _serve(content))
    with pytest.raises(UserError) as raised:
        cache.fetch("made-up")
    message = str(raised.value)
    for part in ("made-up", _ASSET.sha256[0], hashlib.sha256(content).hexdigest(), "nothing installed"):
        assert part in message
    assert _in_cache(tmp_path) == []


def test_offline_asset_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAVAE_OFFLINE", "1")
    with pytest.raises(UserError, match="VAVAE_OFFLINE"):
        cache.load("made-up")
    monkeypatch.setenv("VAVAE_OFFLINE", "0")
    cache.fetch("made-up")
    monkeypatch.setenv("VAVAE_OFFLINE", "1")
    assert len(cache.load("made-up")) == 1


def test_second_source_is_tried_if_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_second(source: Source, folder: Path) -> list[Path]:
        if source.kind == "wheel":
            raise SourceUnavailable(f"{source}: no network")
        return _serve()(source, folder)

    monkeypatch.setattr(cache, "fetch_files", only_second)
    cache.fetch("made-up")
    assert cache.status("made-up").source == "npm second@1"


def test_failures_of_all_sources_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def neither(source: object, folder: Path) -> list[Path]:
        raise SourceUnavailable(f"{source}: no network")

    monkeypatch.setattr(cache, "fetch_files", neither)
    with pytest.raises(UserError, match=r"^asset 'made-up': PyPI first==1: no network; npm second@1: no network$"):
        cache.fetch("made-up")
    assert _in_cache(tmp_path) == []


def test_changed_byte_is_found_and_repaired_by_fetch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = cache.fetch("made-up")
    cache.load("made-up")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for look in (cache.verify, cache.load, cache.path):
        with pytest.raises(UserError, match=r"model\.safetensors: damaged: .*: vavae assets fetch made-up$"):
            look("made-up")
    monkeypatch.setenv("VAVAE_OFFLINE", "1")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        cache.fetch("made-up")
    monkeypatch.delenv("VAVAE_OFFLINE")
    cache.fetch("made-up")
    assert torch.equal(cache.load("made-up")["numbers"], torch.arange(100))


def test_unchanged_file_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr(files.hashlib, "file_digest", _counted(files.hashlib.file_digest, hashed))
    cache.fetch("made-up")
    hashed.clear()
    for _ in range(3):
        cache.load("made-up")
    assert len(hashed) == 1


def _counted(function: Any, calls: list[str]) -> Any:
    def counting(file: Any, digest: Any) -> Any:
        calls.append(file.name)
        return function(file, digest)

    return counting


def test_truncated_file_is_named() -> None:
    path = cache.fetch("made-up")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"made-up.*damaged"):
        cache.load("made-up")


def test_missing_file_or_manifest_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(cache, "fetch_files", _serve(log=log))
    path = cache.fetch("made-up")
    for lost in (path, path.with_name("manifest.json")):
        lost.unlink()
        cache.fetch("made-up")
        cache.verify("made-up")
    path.with_name("manifest.json").write_text('{"name": ')
    cache.fetch("made-up")
    cache.verify("made-up")
    assert log.read_text().count("fetched") == 4


def test_new_revision_is_converted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache.fetch("made-up")
    newer = dataclasses.replace(_ASSET, revision=2)
    monkeypatch.setattr(registry, "ASSETS", (newer,))
    assert not cache.status("made-up").cached
    cache.fetch("made-up")
    assert json.loads(path.with_name("manifest.json").read_text())["revision"] == 2


@pytest.mark.parametrize("during", ["fetch", "conversion"])
def test_full_disk_installs_nothing(during: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, folder: Path) -> Any:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    if during == "fetch":
        monkeypatch.setattr(cache, "fetch_files", full)
    monkeypatch.setitem(convert.CONVERTERS, "made-up", full)
    with pytest.raises(RunError, match=r"made-up.*disk.*full"):
        cache.fetch("made-up")
    assert _in_cache(tmp_path) == []


def test_data_set_is_a_folder_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = dataclasses.replace(_ASSET, converter="copy", file="")
    monkeypatch.setattr(registry, "ASSETS", (data_set,))
    assert (cache.path("made-up") / "numbers.bin").read_bytes() == _CONTENT
    with pytest.raises(UserError, match="data set"):
        cache.load("made-up")


def test_location_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAVAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "vavae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "vavae"


def _die_in_conversion(files: list[Path], folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half a file")
    os._exit(9)


def _fetch_and_die() -> None:
    convert.CONVERTERS["made-up"] = _die_in_conversion
    cache.fetch("made-up")


def test_killed_fetch_leaves_no_asset(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_fetch_and_die)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert any(name.endswith(".partial") for name in _in_cache(tmp_path))
    assert not cache.status("made-up").cached
    cache.fetch("made-up")
    cache.verify("made-up")
    assert _in_cache(tmp_path) == ["made-up"]


def test_three_processes_fetch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(cache, "fetch_files", _serve(log=log, seconds=0.5))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=cache.fetch, args=("made-up",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "fetched\n"
    assert len(load(cache.path("made-up").read_bytes())) == 1
