"""Tokenizers of REPA-E, FLUX and Stable Diffusion: files, statistics, training checkpoints, diffusers' form."""

import json
from pathlib import Path

import pytest
import torch
from published_files import SD_VAE, SMALL, SMALL_F16, autoencoder, golden_dit, same_weights, weights
from standin_hub import StandInHub

from vavae.checkpoints.loading import load_autoencoder
from vavae.checkpoints.registry import get_model
from vavae.errors import UserError
from vavae.models import Generator, Tokenizer
from vavae.stages.initial import initial_statistics
from vavae.tokenizer import AutoencoderConfig, LatentStatistics

MEAN, SCALE = torch.linspace(-1, 1, 8).view(1, 8, 1, 1), torch.linspace(0.5, 2, 8).view(1, 8, 1, 1)


def write_published(folder: Path, config: AutoencoderConfig = SMALL_F16, name: str = "e2e-vavae-400k") -> Path:
    """Write the three files of a published tokenizer; return the weights' path."""
    folder.mkdir(parents=True)
    channels = config.latent_channels
    torch.save(weights(config), folder / f"{name}.pt")
    torch.save(
        {"latents_scale": SCALE[:, :channels], "latents_bias": MEAN[:, :channels]}, folder / f"{name}-latents-stats.pt"
    )
    torch.save({"discriminator.main.0.weight": torch.zeros(2, 2)}, folder / f"{name}-discriminator-ckpt.pt")
    return folder / f"{name}.pt"


@pytest.mark.parametrize("config", [SMALL_F16, SD_VAE], ids=["f16", "f8d4"])
@pytest.mark.parametrize("named", ["file", "folder"])
def test_published_files_find_their_statistics(named: str, config: AutoencoderConfig, tmp_path: Path) -> None:
    file = write_published(tmp_path / "e2e", config)
    source = file if named == "file" else file.parent
    tokenizer = Tokenizer.from_pretrained(source)
    channels = config.latent_channels
    torch.testing.assert_close(tokenizer.statistics.mean, MEAN.flatten()[:channels])
    torch.testing.assert_close(tokenizer.statistics.std, 1 / SCALE.flatten()[:channels])
    assert tokenizer.config == config and same_weights(tokenizer.autoencoder, autoencoder(config)[0])
    found = initial_statistics(str(source))
    assert found is not None and found.equals(tokenizer.statistics)


def test_short_name_and_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = StandInHub(tmp_path, monkeypatch)
    write_published(hub.repositories / "REPA-E/e2e-vavae")
    for name in ("e2e-vavae", "REPA-E/e2e-vavae"):
        tokenizer = Tokenizer.from_pretrained(name)
        assert sorted(set(hub.fetched)) == ["e2e-vavae-400k-latents-stats.pt", "e2e-vavae-400k.pt"]
        torch.testing.assert_close(tokenizer.statistics.std, 1 / SCALE.flatten())
        assert tokenizer.provenance == {"converted_from": "REPA-E/e2e-vavae"}


def training_checkpoint(path: Path) -> None:
    """Write a checkpoint of a joint training: two transformers, tokenizer, discriminator, optimizers."""

    def transformer(mean: float) -> dict[str, torch.Tensor]:
        state = dict(golden_dit()[0].state_dict())
        norm = {"running_mean": torch.full((8,), mean), "running_var": torch.full((8,), 4.0)}
        return state | {f"bn.{name}": value for name, value in norm.items()}

    content = {"model": transformer(1.0), "ema": transformer(2.0), "vae": weights(SMALL)}
    torch.save(content | {"discriminator": {"main.0.weight": torch.zeros(2)}, "opt": {}, "steps": 5}, path)


def test_tokenizer_of_a_training_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "0400000.pt"
    training_checkpoint(path)
    tokenizer = Tokenizer.from_pretrained(path)
    assert same_weights(tokenizer.autoencoder, autoencoder(SMALL)[0])
    assert tokenizer.statistics.mean.tolist() == [2.0] * 8  # the averaged ones
    torch.testing.assert_close(tokenizer.statistics.std, torch.full((8,), 4.0001).sqrt())
    found = initial_statistics(str(path))
    assert found is not None and found.equals(tokenizer.statistics)
    report = str(tokenizer.report)
    assert "loaded from 'vae'" in report and "left out model, ema: another network" in report


def test_transformer_of_a_training_checkpoint_takes_both_from_it(tmp_path: Path) -> None:
    path = tmp_path / "0400000.pt"
    training_checkpoint(path)
    generator = Generator.from_pretrained(path, tokenizer=path)
    assert same_weights(generator.transformer, golden_dit()[0])
    assert generator.tokenizer.statistics.mean.tolist() == [2.0] * 8


FLUX2 = {
    "block_out_channels": (16, 48),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 16,
}


@pytest.mark.slow
def test_flux2_gives_the_outputs_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    published = diffusers.AutoencoderKLFlux2(**FLUX2).eval()
    with torch.no_grad():
        for name, parameter in published.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.1)
    published.bn.running_mean.normal_()
    published.bn.running_var.uniform_(0.5, 2)
    published.save_pretrained(tmp_path / "vae")
    ours = Tokenizer.from_pretrained(tmp_path / "vae")
    assert (ours.latent_channels, ours.factor, ours.config.unshuffle) == (16, 4, 2)
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        mode = published.encode(images).latent_dist.mode()  # (2, 4, 16, 24)
        squares = mode.view(2, 4, 8, 2, 12, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 16, 8, 12)
        expected = published.bn(squares)
        latents = ours.encode(images)
        torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            ours.decode(latents), published.decode(mode).sample.clamp(-1, 1), rtol=1e-4, atol=1e-4
        )
    ours.save_pretrained(tmp_path / "ours")
    assert torch.equal(Tokenizer.from_pretrained(tmp_path / "ours").encode(images), latents)
    with pytest.raises(UserError, match="unshuffle must be 1 for diffusers' AutoencoderKL, got 2"):
        ours.save_diffusers(tmp_path / "no")
    with pytest.raises(
        UserError, match="autoencoder must be an AutoencoderKL or AutoencoderRAE, got AutoencoderKLFlux2"
    ):
        Tokenizer.from_diffusers(published)
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps(config | {"batch_norm_eps": 1e-5}))
    with pytest.raises(UserError, match=r"batch_norm_eps must be 0.0001, got 1e-05"):
        load_autoencoder(tmp_path / "vae")


SMALL_KL = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
}
# The published settings, in narrow networks.
PUBLISHED: dict[str, dict[str, object]] = {
    "sdxl-vae": {"latent_channels": 4, "scaling_factor": 0.13025},
    "sd3.5-vae": {
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "flux1-vae": {
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "e2e-invae-hf": {
        "latent_channels": 32,
        "scaling_factor": 0.3099,
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_autoencoders_of_diffusers_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and images are those of diffusers, with (latents − shift_factor) · scaling_factor."""
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    published = diffusers.AutoencoderKL(**{**SMALL_KL, **PUBLISHED[name]}).eval()
    hub, model = StandInHub(tmp_path, monkeypatch), get_model(name)
    folder = hub.repositories / model.hub_id
    if name in ("sd3.5-vae", "flux1-vae"):  # in the repository of a whole pipeline
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text(
            json.dumps({"_class_name": "P", "vae": ["diffusers", "AutoencoderKL"]})
        )
        folder = folder / "vae"
    published.save_pretrained(folder)
    ours = Tokenizer.from_pretrained(name)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    shift, scale = published.config.shift_factor or 0.0, published.config.scaling_factor
    with torch.no_grad():
        mode = published.encode(images).latent_dist.mode()
        latents = ours.encode(images)
        torch.testing.assert_close(latents, (mode - shift) * scale, rtol=1e-4, atol=1e-5)
        expected = published.decode(latents / scale + shift).sample.clamp(-1, 1)
        torch.testing.assert_close(ours.decode(latents), expected, rtol=1e-4, atol=1e-4)
    assert ours.provenance == {"converted_from": model.hub_id}


@pytest.mark.parametrize("kind", ["AutoencoderKLQwenImage", "AutoencoderKLWan", "AutoencoderDC"])
def test_other_autoencoders_of_diffusers_are_named(kind: str, tmp_path: Path) -> None:
    """Networks for video, and those without a posterior."""
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(UserError, match=f"class AutoencoderKL, AutoencoderKLFlux2 or AutoencoderRAE, got {kind}$"):
        Tokenizer.from_pretrained(tmp_path)


def test_unshuffle_is_checked() -> None:
    assert AutoencoderConfig(128, 8, (1, 2), unshuffle=2).network_channels == 32
    with pytest.raises(UserError, match="latent_channels must be a multiple of unshuffle²"):
        AutoencoderConfig(6, unshuffle=2)


def test_statistics_of_three_forms_agree() -> None:
    """With and without the epsilon of a batch normalization."""
    forms = [
        {"latents_scale": SCALE, "latents_bias": MEAN},
        {"mean": MEAN, "std": 1 / SCALE},
        {"running_mean": MEAN.flatten(), "running_var": SCALE.flatten() ** -2 - 1e-4},
    ]
    found = [LatentStatistics.from_dict(form) for form in forms]
    for one in found:
        torch.testing.assert_close(one.std, 1 / SCALE.flatten())
