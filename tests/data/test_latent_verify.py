"""Shards and statistics are compared with their sha256 once, and again if a file has changed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from vavae.data import LatentDataset, LatentSettings, LatentWriter, latents
from vavae.errors import UserError

NAMES = [f"latents_rank00_shard{number:03d}.safetensors" for number in range(3)]


def encode(folder: Path) -> LatentDataset:
    writer = LatentWriter(folder, 12, LatentSettings(image_size=8, flips=False), shard_size=4)
    for shard in writer.missing():
        writer.write(shard, [(torch.randn(4, 3, 2, 2), None, torch.zeros(4))])
    writer.finish()
    return LatentDataset(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return encode(tmp_path / "latents").folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the names of the shards that are hashed."""
    names: list[str] = []
    original = latents.MappedShard.sha256

    def noted(shard: latents.MappedShard) -> str:
        names.append(shard.path.name)
        return original(shard)

    monkeypatch.setattr(latents.MappedShard, "sha256", noted)
    return names


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)


def test_latents_are_checked_once(folder: Path, hashed: list[str]) -> None:
    for _ in range(2):
        LatentDataset(folder).verify()
    assert sorted(hashed) == NAMES


def test_copy_is_checked_once(folder: Path, hashed: list[str], tmp_path: Path) -> None:
    LatentDataset(folder).verify()
    hashed.clear()
    shutil.copytree(folder, tmp_path / "copy")  # keeps the times of change
    for _ in range(2):
        LatentDataset(tmp_path / "copy").verify()
    assert sorted(hashed) == NAMES


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("name", [*NAMES, "statistics.safetensors"])
def test_silent_damage_is_named(name: str, compared: bool, folder: Path) -> None:
    if compared:
        LatentDataset(folder).verify()
    path = folder / name
    before = path.stat()
    flip_a_bit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{path}: damaged: its hash is not the recorded one; encode again"):
            LatentDataset(folder).verify()
    encode(folder).verify()


def test_swapped_shard_is_damage(folder: Path) -> None:
    shutil.copy(folder / NAMES[1], folder / NAMES[0])
    with pytest.raises(UserError, match=rf"{NAMES[0]}: damaged"):
        LatentDataset(folder).verify()
    assert [shard.number for shard in LatentWriter(folder, 12, LatentSettings(8, flips=False), 4).missing()] == [0]


def test_damaged_shard_metadata_is_noticed(folder: Path) -> None:
    (folder / "index.json").unlink()
    content = bytearray((folder / NAMES[1]).read_bytes())
    content[content.index(b"squares") + 14] ^= 1  # a digit of the statistics
    (folder / NAMES[1]).write_bytes(content)
    writer = LatentWriter(folder, 12, LatentSettings(8, flips=False), 4)
    assert [shard.number for shard in writer.missing()] == [1]


def test_missing_statistics_are_named(folder: Path) -> None:
    (folder / "statistics.safetensors").unlink()
    with pytest.raises(UserError, match=r"statistics\.safetensors: no such file; encode again"):
        LatentDataset(folder).verify()


@pytest.mark.parametrize("damage", [3, [], {NAMES[0]: 3}])
def test_damaged_check_record_is_replaced(damage: object, folder: Path, hashed: list[str]) -> None:
    LatentDataset(folder).verify()
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"checked": damage}))
    hashed.clear()
    for _ in range(2):
        LatentDataset(folder).verify()
    assert sorted(hashed) == NAMES


def test_read_only_folder_is_checked_each_time(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(latents, "write_json", refuses)
    for _ in range(2):
        LatentDataset(folder).verify()
    assert sorted(hashed) == sorted(2 * NAMES)


def test_checks_before_a_fault_are_kept(folder: Path, hashed: list[str]) -> None:
    flip_a_bit(folder / NAMES[2])
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"):
            LatentDataset(folder).verify()
    assert hashed.count(NAMES[0]) == 1 and hashed.count(NAMES[2]) == 2


def test_check_of_large_files_shows_a_bar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latents, "_WORTH_SHOWING", 0)
    LatentDataset(folder).verify()
    assert "checking latents: 3/3 files" in capsys.readouterr().err
