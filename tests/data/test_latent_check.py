"""Latents are compared with their sha256 once, and again when a file may have changed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from vavae.data import LatentDataset, LatentSettings, LatentWriter, latent_check
from vavae.errors import UserError

NAMES = [*(f"latents_rank00_shard{number:03d}.safetensors" for number in range(3)), "statistics.safetensors"]


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
    """Names of the files that are hashed from now on."""
    names: list[str] = []
    original = latent_check.file_sha256

    def noted(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(latent_check, "file_sha256", noted)
    return names


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)


def test_what_was_written_here_is_known(folder: Path, hashed: list[str]) -> None:
    LatentDataset(folder).verify()
    assert not hashed


def test_a_copy_is_checked_once(folder: Path, hashed: list[str], tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")  # with times of change
    for _ in range(2):
        LatentDataset(tmp_path / "copy").verify()
    assert sorted(hashed) == NAMES


def test_encoding_again_knows_what_it_found(folder: Path, hashed: list[str], tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    encode(tmp_path / "copy").verify()
    assert not hashed


@pytest.mark.parametrize("name", NAMES)
def test_silent_damage_is_named_until_it_is_mended(name: str, folder: Path) -> None:
    path = folder / name
    before = path.stat()
    flip_a_bit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{path} is damaged: .*; encode again"):
            LatentDataset(folder).verify()
    encode(folder).verify()


def test_lost_statistics_are_named(folder: Path) -> None:
    (folder / "statistics.safetensors").unlink()
    with pytest.raises(UserError, match=r"statistics\.safetensors cannot be read: .*; encode again"):
        LatentDataset(folder).verify()


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff", b'{"statistics.safetensors": 3}'])
def test_a_damaged_memory_costs_a_check(damage: bytes, folder: Path, hashed: list[str]) -> None:
    (folder / "checked.json").write_bytes(damage)
    for _ in range(2):
        LatentDataset(folder).verify()
    assert sorted(hashed) == NAMES


def test_a_folder_that_cannot_be_written_is_checked_each_time(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    (folder / "checked.json").unlink()
    monkeypatch.setattr("vavae.data.readable.written_whole", refuses)
    for _ in range(2):
        LatentDataset(folder).verify()
    assert sorted(hashed) == sorted(2 * NAMES)


def test_what_was_compared_before_a_fault_is_known(folder: Path, hashed: list[str]) -> None:
    (folder / "checked.json").unlink()
    flip_a_bit(folder / NAMES[2])
    for _ in range(2):
        with pytest.raises(UserError, match="is damaged"):
            LatentDataset(folder).verify()
    assert hashed.count(NAMES[0]) == 1 and hashed.count(NAMES[2]) == 2


def test_latents_of_a_former_version_are_read(folder: Path, hashed: list[str]) -> None:
    """Neither notes nor index said then what the check needs to know."""
    (folder / "checked.json").unlink()
    for path in folder.glob("*.json"):
        told = json.loads(path.read_text())
        told.pop("state", None)
        told.pop("statistics_sha256", None)
        path.write_text(json.dumps(told))
    LatentDataset(folder).verify()
    assert sorted(hashed) == NAMES[:3]
    assert encode(folder).settings is not None


def test_the_check_of_large_files_is_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "checked.json").unlink()
    monkeypatch.setattr(latent_check, "_WORTH_SHOWING", 0)
    LatentDataset(folder).verify()
    assert "checking latents: 4/4 files" in capsys.readouterr().err
