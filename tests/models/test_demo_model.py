"""The model in the package: its size, its files, and the numbers on its card."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

import vavae
from vavae.checkpoints.locations import resolve
from vavae.cli import run
from vavae.data import DemoImages, demo_pixels, to_tensor
from vavae.errors import UserError
from vavae.metrics import linear_probe, psnr
from vavae.models import Generator

FOLDER = Path(vavae.__file__).parent / "assets" / "demo_model"
CARD = (FOLDER / "README.md").read_text()


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.from_pretrained("demo")


def test_files_are_small_and_safe() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}


def test_fid_on_the_card_was_measured_with_the_defaults(generator: Generator) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-22-demo-model-fid.json"
    (record,) = json.loads(results.read_text())["records"]
    protocol, defaults = record["protocol"], generator.sampling
    assert record["name"] == "FID" and f"images: {record['value']:.1f}." in CARD
    assert (protocol["samples"], protocol["reference_samples"]) == (5_000, 10_000)
    assert (protocol["steps"], protocol["guidance_scale"]) == (defaults.steps, defaults.guidance_scale)
    assert protocol["checkpoint_hash"] == generator.fingerprint()


def test_cards_have_the_metadata_of_the_hub(generator: Generator, tmp_path: Path) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-22-demo-model-fid.json"
    (tmp_path / "r.json").write_text(json.dumps(json.loads(results.read_text())["records"]))
    wanted = generator.card("vavae/demo", license="mit", datasets=["uoft-cs/cifar10"], results=tmp_path / "r.json")
    assert ModelCard(CARD).data.to_dict() == ModelCard(wanted.content).data.to_dict()
    tokenizer = generator.tokenizer.card(license="mit", datasets=["uoft-cs/cifar10"])
    assert ModelCard.load(FOLDER / "tokenizer/README.md").data.to_dict() == tokenizer.data.to_dict()


def test_card_and_provenance_describe_the_training(generator: Generator) -> None:
    seen = [model.provenance["images_seen"] for model in (generator.tokenizer, generator)]
    assert all(f"{count:,}" in CARD for count in seen)
    assert generator.tokenizer.provenance["teacher"] == "dinov2-small-focus"
    for word in ("CIFAR-10", "license", "recipes demo-model"):
        assert word in CARD
    assert generator.class_names[3] == "cat" and generator.num_classes == 10


@pytest.mark.slow
def test_psnr_equals_the_card(generator: Generator) -> None:
    """Every seventh image from number 3 on has the mean of all 1,000 images, 28.912 dB."""
    images = to_tensor(demo_pixels("test"))[3::7]
    values = [psnr(generator.tokenizer.reconstruct(part), part) for part in images.split(50)]
    stated = float(re.search(r"PSNR \| ([\d.]+) dB", CARD)[1])  # type: ignore[index]
    assert torch.cat(values).mean().item() == pytest.approx(stated, abs=0.02)


@pytest.mark.slow
def test_samples_have_the_class_of_their_label(generator: Generator) -> None:
    """A linear classifier of real images' latents recognizes samples far more often than by chance (0.1)."""
    images = DemoImages("train")
    chosen = torch.arange(0, len(images), 20)
    known = generator.tokenizer.encode(to_tensor(images.pixels[chosen]))
    wanted = [label for label in range(10) for _ in range(4)]
    drawn = generator(wanted, seed=1, steps=6)
    latents = generator.tokenizer.encode(drawn)
    labels = torch.tensor(images.labels)[chosen]
    assert linear_probe(known, labels, latents, torch.tensor(wanted)) > 0.35


def test_local_model_named_demo_comes_first(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve("demo") == FOLDER
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "picture.png").write_bytes(b"")
    assert resolve("demo") == FOLDER
    generator.tokenizer.save_pretrained("demo")
    assert resolve("demo") == Path("demo")
    with pytest.raises(UserError, match="demo: holds a tokenizer, not a generator"):
        Generator.from_pretrained("demo")


def test_sample_command_needs_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["sample", "--count", "4", "--steps", "3", "--device", "cpu"]) == 0
    assert {path.name for path in (tmp_path / "runs/samples").glob("*.png")} == {
        *(f"{number:06d}.png" for number in range(4)),
        "grid.png",
    }
    assert np.unique([path.read_bytes() for path in (tmp_path / "runs/samples").glob("0*.png")]).size == 4
