"""Each published form of RAE's files becomes images, by the commands alone."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from published_files import same_weights
from rae_files import decoder, ditdh, published_rae, stat, training_checkpoint

from vavae.checkpoints.statistics import read_statistics
from vavae.cli import run
from vavae.errors import UserError
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.stages.initial import load_initial

GIVEN = ["--teacher", "teacher", "--statistics", "stat.pt", "--heads", "2"]


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """Write the decoder, its statistics and its teacher into the working folder."""
    monkeypatch.chdir(tmp_path)
    return published_rae(tmp_path)


@pytest.mark.slow
def test_every_published_form_gives_images(first: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(training_checkpoint(decoder(), "decoder."), "ep-last.pt")
    torch.save(training_checkpoint(ditdh()), "training.pt")
    torch.save(ditdh().state_dict(), "stage2_model.pt")
    first.save_diffusers("there")
    for source, name, given in (("model.pt", "a", GIVEN), ("ep-last.pt", "b", GIVEN), ("there", "c", [])):
        assert run(["convert", source, name, *given]) == 0
    shown = capsys.readouterr().out
    assert "loaded from 'ema'\n" in shown and "  left out model: weights that are not averaged\n" in shown
    assert "teacher teacher at 224 x 224 pixels, as its grid needs\n" in shown
    drawn = []
    for source, tokenizer in (("stage2_model.pt", "a"), ("training.pt", "b"), ("training.pt", "c")):
        output = f"generator-{tokenizer}"
        assert run(["convert", source, output, "--tokenizer", tokenizer]) == 0
        assert same_weights(Generator.from_pretrained(output).transformer, ditdh())
        assert run(["sample", output, "--labels", "0,2", "--steps", "3", "--output", f"samples-{tokenizer}"]) == 0
        drawn.append([Image.open(f"samples-{tokenizer}/{i:06d}.png").tobytes() for i in range(2)])
    assert drawn[0] == drawn[1] == drawn[2]
    assert Image.open("samples-a/000001.png").size == (32, 32) and drawn[0][0] != drawn[0][1]


@pytest.mark.slow
def test_other_commands_take_the_tokenizer(first: Tokenizer) -> None:
    assert run(["convert", "model.pt", "tokenizer", *GIVEN]) == 0
    data = ["--data.images", "demo", "--data.size", "32", "--data.limit", "4"]
    assert run(["encode", "--tokenizer", "tokenizer", "--output", "latents", *data]) == 0
    assert run(["evaluate", "tokenizer", "tokenizer", "--network", "null", *data]) == 0


def test_a_transformer_with_its_decoder_and_back(first: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(ditdh().state_dict(), "stage2_model.pt")
    assert run(["convert", "model.pt", "tokenizer", *GIVEN]) == 0
    assert run(["convert", "stage2_model.pt", "ours", "--tokenizer", "tokenizer"]) == 0
    assert Generator.from_pretrained("ours").sampling == SamplingConfig("euler", 50, 0.5, end=0.999, guidance_start=0.0)
    assert run(["convert", "ours", "back", "--to", "published"]) == 0
    assert "the sampling settings are not taken over" in capsys.readouterr().out
    assert same_weights(torch.load("back/stage2_model.pt"), ditdh())
    assert same_weights(torch.load("back/tokenizer/model.pt"), decoder())
    assert run(["convert", "stage2_model.pt", "direct", "--tokenizer", "model.pt", *GIVEN]) == 0
    assert same_weights(Generator.from_pretrained("direct").tokenizer.autoencoder.decoder, decoder())  # type: ignore[union-attr]
    assert Generator.from_pretrained("direct").tokenizer.autoencoder.decoder.shape["heads"] == 2  # type: ignore[union-attr]
    assert run(["convert", "stage2_model.pt", "no", "--teacher", "teacher"]) == 2
    assert "teacher: is for decoders of representation autoencoders" in capsys.readouterr().err


def test_statistics_alone(first: Tokenizer) -> None:
    assert run(["convert", "stat.pt", "statistics.safetensors"]) == 0
    assert run(["convert", "statistics.safetensors", "latents_stats.pt", "--to", "published"]) == 0
    for file in ("statistics.safetensors", "latents_stats.pt"):
        assert read_statistics(file).equals(first.statistics)


def test_another_resolution_is_refused(first: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(stat(8), "small.pt")
    given = ["--teacher", "teacher", "--statistics", "small.pt", "--heads", "2"]
    assert run(["convert", "model.pt", "tokenizer", *given]) == 2
    assert "latent statistics must be per channel or of 16 x 16 positions, got 8 x 8" in capsys.readouterr().err
    generator = Generator(ditdh(), first)
    with pytest.raises(UserError, match="size must be 32, the only one of the tokenizer, got 64"):
        generator([1], size=64)


def test_a_decoder_is_a_starting_point(first: Tokenizer) -> None:
    with torch.no_grad():
        first.autoencoder.decoder.decoder_pred.weight.zero_()
    objective = SimpleNamespace(discriminator=None, alignment=None)
    assert "autoencoder from model.pt" in load_initial("model.pt", first.autoencoder, objective)  # type: ignore[arg-type]
    assert same_weights(first.autoencoder.decoder, decoder())
