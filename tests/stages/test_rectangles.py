"""Images of 24 x 40 pixels in every stage: both trainings, latents, samples, evaluation, and errors."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluate_models import color_network, make_generator
from PIL import Image
from tiny_teacher import tiny_teacher

from vavae.cli import run
from vavae.config import parse_command_line
from vavae.data import LatentDataset, center_crop, demo_pixels, to_tensor
from vavae.data.images import ImagesConfig
from vavae.evaluation import validation
from vavae.evaluation.images import npz_images
from vavae.models import Generator, Tokenizer
from vavae.stages import encode, evaluate, train_dit, train_tokenizer
from vavae.tokenizer import AutoencoderConfig
from vavae.training.trainer import TrainingConfig

pytestmark = pytest.mark.slow

STAGES: dict[str, Any] = {"train-tokenizer": train_tokenizer, "encode": encode, "train-dit": train_dit}
HEIGHT, WIDTH = 24, 40
DATA = ["--data.size", f"[{HEIGHT}, {WIDTH}]", "--data.holdout", "0.25", "--data.workers", "2"]
TRAINING = [
    "--training.device=cpu", "--training.precision=fp32", "--training.tensorboard=false", "--training.batch_size=4",
    "--training.log_images=4", "--training.ema_decay=0.9", "--training.images=12", "--training.checkpoint_images=4",
]  # fmt: skip
TOKENIZER = [
    "--tokenizer.latent_channels=4", "--tokenizer.base_channels=16", "--tokenizer.channel_multipliers=[1, 1, 2]",
    "--tokenizer.blocks_per_level=1", "--tokenizer.attention_levels=[]", "--objective.adversarial.start_images=4",
    "--objective.adversarial.discriminator.base_channels=8", "--objective.adversarial.discriminator.layers=1",
    "--objective.perceptual.weight=0", *TRAINING,
]  # fmt: skip
TRANSFORMER = ["--transformer.size=S/2", "--transformer.width=32", "--transformer.depth=2", "--transformer.heads=2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write twenty pictures of five shapes in two classes, made of the embedded images."""
    folder, tiles = tmp_path_factory.mktemp("images"), demo_pixels("train")
    for i in range(20):
        rows, columns = [(1, 2), (2, 3), (2, 2), (3, 2), (1, 3)][i % 5]
        part = tiles[6 * i : 6 * i + rows * columns].reshape(rows, columns, 32, 32, 3)
        (folder / f"c{i % 2}").mkdir(exist_ok=True)
        picture = Image.fromarray(part.transpose(0, 2, 1, 3, 4).reshape(32 * rows, 32 * columns, 3))
        picture.save(folder / f"c{i % 2}/{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def asked() -> Iterator[list[dict[str, Any]]]:
    """Replace pretrained networks by small ones; return the options with which teachers are loaded."""
    calls: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> Any:
        calls.append(options)
        return tiny_teacher(input_size=(12, 20))

    with pytest.MonkeyPatch.context() as patch:
        for stage in (train_tokenizer, evaluate):
            patch.setattr(stage, "load_teacher", load)
        for stage in (validation, evaluate):
            patch.setattr(stage, "load_feature_network", color_network)
        patch.setattr(evaluate.of_tokenizer, "perceptual_networks", lambda *_: {})
        yield calls


def commands(images: Path, out: Path) -> dict[str, list[str]]:
    """Return the commands of both trainings, with everything random switched on, and of encoding."""
    trained = f"--tokenizer={out / 'tokenizer/tokenizer'}"
    measured = ["--training.validation_images=8", "--training.preview_images=12", "--frechet.samples=4"]
    reference = [f"--frechet.reference={images}", "--frechet.steps=3", "--sampling.steps=3"]
    return {
        "tokenizer": [
            "train-tokenizer", "--data.images", str(images), *DATA, "--data.crop=random", "--data.flip=true",
            *TOKENIZER, *measured,
        ],
        "latents": ["encode", trained, "--data.images", str(images), *DATA, "--device=cpu"],
        "generator": [
            "train-dit", f"--latents={out / 'latents'}", trained, *TRANSFORMER, *TRAINING, *measured, *reference,
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def recipes(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the recipes of these commands, which write into one folder."""
    out, found = tmp_path_factory.mktemp("path"), {}
    for name, (stage, *options) in commands(images, out).items():
        kind: type[Any] = STAGES[stage].Config
        found[name] = parse_command_line(kind, [*options, f"--output={out / name}"], f"vavae {stage}")
    return found


@pytest.fixture(scope="module")
def path(recipes: dict[str, Any], asked: list[dict[str, Any]]) -> Path:
    """Train a tokenizer, encode, and train a transformer; return the folder."""
    del asked  # the networks that are used
    train_tokenizer.run(recipes["tokenizer"])
    encode.run(recipes["latents"])
    train_dit.run(recipes["generator"])
    return Path(recipes["tokenizer"].output).parent


def test_tokenizer_of_rectangles(path: Path, asked: list[dict[str, Any]]) -> None:
    folder = path / "tokenizer"
    assert asked[0]["image_size"] == (HEIGHT, WIDTH) and asked[0]["input_size"] is None
    assert "  size:\n  - 24\n  - 40\n" in (folder / "recipe.yaml").read_text()
    assert "15 images of 24x40 px" in Tokenizer.from_pretrained(folder / "tokenizer").provenance["images"]
    (preview,) = (folder / "previews").glob("*.png")
    assert Image.open(preview).size == (2 + 8 * (WIDTH + 2), 2 + 2 * (HEIGHT + 2))
    assert "val/frechet" in (folder / "metrics.jsonl").read_text()


def test_cached_features_equal_those_of_the_crops(images: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    del asked  # the teacher that is loaded
    data = ImagesConfig(str(images), (HEIGHT, WIDTH))
    config = train_tokenizer.Config(
        data=data,
        tokenizer=AutoencoderConfig(4, 16, (1, 1, 2), 1, ()),
        teacher=train_tokenizer.TeacherConfig(cache_features=True),
        training=TrainingConfig(device="cpu", precision="fp32"),
    )
    source = data.open("train")
    task = train_tokenizer.TokenizerTask(config, source, tmp_path)
    task.prepare()
    assert task.features is not None
    crops = np.stack([np.asarray(center_crop(source.image(i), (HEIGHT, WIDTH))) for i in (3, 17)])
    # A patch of 4 of an input of 12 x 20 is one of 8 x 8 pixels of the image: 3 x 5 of them, on latents of 6 x 10.
    expected = tiny_teacher(input_size=(12, 20))(to_tensor(crops)).grid
    assert expected.shape == (2, 6, 3, 5)
    expected = F.interpolate(expected, size=(6, 10), mode="bilinear", antialias=True)
    torch.testing.assert_close(task.features.get([3, 17]).float(), expected, atol=2e-3, rtol=2e-3)


def test_latents_equal_those_of_the_crops(path: Path, images: Path) -> None:
    dataset, source = LatentDataset(path / "latents"), ImagesConfig(str(images), 32, holdout=0.25).open("train")
    assert dataset.shape == (4, 6, 10)
    assert json.loads((path / "latents/index.json").read_text())["settings"]["image_size"] == [HEIGHT, WIDTH]
    crops = np.stack([np.asarray(center_crop(source.image(i), (HEIGHT, WIDTH))) for i in range(15)])
    autoencoder = Tokenizer.from_pretrained(path / "tokenizer/tokenizer").autoencoder
    with torch.inference_mode():
        for mirrored in (False, True):
            pixels = to_tensor(np.ascontiguousarray(crops[:, :, ::-1] if mirrored else crops))
            posterior = autoencoder.encode(pixels)
            raw, _ = dataset.get(torch.arange(15), torch.full((15,), mirrored), normalize=False)
            noise = (raw - posterior.mean) / posterior.std
            assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1


def test_generator_of_rectangles(path: Path, tmp_path: Path) -> None:
    folder = path / "generator"
    generator = Generator.from_pretrained(folder / "generator")
    assert generator.latent_shape == (4, 6, 10) and generator.image_size == (HEIGHT, WIDTH)
    assert "val/frechet" in (folder / "metrics.jsonl").read_text()
    out = tmp_path / "samples"
    assert run(["sample", f"--generator={folder / 'generator'}", "--count=5", f"--output={out}", "--npz"]) == 0
    assert {Image.open(file).size for file in out.glob("0*.png")} == {(WIDTH, HEIGHT)}
    grid = np.asarray(Image.open(out / "grid.png"))
    assert grid.shape == (HEIGHT + 4, 5 * (WIDTH + 2) + 2, 3)
    assert (grid[2 : 2 + HEIGHT, 2 + WIDTH + 2 :][:, :WIDTH] == np.asarray(Image.open(out / "000001.png"))).all()
    stored = npz_images(out / "samples.npz")
    assert stored is not None and (stored.count, stored.size) == (5, (HEIGHT, WIDTH))


def records(path: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads(path.read_text())}


def test_evaluation_of_a_tokenizer(path: Path, images: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    output = tmp_path / "tokenizer.json"
    model = str(path / "tokenizer/tokenizer")
    options = ["--tsne_seeds=0", "--teacher=tiny", f"--features={tmp_path / 'features'}", f"--output={output}"]
    data = ["--data.images", str(images), *DATA, "--device=cpu"]
    assert run(["evaluate", "tokenizer", model, *data, *options]) == 0
    found = records(output)
    assert {"PSNR", "SSIM", "rFID", "interpolation FID", "linear probe"} <= found.keys()
    assert "alignment: cosine after the best linear map" in found
    assert all(entry["protocol"]["image_size"] == [HEIGHT, WIDTH] for entry in found.values())
    assert asked[-1] == {"input_size": None, "image_size": (HEIGHT, WIDTH)}
    # Compute one number independently.
    source = ImagesConfig(str(images), 32, holdout=0.25).open("test")
    crops = np.stack([np.asarray(center_crop(source.image(i), (HEIGHT, WIDTH))) for i in range(5)])
    tokenizer = Tokenizer.from_pretrained(model)
    decoded = tokenizer.decode(tokenizer.encode(to_tensor(crops))).clamp(-1, 1)
    rebuilt = (decoded * 127.5 + 127.5).round().permute(0, 2, 3, 1).numpy()
    errors = ((rebuilt - crops.astype(np.float64)) ** 2).mean((1, 2, 3))
    strict = next(e for e in json.loads(output.read_text()) if e["name"] == "PSNR")
    assert strict["value"] == pytest.approx(float((10 * np.log10(255**2 / errors)).mean()), abs=0.01)
    protocols = [entry["protocol"] for entry in json.loads(output.read_text()) if entry["name"] == "PSNR"]
    said = {protocol["convention"]: protocol["preprocessing"].partition(";")[0] for protocol in protocols}
    assert said == {"strict": "ADM centre crop", "published": "resized until it covers both sides, centre crop"}


def test_evaluation_of_samples(
    path: Path, images: Path, asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del asked  # the feature network that is used
    options = ["--metrics=[frechet]", f"--features={tmp_path / 'features'}", "--device=cpu"]
    model, data = str(path / "generator/generator"), ["--data.images", str(images)]
    output = tmp_path / "generator.json"
    few = ["--count=6", "--steps=3"]
    generated = ["evaluate", "generator", model, *data, *options, *few]
    assert run([*generated, *DATA, f"--output={output}"]) == 0
    assert records(output)["FID"]["protocol"]["image_size"] == [HEIGHT, WIDTH]
    for size, shown in (("24", "24"), ("40", "40"), ("[40, 24]", "40x24")):
        assert run([*generated, "--data.size", size]) == 2
        refused = f"images must have the size of the reference, {shown} px (data.size), got 24x40 px"
        assert refused in capsys.readouterr().err
    # The same as files, as an npz, and as the reference itself.
    samples = tmp_path / "samples"
    drawn = [f"--generator={model}", "--count=6", "--steps=3", f"--output={samples}", "--npz", "--device=cpu"]
    assert run(["sample", *drawn]) == 0
    for stored in (samples, samples / "samples.npz"):
        assert run(["evaluate", "samples", str(stored), *data, *options, *DATA, f"--output={output}"]) == 0
        assert records(output)["FID"]["protocol"]["image_size"] == [HEIGHT, WIDTH]
    reference = ["--reference", str(samples / "samples.npz")]
    assert run(["evaluate", "generator", model, *reference, *options, *few, f"--output={output}"]) == 0
    assert records(output)["FID"]["value"] == pytest.approx(0, abs=1e-4)
    square = tmp_path / "square"
    make_generator().save_pretrained(square)
    assert run(["evaluate", "generator", str(square), *reference, *options, *few]) == 2
    assert "images must have the size of the reference, 24x40 px (data.size), got 32 px" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tokenizer", "generator"])
def test_resume_is_exact(
    name: str, path: Path, recipes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage: Any = {"tokenizer": train_tokenizer, "generator": train_dit}[name]
    task: Any = {"tokenizer": train_tokenizer.TokenizerTask, "generator": train_dit.TransformerTask}[name]
    whole, stopped = path / name, tmp_path / "stopped"
    recipe, original = replace(recipes[name], output=str(stopped)), task.step

    def step(self: Any, batch: Any, images_seen: int, scale: float) -> dict[str, torch.Tensor]:
        if images_seen == 8:
            raise KeyboardInterrupt
        return original(self, batch, images_seen, scale)  # type: ignore[no-any-return]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(task, "step", step)
        stage.run(recipe)
    assert not (stopped / name).exists() and any((stopped / "checkpoints").glob("images-*"))
    stage.run(recipe)
    assert (whole / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()
    files = [path.relative_to(whole / name) for path in (whole / name).rglob("*.safetensors")]
    assert len(files) == {"tokenizer": 2, "generator": 3}[name]
    assert all((whole / name / file).read_bytes() == (stopped / name / file).read_bytes() for file in files)


MISTAKES = {
    "factor": (
        ["train-tokenizer", "--data.size=[24, 42]", *TOKENIZER], "data.size must be a multiple", "factor 4, got 24x42"
    ),
    "one number": (["encode", "--data.size=[24]"], "data.size must be a whole number, or 2 values", "got [24]"),
    "nothing": (["encode", "--data.size=[0, 32]"], "size must be at least 8 pixels", "got 0x32"),
    "frontier": (["frontier", "--data.size=[24, 40]"], "data.size must be a square for 'vavae frontier'", "got 24x40"),
    "demo": (["demo", "--size=[24, 40]"], "size must be a whole number", "got [24, 40]"),
    "LPIPS": (
        ["train-tokenizer", *TOKENIZER, "--data.size=[8, 40]", "--objective.perceptual.weight=1"],
        "data.size must be at least 16 pixels a side for objective.perceptual", "got 8x40",
    ),
    "discriminator": (
        ["train-tokenizer", *TOKENIZER, "--data.size=[16, 40]", "--objective.adversarial.discriminator.layers=3"],
        "data.size must be at least 24 pixels a side for objective.adversarial.discriminator.layers 3", "got 16x40",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_sizes_that_do_not_fit_are_one_line(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, *parts = MISTAKES[mistake]
    assert run([*arguments, f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and all(part in error for part in parts)
    assert not (tmp_path / "out").exists()


def test_sizes_that_do_not_fit_the_models_are_refused(
    path: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = f"--tokenizer={path / 'tokenizer/tokenizer'}"

    def refused(*arguments: str) -> str:
        assert run([*arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        return error

    data, new = ["--data.images", str(images), "--device=cpu"], f"--output={tmp_path / 'new'}"
    error = refused("encode", trained, *data, "--data.size=[24, 42]", new)
    assert "data.size must be a multiple of the tokenizer's factor 4, got 24x42" in error
    error = refused("evaluate", "tokenizer", str(path / "tokenizer/tokenizer"), *data, "--data.size=[24, 42]")
    assert "data.size must be a multiple of the tokenizer's factor 4, got 24x42" in error
    error = refused(*commands(images, path)["generator"], "--transformer.patch_size=4", new)
    assert f"a multiple of the transformer's patch 4, got 6x10 in {path / 'latents'}" in error
    # Latents of another size in the same folder, and a run of another size.
    kept = tmp_path / "latents"
    shutil.copytree(path / "latents", kept)
    error = refused("encode", trained, *data, "--data.holdout=0.25", "--data.size=24", f"--output={kept}")
    assert "data.size [24, 40], not 24" in error
    error = refused(*commands(images, path)["tokenizer"], "--data.size=24", f"--output={path / 'tokenizer'}")
    assert "data.size = [24, 40], not 24" in error
