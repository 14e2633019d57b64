"""A representation autoencoder through the commands: decoder, latents, DiT^DH, samples, evaluation, resumption."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_vit import write_tiny_dino, write_tiny_dinov2

import vavae
from vavae.cli import run
from vavae.config import parse_command_line
from vavae.data import LatentDataset
from vavae.errors import UserError
from vavae.models import RepresentationAutoencoder
from vavae.models.representation import RepresentationConfig
from vavae.stages import train_tokenizer
from vavae.stages.train_tokenizer import Config, TokenizerTask
from vavae.teachers import load_teacher
from vavae.teachers.config import TeacherConfig

pytestmark = pytest.mark.slow

DATA = ["--data.images=demo", "--data.size=32", "--data.limit=24"]
BUDGET = ["--training.images=24", "--training.batch_size=4", "--training.log_images=8", "--training.tensorboard=false"]
TRAIN = [
    *["train-tokenizer", *DATA, *BUDGET, "--training.checkpoint_images=12", "--teacher.input_size=16"],
    *["--representation.size=B", "--representation.patch_size=8", "--representation.width=32"],
    *["--representation.depth=2", "--representation.heads=2", "--representation.mlp_width=64"],
    *["--objective.alignment.enabled=false", "--objective.perceptual.weight=0", "--optimizer.learning_rate=1e-3"],
    *["--objective.adversarial.discriminator.kind=dino", "--objective.adversarial.augment=true"],
    *["--objective.adversarial.discriminator_start_images=8", "--objective.adversarial.start_images=16"],
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def recipe(teacher: str, dino: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the recipe of the decoder."""
    networks = [f"--teacher.name={teacher}", f"--objective.adversarial.discriminator.dino={dino}"]
    more = ["--teacher.cache_features=true", f"--output={tmp_path_factory.mktemp('rae') / 'decoder'}"]
    return parse_command_line(Config, [*TRAIN[1:], *networks, *more], "vavae train-tokenizer")


@pytest.fixture(scope="module")
def chain(recipe: Config) -> Path:
    """Train a decoder, encode, and train a transformer with a wide head; return the folder."""
    out = Path(recipe.output).parent
    train_tokenizer.run(recipe)
    tokenizer = f"--tokenizer={out / 'decoder/tokenizer'}"
    assert run(["encode", *DATA, tokenizer, f"--output={out / 'latents'}", "--shard_size=10"]) == 0
    shape = ["size=DiTDH-S", "width=16", "depth=1", "heads=2", "head_width=64", "head_depth=1", "head_heads=2"]
    flow = ["--flow.prediction=data", "--flow.space=velocity", "--flow.floor=0.05", "--flow.direction_weight=0"]
    transformer = [f"--transformer.{setting}" for setting in shape]
    latents = f"--latents={out / 'latents'}"
    generator = f"--output={out / 'generator'}"
    preview = "--training.preview_images=24"
    assert run(["train-dit", latents, tokenizer, *transformer, *flow, *BUDGET, generator, preview]) == 0
    return out


def test_folder_names_its_teacher_and_holds_the_decoder_only(chain: Path, teacher: str) -> None:
    folder = chain / "decoder/tokenizer"
    config = json.loads((folder / "config.json").read_text())
    assert config["teacher"]["name"] == teacher and config["teacher"]["input_size"] == [16, 16]
    assert config["representation"]["width"] == 32 and config["representation"]["noise"] == 0.8
    names = load_file(folder / "model.safetensors").keys()
    assert "decoder_pos_embed" in names and not any(name.startswith("encoder") for name in names)


def test_latents_are_the_teachers_and_statistics_are_per_position(chain: Path, teacher: str) -> None:
    dataset = LatentDataset(chain / "latents")
    assert dataset.shape == (32, 4, 4) and dataset.statistics.mean.shape == (32, 4, 4)
    stored = torch.cat([load_file(p)["latents"] for p in sorted((chain / "latents").glob("latents_*.safetensors"))])
    torch.testing.assert_close(dataset.statistics.mean, stored.mean(0))
    torch.testing.assert_close(dataset.statistics.std, stored.std(0))
    tokenizer = vavae.Tokenizer.from_pretrained(chain / "decoder/tokenizer")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    encoder = vavae.teachers.LatentEncoder(load_teacher(teacher, input_size=16))
    torch.testing.assert_close(tokenizer.statistics.denormalize(tokenizer.encode(images)), encoder(images))
    own = vavae.Tokenizer.from_pretrained(chain / "decoder/tokenizer").statistics
    torch.testing.assert_close(own.mean, dataset.statistics.mean, rtol=1e-4, atol=1e-3)  # one encodes in float16


def test_statistics_of_the_decoder_are_those_of_the_kept_latents(chain: Path) -> None:
    (kept,) = (chain / "decoder/teacher-features").rglob("*.safetensors")
    latents = load_file(kept)["features"].double()
    own = vavae.Tokenizer.from_pretrained(chain / "decoder/tokenizer").statistics
    torch.testing.assert_close(own.mean.double(), latents.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own.std.double(), latents.std(0), rtol=1e-6, atol=1e-6)


def test_both_clocks_of_the_discriminator(chain: Path) -> None:
    lines = [json.loads(line) for line in (chain / "decoder/metrics.jsonl").read_text().splitlines()]
    first, second, third = lines
    assert first["discriminator"] == 0 and second["discriminator"] > 0
    assert second["adversarial_weight"] == 0 and third["adversarial_weight"] > 0


def test_generator_samples_with_the_floor_of_its_training(chain: Path) -> None:
    generator = vavae.Generator.from_pretrained(chain / "generator/generator")
    assert isinstance(generator.transformer, vavae.DiTDH)
    assert generator.transformer.config.widths == (16, 64)
    assert (generator.prediction, generator.floor) == ("data", 0.05)
    images = generator([0, 1], seed=3, output_type="pt", steps=5)
    assert images.shape == (2, 3, 32, 32) and bool(images.isfinite().all())
    assert isinstance(vavae.DiTDH.from_pretrained(chain / "generator/generator"), vavae.DiTDH)
    with pytest.raises(UserError, match="holds a DiTDH, not a LightningDiT"):
        vavae.LightningDiT.from_pretrained(chain / "generator/generator")


def test_sample_and_evaluate_take_the_folders(chain: Path) -> None:
    generator, tokenizer = str(chain / "generator/generator"), str(chain / "decoder/tokenizer")
    assert run(["sample", f"--generator={generator}", "--count=2", "--steps=3", f"--output={chain / 'samples'}"]) == 0
    assert len(list((chain / "samples").rglob("*.png"))) >= 2
    source = vavae.data.open_images("demo", "train")
    (chain / "images").mkdir()
    for i in range(12):
        source.image(i).save(chain / "images" / f"{i}.png")
    data = [f"--data.images={chain / 'images'}", "--data.size=32"]
    evaluation = ["evaluate", "tokenizer", tokenizer, *data, f"--output={chain / 'evaluation.json'}"]
    assert run([*evaluation, "--network=null", "--tsne_seeds=0", f"--features={chain / 'features'}"]) == 0
    names = {record["name"] for record in json.loads((chain / "evaluation.json").read_text())}
    assert "PSNR" in names


def test_interrupted_training_ends_bit_for_bit(
    chain: Path, recipe: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, step = replace(recipe, output=str(tmp_path / "run")), TokenizerTask.step

    def interrupted(self: TokenizerTask, batch: Any, images_seen: int, scale: float) -> dict[str, torch.Tensor]:
        if images_seen == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, images_seen, scale)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="to resume"):
        patch.setattr(TokenizerTask, "step", interrupted)
        train_tokenizer.run(again)
    train_tokenizer.run(again)
    ours = load_file(tmp_path / "run/tokenizer/model.safetensors")
    for name, value in load_file(chain / "decoder/tokenizer/model.safetensors").items():
        assert torch.equal(value, ours[name]), name


def test_what_does_not_fit_is_refused_before_the_work(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = str(chain / "decoder/tokenizer")
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
    images = ["--metrics=[]", f"--data.images={tmp_path}", "--data.size=64", "--split=train"]
    assert run(["evaluate", "tokenizer", tokenizer, *images]) == 2
    assert "data.size must be 32 x 32, the 4 x 4 patches of the teacher" in capsys.readouterr().err
    given = [f"--latents={chain / 'latents'}", f"--tokenizer={tokenizer}", f"--output={tmp_path / 'run'}"]
    assert run(["train-dit", *given, "--transformer.size=DiTDH-S", "--sampling.shift=dimension", *BUDGET]) == 2
    assert "'dimension' needs at least 4,096 numbers" in capsys.readouterr().err


def test_another_teacher_is_refused(chain: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tokenizer"
    vavae.Tokenizer.from_pretrained(chain / "decoder/tokenizer").save_pretrained(copy, with_teacher=True)
    with_own = vavae.Tokenizer.from_pretrained(copy)
    assert with_own.fingerprint() == vavae.Tokenizer.from_pretrained(chain / "decoder/tokenizer").fingerprint()
    write_tiny_dinov2(copy / "teacher", seed=1)
    with pytest.raises(UserError, match="must have the weights of the training"):
        vavae.Tokenizer.from_pretrained(copy)


def test_wrong_settings_are_refused() -> None:
    representation = RepresentationConfig("B", 4)
    with pytest.raises(UserError, match=r"objective\.alignment\.enabled must be false with representation"):
        Config(representation=representation, teacher=TeacherConfig("dinov2-small"))
    with pytest.raises(UserError, match=r"representation\.size must be one of B, L, XL, got 'M'"):
        RepresentationConfig("M")


def test_image_size_must_fit_the_grid(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--data.size=16", f"--teacher.name={teacher}", f"--output={tmp_path}"]
    assert run([*[part for part in TRAIN if not part.startswith("--data.size")], *wrong]) == 2
    assert "data.size must be 32 x 32, the 4 x 4 patches of the teacher times" in capsys.readouterr().err


def test_state_dict_holds_the_decoder_only(teacher: str) -> None:
    model = RepresentationConfig("B", 4, 16, 1, 2, 16).build(load_teacher(teacher, input_size=16))
    assert isinstance(model, RepresentationAutoencoder)
    assert all(name.startswith("decoder.") for name in model.state_dict())
    model.load_state_dict(model.state_dict())
