"""`vavae convert` between all forms; round trips keep every weight exactly."""

import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from machine_faults import limited
from published_files import (
    MAR_VAE,
    SD_VAE,
    SMALL_F16,
    VA_VAE,
    autoencoder,
    golden_dit,
    lightning_checkpoint,
    same_weights,
    statistics,
    training_checkpoint,
)
from safetensors.torch import load_file, save_file

from vavae.checkpoints.reading import read_checkpoint
from vavae.checkpoints.statistics import read_statistics
from vavae.cli import run
from vavae.commands import convert
from vavae.commands.convert import Config
from vavae.data import LatentDataset, latent_writer
from vavae.errors import UserError
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.tokenizer import AutoencoderConfig, LatentStatistics
from vavae.transformer import LightningDiT


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save(statistics(8), "latents_stats.pt")
    return tmp_path


def vavae(*arguments: str) -> int:
    return run([str(argument) for argument in arguments])


@pytest.mark.slow
@pytest.mark.parametrize("config", [VA_VAE, MAR_VAE, SD_VAE], ids=["va", "mar", "sd"])
def test_tokenizer_round_trip_is_exact(config: AutoencoderConfig) -> None:
    """Convert published -> ours -> diffusers -> ours -> published."""
    model, projection = autoencoder(config)
    torch.save(lightning_checkpoint(model, projection), "published.ckpt")
    channels = config.latent_channels
    torch.save(statistics(channels), "stats.pt")
    assert vavae("convert", "published.ckpt", "ours", "--statistics", "stats.pt") == 0
    assert vavae("convert", "ours", "exported", "--to", "diffusers") == 0
    assert vavae("convert", "exported", "again") == 0
    assert vavae("convert", "again", "back", "--to", "published") == 0
    assert same_weights(Tokenizer.from_pretrained("again").autoencoder, model)
    assert same_weights(dict(read_checkpoint(Path("back/autoencoder.pt"))), model)
    stored = read_checkpoint(Path("back/latents_stats.pt"))
    for name, value in statistics(channels).items():
        assert torch.equal(stored[name], value)
        assert stored[name].shape == (1, channels, 1, 1)
    # The folder of published files can be read directly.
    assert same_weights(Tokenizer.from_pretrained("back").autoencoder, model)


def test_native_weights_in_float16(capsys: pytest.CaptureFixture[str]) -> None:
    model, projection = autoencoder(SMALL_F16)
    torch.save(lightning_checkpoint(model, projection), "published.ckpt")
    torch.save(statistics(8), "stats.pt")
    assert vavae("convert", "published.ckpt", "half", "--statistics", "stats.pt", "--dtype", "float16") == 0
    stored = load_file("half/model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert same_weights(Tokenizer.from_pretrained("half").autoencoder, {k: v.float() for k, v in stored.items()})
    capsys.readouterr()
    assert vavae("convert", "half", "no", "--to", "diffusers", "--dtype", "float16") == 2
    assert "dtype must be float32 for diffusers files, got float16" in capsys.readouterr().err
    assert vavae("convert", "stats.pt", "s.safetensors", "--dtype", "float16") == 2
    assert "dtype must be float32 for statistics, got float16" in capsys.readouterr().err


@pytest.mark.slow
def test_generator_round_trip_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = golden_dit()
    tokenizer, _ = autoencoder(SMALL_F16)
    torch.save(training_checkpoint(model), "published.pt")
    torch.save(tokenizer.state_dict(), "vavae.pt")
    given = ("--tokenizer", "vavae.pt", "--statistics", "latents_stats.pt")
    assert vavae("convert", "published.pt", "ours", *given) == 0
    shown = capsys.readouterr().out
    assert "published.pt:\n  LightningDiT depth 2, width 64, 4 heads, patch 1 for latents 8x4x4, 10 classes\n" in shown
    assert "loaded from 'ema'\n  left out model: weights that are not averaged\n" in shown
    assert shown.endswith("generator: ours\n")
    assert vavae("convert", "ours", "exported", "--to", "diffusers") == 0
    assert vavae("convert", "exported", "again") == 0
    assert vavae("convert", "again", "back", "--to", "published") == 0
    assert "names of classes" not in capsys.readouterr().out  # this one has none
    assert vavae("convert", "demo", "named", "--to", "published") == 0
    assert "published checkpoints have no names of classes: they are not taken over" in capsys.readouterr().out
    again = Generator.from_pretrained("again")
    assert same_weights(again.transformer, model)
    assert same_weights(again.tokenizer.autoencoder, tokenizer)
    assert again.sampling == Generator.from_pretrained("ours").sampling
    assert same_weights(read_checkpoint(Path("back/lightningdit.pt"))["ema"], model)
    assert same_weights(dict(read_checkpoint(Path("back/tokenizer/autoencoder.pt"))), tokenizer)
    assert vavae("convert", "back", "third", "--tokenizer", "back/tokenizer") == 0
    third = Generator.from_pretrained("third")
    assert same_weights(third.transformer, model)
    assert third.sampling == again.sampling and third.path == again.path


def written_generator(**shown: object) -> Generator:
    """Write a generator to the folder `ours`."""
    tokenizer = Tokenizer(autoencoder(SMALL_F16)[0], LatentStatistics.from_dict(statistics(8)))
    generator = Generator(golden_dit()[0], tokenizer, **shown)  # type: ignore[arg-type]
    generator.save_pretrained("ours")
    return generator


@pytest.mark.parametrize(("path", "solver"), [("linear", "euler"), ("cosine", "heun"), ("vp", "dopri5")])
def test_path_and_sampling_round_trip(path: str, solver: str) -> None:
    sampling = SamplingConfig(solver, 7, 0.5, 3.0, 0.2, 1.0, 3)  # type: ignore[arg-type]
    written_generator(path=path, sampling=sampling)
    assert vavae("convert", "ours", "back", "--to", "published") == 0
    back = Generator.from_pretrained("back")
    assert (back.path, back.sampling) == (path, sampling)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["noise", "score"])
def test_prediction_round_trip(prediction: str) -> None:
    ours = written_generator(prediction=prediction, sampling=SamplingConfig("euler", 4))
    assert vavae("convert", "ours", "exported", "--to", "published") == 0
    assert read_checkpoint(Path("exported/lightningdit.pt"))["config"]["transport"]["prediction"] == prediction
    back = Generator.from_pretrained("exported")
    assert back.prediction == prediction
    assert back([1, 2]) == ours([1, 2])


def test_unknown_published_prediction_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = training_checkpoint(golden_dit()[0])
    checkpoint["config"] = {**checkpoint["config"], "transport": {"prediction": "energy"}}
    torch.save(checkpoint, "published.pt")
    torch.save(autoencoder(SMALL_F16)[0].state_dict(), "vavae.pt")
    given = ("--tokenizer", "vavae.pt", "--statistics", "latents_stats.pt")
    assert vavae("convert", "published.pt", "ours", *given) == 2
    assert "transport.prediction must be one of velocity, noise, score, v, got energy" in capsys.readouterr().err


@pytest.mark.slow
def test_settings_that_published_files_lack(capsys: pytest.CaptureFixture[str]) -> None:
    written_generator(sampling=SamplingConfig("euler_maruyama", 9, guidance_scale=2.0))
    assert vavae("convert", "ours", "back", "--to", "published") == 0
    shown = capsys.readouterr().out
    assert "the solver euler_maruyama is not taken over" in shown and "the guidance is not taken over" in shown
    assert Generator.from_pretrained("back").sampling == SamplingConfig("euler", 9)
    written_generator(prediction="data")
    assert vavae("convert", "ours", "refused", "--to", "published") == 2
    assert "prediction must be one of velocity, noise, score in published files, got data" in capsys.readouterr().err
    assert not Path("refused").exists()


def test_rectangles_have_no_published_form(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer(autoencoder(SMALL_F16)[0], LatentStatistics.from_dict(statistics(8)))
    wide = LightningDiT(latent_size=(2, 4), patch_size=2, latent_channels=8, width=32, depth=1, heads=2, num_classes=3)
    Generator(wide, tokenizer).save_pretrained("ours")
    assert vavae("convert", "ours", "refused", "--to", "published") == 2
    size = f"{2 * tokenizer.factor}x{4 * tokenizer.factor}"
    assert f"the image size must be a square for the published code, got {size}" in capsys.readouterr().err
    assert not Path("refused").exists()


def test_options_without_effect_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    written_generator()
    torch.save(autoencoder(SMALL_F16)[0].state_dict(), "vavae.pt")
    torch.save(training_checkpoint(golden_dit()[0]), "dit.pt")
    published_latents(Path("latents"))
    Path("vavae.yaml").write_text("model: {params: {ddconfig: {}, lossconfig: {}}}")
    given = ("--tokenizer", "vavae.pt", "--statistics", "latents_stats.pt")
    for arguments, shown in [
        (("ours", "out", "--scaling_factor", "2"), "scaling_factor: is for tokenizers"),
        (("vavae.pt", "out", "--statistics", "latents_stats.pt", "--shift_factor", "3"), "shift_factor must be 0"),
        (
            ("ours", "out", "--heads", "3"),
            "heads: is for published transformers and decoders, not for ours",
        ),
        (("dit.pt", "out", *given, "--heads", "3"), "dit.pt: heads must be 4, as its weights show, got 3"),
        (("vavae.pt", "out", "--statistics", "latents_stats.pt", "--heads", "3"), "heads: is for published"),
        (("ours", "out", "--weights", "model"), "weights: is for checkpoints"),
        (("ours/tokenizer", "out", "--weights", "ema"), "weights: is for checkpoints"),
        (("ours/tokenizer", "out", "--tokenizer", "vavae.pt"), "tokenizer: is for generators"),
        (("latents_stats.pt", "out", "--scaling_factor", "2"), "not for latents_stats.pt (statistics)"),
        (("latents_stats.pt", "out", "--weights", "model"), "weights: is for checkpoints"),
        (("latents", "out", "--to", "published", "--statistics", "latents_stats.pt"), "statistics: is for"),
        (("vavae.yaml", "out", "--tokenizer", "vavae.pt"), "tokenizer: is for generators"),
    ]:
        assert vavae("convert", *arguments) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert shown in error and len(error.splitlines()) == 1, error
        assert not Path("out").exists()


@pytest.mark.slow
def test_scaling_factor_for_the_tokenizer_of_a_generator() -> None:
    written_generator()
    torch.save(autoencoder(SMALL_F16)[0].state_dict(), "vavae.pt")
    factor = ("--scaling_factor", "2", "--shift_factor", "3")
    assert vavae("convert", "ours", "other", "--tokenizer", "vavae.pt", *factor) == 0
    stored = Generator.from_pretrained("other").tokenizer.statistics
    assert stored.std.tolist() == [0.5] * 8 and stored.mean.tolist() == [3.0] * 8


@pytest.mark.slow
def test_weights_that_are_not_averaged() -> None:
    model, _ = golden_dit()
    torch.save(training_checkpoint(model), "published.pt")
    torch.save(autoencoder(SMALL_F16)[0].state_dict(), "vavae.pt")
    # The choice is the transformer's: the tokenizer's file holds one set of weights.
    given = ("--tokenizer", "vavae.pt", "--statistics", "latents_stats.pt", "--weights", "model")
    assert vavae("convert", "published.pt", "ours", *given) == 0
    state = Generator.from_pretrained("ours").transformer.state_dict()
    assert all(torch.equal(value, model.state_dict()[name] + 1) for name, value in state.items())


def test_scaling_factor_instead_of_statistics() -> None:
    torch.save(autoencoder(SD_VAE)[0].state_dict(), "kl-f8.ckpt")
    assert vavae("convert", "kl-f8.ckpt", "ours", "--scaling_factor", "0.18215") == 0
    stored = Tokenizer.from_pretrained("ours").statistics
    torch.testing.assert_close(stored.std, torch.full((4,), 1 / 0.18215))
    assert not stored.mean.any()


def test_statistics_round_trip() -> None:
    assert vavae("convert", "latents_stats.pt", "ours.safetensors") == 0
    assert torch.equal(read_statistics("ours.safetensors").mean, statistics(8)["mean"].flatten())
    assert vavae("convert", "ours.safetensors", "back.pt", "--to", "published") == 0
    assert torch.equal(read_checkpoint(Path("back.pt"))["std"], statistics(8)["std"])


def published_latents(folder: Path, images: int = 5) -> dict[str, torch.Tensor]:
    """Write two shards in the form of the published extractor."""
    folder.mkdir()
    tensors = {
        "latents": torch.randn(2 * images, 8, 4, 4),
        "latents_flip": torch.randn(2 * images, 8, 4, 4),
        "labels": torch.arange(2 * images) % 3,
    }
    for rank in range(2):
        part = {name: value[rank * images : (rank + 1) * images].contiguous() for name, value in tensors.items()}
        metadata = {"total_size": str(images), "dtype": "torch.float32", "device": "cuda:0"}
        save_file(part, folder / f"latents_rank{rank:02d}_shard000.safetensors", metadata)
    torch.save(statistics(8), folder / "latents_stats.pt")
    return tensors


def test_published_latents_are_read_and_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = published_latents(Path("published"))
    read = LatentDataset("published")
    latents, labels = read.get(torch.arange(10), torch.arange(10) % 2 == 1)
    expected = torch.where((torch.arange(10) % 2 == 1).view(-1, 1, 1, 1), tensors["latents_flip"], tensors["latents"])
    stats = statistics(8)
    torch.testing.assert_close(latents, (expected - stats["mean"]) / stats["std"])
    assert torch.equal(labels, tensors["labels"])

    assert vavae("convert", "published", "no") == 2
    assert "to must be published for latents, got native" in capsys.readouterr().err
    assert vavae("convert", "published", "written", "--to", "published") == 0
    shard = load_file("written/latents_rank00_shard000.safetensors")
    assert same_weights(shard, tensors)
    assert torch.equal(read_checkpoint(Path("written/latents_stats.pt"))["mean"], stats["mean"])


def test_killed_conversion_of_latents_is_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = published_latents(Path("published"))
    save = latent_writer.save_file

    def killed(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save(tensors, path, metadata)
        if "shard001" in path.name:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(latent_writer, "save_file", killed)
        latent_writer.write_published_layout(LatentDataset("published"), "written", shard_size=3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert Path("written/latents_rank00_shard000.safetensors").is_file()
    with pytest.raises(UserError, match="written was not written to its end"):
        LatentDataset("written")
    Path("written/latents_rank00_shard007.safetensors").touch()  # of a conversion with more shards
    assert vavae("convert", "published", "written", "--to", "published") == 0
    assert {path.name for path in Path("written").iterdir()} == {
        "latents_rank00_shard000.safetensors",
        "latents_stats.pt",
    }
    assert same_weights(load_file("written/latents_rank00_shard000.safetensors"), tensors)
    assert vavae("convert", "published", "written", "--to", "published") == 2
    assert "output must be a new file or an empty folder, got written, which exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("to", "file"),
    [
        ("native", "model.safetensors"),
        ("published", "autoencoder.pt"),
        ("diffusers", "diffusion_pytorch_model.safetensors"),
    ],
)
def test_full_disk_leaves_nothing(to: str, file: str) -> None:
    torch.save(autoencoder(SMALL_F16)[0].state_dict(), "vavae.pt")
    config = Config(source="vavae.pt", output="out", to=to, statistics="latents_stats.pt")  # type: ignore[arg-type]
    with limited("FSIZE", 20_000), pytest.raises(OSError, match="File too large") as raised:
        convert.run(config)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(Path("out", file)))
    assert not Path("out").exists()
    convert.run(config)
    assert Path("out").is_dir() and not Path("out/.unfinished").exists()


@pytest.mark.parametrize(("factor", "shift"), [("1e-300", "0"), ("1e300", "0"), ("1", "1e300")])
def test_factors_beyond_float32_are_refused(factor: str, shift: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(autoencoder(SMALL_F16)[0].state_dict(), "vavae.pt")
    assert vavae("convert", "vavae.pt", "out", "--scaling_factor", factor, "--shift_factor", shift) == 2
    assert "scaling_factor and shift_factor must be numbers of float32" in capsys.readouterr().err


@pytest.mark.slow
def test_statistics_from_encoded_latents(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(autoencoder(SMALL_F16)[0].state_dict(), "vavae.pt")
    options = ("--data.images", "demo", "--data.size", "32", "--split", "test", "--data.limit", "6")
    assert vavae("encode", "--tokenizer", "vavae.pt", "--output", "latents", *options) == 0
    assert vavae("convert", "latents", "published", "--to", "published") == 0
    ours, published = LatentDataset("latents"), LatentDataset("published")
    assert published.settings is None
    everything = torch.arange(len(ours))
    for flip in (None, torch.ones(len(ours), dtype=torch.bool)):
        for mine, written in zip(ours.get(everything, flip), published.get(everything, flip), strict=True):
            assert torch.equal(mine, written)
    assert vavae("convert", "vavae.pt", "tokenizer", "--statistics", "latents") == 0
    tokenizer = Tokenizer.from_pretrained("tokenizer")
    assert torch.equal(tokenizer.statistics.mean, ours.statistics.mean)
    assert "latents: " in capsys.readouterr().out


@pytest.mark.slow
def test_wrong_calls_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(autoencoder(SMALL_F16)[0].state_dict(), "vavae.pt")
    torch.save(golden_dit()[0].state_dict(), "dit.pt")
    Path("full").mkdir()
    Path("full/file").touch()
    for arguments, shown in [
        ((), "source is missing"),
        (("vavae.pt",), "output is missing"),
        (("vavae.pt", "full"), "output must be a new file or an empty folder, got full"),
        (("vavae.pt", "out"), "comes without the statistics"),
        (("dit.pt", "out"), "comes without its tokenizer"),
        (("absent.pt", "out"), "absent.pt: no such file"),
        (("vavae.pt", "out", "--statistics", "absent.pt"), "absent.pt: cannot be read"),
        (
            ("vavae.pt", "out", "--statistics", "latents_stats.pt", "--scaling_factor", "1"),
            "scaling_factor must be null",
        ),
        (("vavae.pt", "out", "--scaling_factor", "0"), "scaling_factor must be positive, got 0.0"),
        (("latents_stats.pt", "out", "--to", "diffusers"), "to must be native or published for statistics"),
        (("vavae.pt", "out", "--to", "onnx"), "to"),
    ]:
        assert vavae("convert", *arguments) == 2
        error = capsys.readouterr().err
        assert shown in error
        assert len(error.splitlines()) == 1
        assert not Path("out").exists()


@pytest.mark.slow
def test_samples_equal_those_of_the_published_files() -> None:
    """Convert published files and sample PNGs."""
    torch.save(training_checkpoint(golden_dit()[0]), "published.pt")
    torch.save(autoencoder(SMALL_F16)[0].state_dict(), "vavae.pt")
    given = ("--tokenizer", "vavae.pt", "--statistics", "latents_stats.pt")
    assert vavae("convert", "published.pt", "ours", *given) == 0
    assert vavae("sample", "--generator", "ours", "--output", "samples", "--labels", "[1, 2]", "--npz", "true") == 0
    from PIL import Image

    published = Generator.from_pretrained("published.pt", tokenizer="vavae.pt", statistics="latents_stats.pt")
    for i, image in enumerate(published([1, 2])):
        assert np.array_equal(np.asarray(Image.open(f"samples/{i:06d}.png")), np.asarray(image))
    assert (
        vavae(
            "sample",
            "--generator",
            "ours",
            "--output",
            "wide",
            "--labels",
            "[1]",
            "--size",
            "[32, 96]",
            "--solver",
            "euler_maruyama",
        )
        == 0
    )
    assert Image.open("wide/000000.png").size == (96, 32)
