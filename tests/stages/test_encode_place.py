"""`vavae encode` writes into a new or empty folder or over its own latents: it never replaces foreign files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evaluate_models import make_generator, make_tokenizer
from PIL import Image
from safetensors.torch import save_file

from vavae.cli import run
from vavae.data import LatentDataset, write_published_layout


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tokenizer"
    make_tokenizer().save_pretrained(folder)
    return folder


def encode(folder: Path, tokenizer: Path) -> int:
    """Encode 6 images in two shards."""
    more = ["--shard_size", "3", "--device", "cpu"]
    data = ["--data.images", "demo", "--data.size", "32", "--data.limit", "6"]
    return run(["encode", "--tokenizer", str(tokenizer), "--output", str(folder), *data, *more])


@pytest.fixture(scope="module")
def whole(tokenizer: Path) -> Path:
    """Encode once; return the folder, to be copied."""
    assert encode(tokenizer.with_name("latents"), tokenizer) == 0
    return tokenizer.with_name("latents")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tokenizer_folder(folder: Path, whole: Path) -> None:
    shutil.copytree(whole.with_name("tokenizer"), folder, dirs_exist_ok=True)


def generator_folder(folder: Path, _: Path) -> None:
    make_generator().save_pretrained(folder)


def foreign_index(folder: Path, _: Path) -> None:
    (folder / "index.json").write_text('{"weight_map": {}}')


def class_folders(folder: Path, _: Path) -> None:
    (folder / "cats").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "cats/1.png")


def published_latents(folder: Path, whole: Path) -> None:
    folder.rmdir()
    write_published_layout(LatentDataset(whole), folder)


def foreign_shard(folder: Path, _: Path) -> None:
    save_file({"latents": torch.zeros(1)}, folder / "latents_rank00_shard000.safetensors")


@pytest.mark.parametrize(
    "make", [tokenizer_folder, generator_folder, foreign_index, class_folders, published_latents, foreign_shard]
)
def test_foreign_files_are_kept(
    make: Callable[[Path, Path], None],
    whole: Path,
    tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    make(folder, whole)
    before = content(folder)
    capsys.readouterr()
    assert encode(folder, tokenizer) == 2
    error = capsys.readouterr().err.strip()
    assert f"{folder} has {min(path.name for path in folder.iterdir())}" in error and len(error.splitlines()) == 1
    assert content(folder) == before


@pytest.mark.parametrize(
    "left",
    [
        (),
        ("latents_rank00_shard000.safetensors",),
        ("latents_rank00_shard001.safetensors", "statistics.safetensors"),
        ("index.json",),
        ("statistics.safetensors",),
    ],
)
def test_stopped_encoding_resumes(left: tuple[str, ...], whole: Path, tokenizer: Path, tmp_path: Path) -> None:
    folder, expected = tmp_path / "latents", content(whole)
    shutil.copytree(whole, folder)
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    (folder / ".latents_rank00_shard001.safetensors.0ab3.tmp").write_bytes(b"half")
    (folder / "unreadable.txt").write_text("1.png\tcut off\n")
    assert encode(folder, tokenizer) == 0
    made = content(folder)
    assert {name for name in made if name != "unreadable.txt"} == set(expected)
    assert made["statistics.safetensors"] == expected["statistics.safetensors"]
    assert json.loads(made["index.json"]) == json.loads(expected["index.json"])


def test_damaged_index_is_written_again(whole: Path, tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    shutil.copytree(whole, folder)
    for path in folder.glob("*.json"):
        path.write_bytes(b"")
    assert encode(folder, tokenizer) == 0
    assert len(LatentDataset(folder)) == 6
