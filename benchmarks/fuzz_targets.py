"""Readers of files and small good files, for `fuzz.py` and for the test that reads the stored inputs again."""

import argparse
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save

from vavae import AutoencoderKL, Tokenizer
from vavae.checkpoints import folder as files
from vavae.checkpoints.loading import open_checkpoint
from vavae.checkpoints.reading import read_checkpoint, read_safetensors
from vavae.checkpoints.statistics import read_statistics
from vavae.config import load_recipe
from vavae.config.recipes import package_recipe
from vavae.data.readable import image_error, read_rgb
from vavae.data.webdataset import WebDatasetImages
from vavae.errors import UserError
from vavae.stages import train_dit
from vavae.tokenizer import AutoencoderConfig, LatentStatistics

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "corpus"


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    """Return what `write` writes into a file."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def picture(form: str, mode: str = "RGB") -> bytes:
    return saved(lambda file: Image.new(mode, (5, 4), 77).save(file, form))


def shard() -> bytes:
    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name, content in (
                ("a.png", picture("PNG")),
                ("a.cls", b"1"),
                ("b.png", picture("PNG", "L")),
                ("b.cls", b"0"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    return saved(write)


class Target:
    """A reader of one file, and small good files."""

    def __init__(self, seeds: list[bytes], read: Callable[[Path], object], name: str = "file") -> None:
        self.seeds, self.read, self.name = seeds, read, name


def image_target() -> Target:
    forms = [
        ("PNG", "RGB"),
        ("PNG", "I;16"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("TIFF", "L"),
    ]

    def read(path: Path) -> None:
        if (error := image_error(path)) is not None:  # the data sets list it
            raise UserError(error)
        read_rgb(path)

    return Target([picture(*form) for form in forms], read, "image.png")


def shard_target() -> Target:
    def read(path: Path) -> None:
        with tempfile.TemporaryDirectory() as cache:
            source = WebDatasetImages(str(path), cache=Path(cache))
            for index in range(len(source)):
                source.image(index)

    return Target([shard()], read, "shard.tar")


def tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.ones(2, 3), "b": torch.zeros(1)}


def checkpoint_target() -> Target:
    contents = ({"state_dict": tensors()}, {"ema": tensors(), "args": argparse.Namespace(a=1)}, [1, "a", None])
    return Target(
        [saved(lambda file, content=content: torch.save(content, file)) for content in contents],
        read_checkpoint,
        "a.pt",
    )


def pickle_target() -> Target:
    """The pickle in a checkpoint, in an archive whose checksums are right."""
    network = {"encoder.conv_in.weight": torch.ones(2, 3), "decoder.bias": torch.zeros(1)}
    contents = (
        {"state_dict": network | {"loss.a": torch.ones(2)}, "config": {"model": {"params": [1, 2.5, None]}}},
        {"ema": network, "module.model": network, "args": argparse.Namespace(a=1, b=bytearray(b"ab"))},
    )
    archives = [
        saved(lambda file, content=content, protocol=protocol: torch.save(content, file, pickle_protocol=protocol))
        for content, protocol in zip(contents, (2, 5), strict=True)
    ]
    with zipfile.ZipFile(io.BytesIO(archives[0])) as good:
        others = {entry.filename: good.read(entry) for entry in good.infolist()}

    def structure(archive: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(archive)) as stored:
            return next(stored.read(name) for name in stored.namelist() if name.endswith("/data.pkl"))

    def read(path: Path) -> None:
        pickled = path.read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in others.items():
                archive.writestr(name, pickled if name.endswith("/data.pkl") else content)
        open_checkpoint(path)

    return Target([structure(archive) for archive in archives], read, "a.pt")


def folder_target() -> Target:
    """`config.json` of a tokenizer whose hashes are those of its content, as a deceiver would write it."""
    place = Path(tempfile.mkdtemp())
    model = AutoencoderKL(AutoencoderConfig(2, 32, (1,), 1, ()))
    Tokenizer(model, LatentStatistics(torch.zeros(2), torch.ones(2))).save_pretrained(place)
    plain = {
        key: value for key, value in json.loads((place / "config.json").read_text()).items() if key != files.HASHES
    }

    def read(path: Path) -> None:
        text = path.read_bytes()
        try:
            config = json.loads(text)
            text = json.dumps(files.signed(place, config)).encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass  # not JSON, or of another kind: the reader gets it as it is
        (place / "config.json").write_bytes(text)
        Tokenizer.from_pretrained(place)

    return Target([json.dumps(plain).encode()], read)


def recipe_target() -> Target:
    seeds = [package_recipe(name).read_bytes() for name in ("small/transformer", "small/ditdh")]
    return Target(seeds, lambda path: load_recipe(train_dit.Config, path), "recipe.yaml")


TARGETS: dict[str, Callable[[], Target]] = {
    "images": image_target,
    "shards": shard_target,
    "checkpoints": checkpoint_target,
    "pickles": pickle_target,
    "safetensors": lambda: Target([save(tensors())], read_safetensors, "a.safetensors"),
    "folders": folder_target,
    "statistics": lambda: Target(
        [
            saved(lambda file: torch.save({"mean": torch.zeros(1, 2, 1, 1), "std": torch.ones(1, 2, 1, 1)}, file)),
            saved(lambda file: torch.save({"mean": torch.zeros(2, 2, 2), "var": torch.ones(2, 2, 2)}, file)),
        ],
        read_statistics,
        "latents_stats.pt",
    ),
    "recipes": recipe_target,
}
