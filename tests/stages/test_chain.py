"""The README's commands on own images, made small: tokenizer, latents, transformer, samples, evaluation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vavae.cli import run
from vavae.data import LatentDataset, load_images, open_images
from vavae.data.images import ImagesConfig
from vavae.models import Tokenizer
from vavae.stages import encode

pytestmark = pytest.mark.slow

SMALL = ["--training.log_images", "8", "--training.tensorboard", "false", "--training.device", "cpu"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    source = open_images("demo", "train")
    for i in range(60):
        label = folder / source.class_names[source.label(i)]
        label.mkdir(exist_ok=True)
        source.image(i).save(label / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def chain(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tokenizer, encode, and train a transformer; return the folder."""
    out = tmp_path_factory.mktemp("chain")
    tokenizer, latents, generator = (str(out / name) for name in ("tokenizer", "latents", "generator"))
    data = ["--data.images", str(images), "--data.size", "32", "--data.holdout", "0.1"]
    budget = ["--training.images", "16", "--training.batch_size", "4", *SMALL]
    start = ["--objective.adversarial.start_images", "8", "--training.preview_images", "16"]
    assert run(["train-tokenizer", "small/tokenizer", "--output", tokenizer, *data, *budget, *start]) == 0
    trained = ["--tokenizer", f"{tokenizer}/tokenizer"]
    assert run(["encode", *trained, "--output", latents, *data, "--device", "cpu", "--shard_size", "25"]) == 0
    transformer = ["--transformer.width", "64", "--transformer.depth", "2", "--transformer.heads", "2"]
    arguments = ["--latents", latents, *trained, "--output", generator, *transformer, *budget]
    assert run(["train-dit", "small/transformer", *arguments, "--training.preview_images", "16"]) == 0
    return out


def test_files_of_run_folders(chain: Path) -> None:
    for stage in ("tokenizer", "generator"):
        folder = chain / stage
        for name in ("recipe.yaml", "versions.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "previews"):
            assert (folder / name).exists(), name
        assert [json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [8, 16]


def test_folders_record_their_images(chain: Path, images: Path) -> None:
    found = json.loads((chain / "tokenizer/images.json").read_text())["images"]
    assert (found["images"], found["from"]) == (54, f"folder {images}") and len(found["classes"]) == 10
    assert found["notes"] == ["54 of 60 images, by data.holdout 0.1"]
    assert json.loads((chain / "latents/images.json").read_text())["images"] == found
    latents = json.loads((chain / "generator/images.json").read_text())["latents"]
    assert (latents["images"], latents["from"]) == (54, f"folder {chain / 'latents'}")
    assert latents["classes"] == found["classes"]


def test_latents_and_statistics(chain: Path, images: Path) -> None:
    """Compare with plain computations: the posterior of each image, and statistics over all stored latents."""
    dataset = LatentDataset(chain / "latents")
    source = ImagesConfig(str(images), 32, holdout=0.1).open("train")
    assert len(dataset) == len(source) == 54 and len(list((chain / "latents").glob("*.safetensors"))) == 4
    raw, labels = dataset.get(torch.arange(54), normalize=False)
    assert labels.tolist() == [source.label(i) for i in range(54)]
    stored = torch.cat([load_file(p)["latents"] for p in sorted((chain / "latents").glob("latents_*.safetensors"))])
    mean, std = stored.double().mean((0, 2, 3)), stored.double().transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(dataset.statistics.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dataset.statistics.std.double(), std, rtol=1e-5, atol=1e-6)
    model = Tokenizer.from_pretrained(chain / "tokenizer/tokenizer").autoencoder
    with torch.inference_mode():
        posterior = model.encode(load_images(source, range(54), 32))
    # a stored latent is one sample: mean + std · noise with standard normal noise
    noise = (raw - posterior.mean) / posterior.std
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02


def test_encoding_in_other_batches(chain: Path, images: Path, tmp_path: Path) -> None:
    arguments = [
        "--tokenizer", str(chain / "tokenizer/tokenizer"),
        "--data.images", str(images), "--data.size", "32", "--data.holdout", "0.1",
        "--device", "cpu", "--shard_size", "25", "--batch_size", "7", "--output", str(tmp_path / "latents"),
    ]  # fmt: skip
    assert run(["encode", *arguments]) == 0
    one, other = LatentDataset(chain / "latents"), LatentDataset(tmp_path / "latents")
    every = torch.arange(54)
    for flip in (torch.zeros(54, dtype=torch.bool), torch.ones(54, dtype=torch.bool)):
        a, b = (d.get(every, flip)[0] for d in (one, other))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one.get(every)[0], one.get(every, torch.ones(54, dtype=torch.bool))[0], atol=0.1)


def test_encoding_with_another_seed_is_refused(
    chain: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data.images", str(images), "--data.size", "32", "--data.holdout", "0.1", "--device", "cpu"]
    tokenizer = ["--tokenizer", str(chain / "tokenizer/tokenizer"), "--output", str(chain / "latents")]
    assert run(["encode", *arguments, *tokenizer, "--seed", "3"]) == 2
    assert "seed" in capsys.readouterr().err


def test_encoding_replaces_damaged_shards_only(chain: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    config = encode.Config(
        tokenizer=str(chain / "tokenizer/tokenizer"),
        output=str(out),
        data=ImagesConfig(str(images), 32, holdout=0.1),
        shard_size=25,
        device="cpu",
    )
    shutil.copytree(chain / "latents", out)
    (out / "index.json").unlink()
    shards = sorted(out.glob("latents_*.safetensors"))
    kept = {p.name: p.stat().st_mtime_ns for p in shards}
    shards[1].write_bytes(shards[1].read_bytes()[:-1])  # damaged: made again
    dataset = encode.run(config)
    dataset.verify()
    made_again = [p.name for p in sorted(out.glob("latents_*.safetensors")) if p.stat().st_mtime_ns != kept[p.name]]
    assert made_again == [shards[1].name]


def test_samples_and_evaluation(chain: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = str(chain / "generator/generator")
    out = tmp_path / "samples"
    few = ["--steps", "4", "--device", "cpu"]
    assert run(["sample", "--generator", generator, "--count", "5", "--output", str(out), *few]) == 0
    before = (out / "000002.png").stat().st_mtime_ns
    (out / "000004.png").unlink()
    assert run(["sample", "--generator", generator, "--count", "7", "--output", str(out), *few]) == 0
    assert len(list(out.glob("0*.png"))) == 7 and (out / "000002.png").stat().st_mtime_ns == before
    assert run(["sample", "--generator", generator, "--seed", "1", "--output", str(out), *few]) == 2
    assert "another seed" in capsys.readouterr().err
    record = tmp_path / "tokenizer.json"
    data = ["--data.images", str(images), "--data.size", "32", "--data.holdout", "0.3", "--device", "cpu"]
    network = ["--network", "teacher:dinov2-small-focus@56"]
    arguments = ["tokenizer", str(chain / "tokenizer/tokenizer"), *data, *network, "--output", str(record)]
    assert run(["evaluate", *arguments]) == 0
    names = {entry["name"] for entry in json.loads(record.read_text())}
    assert {"PSNR", "SSIM", "LPIPS", "linear probe"} <= names
