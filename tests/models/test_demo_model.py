"""The model that comes with the package: small, whole, offline, and as good as its card says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vavae
from vavae.checkpoints.locations import SHIPPED, resolve
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


def test_it_is_small_and_holds_nothing_but_safe_files() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}


def test_its_fid_is_the_one_that_was_measured_with_its_defaults(generator: Generator) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-22-demo-model-fid.json"
    (record,) = json.loads(results.read_text())["records"]
    protocol, defaults = record["protocol"], generator.sampling
    assert record["name"] == "FID" and f"images: {record['value']:.1f}." in CARD
    assert (protocol["samples"], protocol["reference_samples"]) == (5_000, 10_000)
    assert (protocol["steps"], protocol["guidance_scale"]) == (defaults.steps, defaults.guidance_scale)
    assert protocol["checkpoint_hash"] == generator.fingerprint()


def test_it_says_how_it_was_trained(generator: Generator) -> None:
    seen = [model.provenance["images_seen"] for model in (generator.tokenizer, generator)]
    assert all(f"{count:,}" in CARD for count in seen)
    assert generator.tokenizer.provenance["teacher"] == "dinov2-small-focus"
    for word in ("CIFAR-10", "license", "recipes/demo-model"):
        assert word in CARD
    assert generator.class_names[3] == "cat" and generator.num_classes == 10


def test_reconstructions_are_as_good_as_the_card_says(generator: Generator) -> None:
    images = to_tensor(demo_pixels("test"))
    values = [psnr(generator.tokenizer.reconstruct(part), part) for part in images.split(250)]
    told = float(re.search(r"PSNR \| ([\d.]+) dB", CARD)[1])  # type: ignore[index]
    assert torch.cat(values).mean().item() == pytest.approx(told, abs=0.02)


def test_samples_are_of_the_class_that_was_asked_for(generator: Generator) -> None:
    """A linear classifier of real images' latents finds the class of samples far more often than one time in ten."""
    images = DemoImages("train")
    chosen = torch.arange(0, len(images), 4)
    known = generator.tokenizer.encode(to_tensor(images.pixels[chosen]))
    asked = [label for label in range(10) for _ in range(8)]
    drawn = generator(asked, seed=1, sampling=replace(generator.sampling, steps=15))
    latents = generator.tokenizer.encode(drawn)
    labels = torch.tensor(images.labels)[chosen]
    assert linear_probe(known, labels, latents, torch.tensor(asked)) > 0.35


def test_a_local_model_of_that_name_comes_first_and_other_folders_do_not(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve("demo") == FOLDER == SHIPPED["demo"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "picture.png").write_bytes(b"")
    assert resolve("demo") == FOLDER
    generator.tokenizer.save_pretrained("demo")
    assert resolve("demo") == Path("demo")
    with pytest.raises(UserError, match="demo: holds a tokenizer, not a generator"):
        Generator.from_pretrained("demo")


def test_sampling_needs_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["sample", "--count", "4", "--steps", "3", "--device", "cpu"]) == 0
    assert {path.name for path in (tmp_path / "runs/samples").glob("*.png")} == {
        *(f"{number:06d}.png" for number in range(4)),
        "grid.png",
    }
    assert np.unique([path.read_bytes() for path in (tmp_path / "runs/samples").glob("0*.png")]).size == 4
