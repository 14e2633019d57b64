"""Representation autoencoders to and from diffusers' AutoencoderRAE: equal outputs, exact round trips."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from golden_next import assert_close
from published_files import same_weights
from rae_files import decoder, published_rae, stat
from safetensors.torch import load_file, save_file
from tiny_vit import write_tiny_encoder
from torch import Tensor

from vavae import AutoencoderKL
from vavae.cli import run
from vavae.errors import UserError
from vavae.models import Tokenizer
from vavae.tokenizer import LatentStatistics

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def made_by_diffusers(folder: Path, kind: str = "dinov2", grid: int = 16, **changes: Any) -> Any:
    """Save a random AutoencoderRAE with trained-looking weights and statistics."""
    patch = 14 if kind == "dinov2" else 16
    torch.manual_seed(4)
    values = stat(grid)
    settings: dict[str, Any] = {
        "encoder_type": kind,
        "encoder_hidden_size": 64,
        "encoder_patch_size": patch,
        "encoder_num_hidden_layers": 2,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 8,
        "patch_size": 2,
        "encoder_input_size": patch * grid,
        "latents_mean": values["mean"],
        "latents_std": values["var"].sqrt(),
        "noise_tau": 0.8,
    }
    model = diffusers.AutoencoderRAE(**settings | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def assert_equal_outputs(tokenizer: Tokenizer, model: Any, images: Tensor = IMAGES) -> None:
    with torch.no_grad():
        latents = model.encode(images).latent
        assert_close(tokenizer.encode(images * 2 - 1), latents, 1e-5)
        decoded = tokenizer.autoencoder.decode(tokenizer.statistics.denormalize(latents))
        assert_close((decoded + 1) / 2, model.decode(latents).sample, 1e-5)


OTHER_NORM = {"encoder_norm_mean": [0.5, 0.4, 0.3], "encoder_norm_std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mae", {}),
        ("dinov2", {"scaling_factor": 0.5, **OTHER_NORM}),
        ("dinov2", {"grid": 4, "latents_mean": None, "latents_std": None}),  # a position table that is not RAE's
    ],
)
def test_made_by_diffusers(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = made_by_diffusers(tmp_path / "there", kind, **changes)
    tokenizer = Tokenizer.from_pretrained(tmp_path / "there")
    assert_equal_outputs(tokenizer, model)
    assert tokenizer.autoencoder.noise == 0.8
    assert str(tokenizer.report).endswith("numbers loaded")
    tokenizer.save_pretrained(tmp_path / "ours")  # with its teacher, which has no other source
    assert_equal_outputs(Tokenizer.from_pretrained(tmp_path / "ours"), model)
    if kind == "mae":
        assert_equal_outputs(Tokenizer.from_diffusers(model), Tokenizer.from_diffusers(model).to_diffusers())


@pytest.mark.parametrize("kind", ["dinov2", "siglip2", "mae"])
@pytest.mark.slow
def test_round_trip_is_exact(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert published -> ours -> diffusers -> ours -> published."""
    monkeypatch.chdir(tmp_path)
    first = published_rae(tmp_path, kind)
    given = ["--teacher", "teacher", "--statistics", "stat.pt", "--heads", "2"]
    assert run(["convert", "model.pt", "ours", *given]) == 0
    assert run(["convert", "ours", "there", "--to", "diffusers"]) == 0
    if kind != "siglip2":  # which diffusers cannot build with transformers 5
        model = diffusers.AutoencoderRAE.from_pretrained("there").eval()
        assert model.config.noise_tau == 0.8
        assert_equal_outputs(first, model)
    assert run(["convert", "there", "again"]) == 0
    assert run(["convert", "again", "back", "--to", "published"]) == 0
    again = Tokenizer.from_pretrained("again")
    assert same_weights(again.autoencoder, first.autoencoder)
    assert again.autoencoder.encoder_fingerprint() == first.autoencoder.encoder_fingerprint()
    assert again.statistics.equals(first.statistics) and again.config == first.config
    assert torch.equal(again.encode(IMAGES), first.encode(IMAGES))
    assert same_weights(torch.load("back/model.pt"), decoder())
    assert LatentStatistics.from_dict(torch.load("back/stat.pt")).equals(first.statistics)
    assert Tokenizer.from_pretrained("back", teacher="teacher", heads=2).statistics.equals(first.statistics)


def test_parts_that_diffusers_lacks(tmp_path: Path) -> None:
    tokenizer = published_rae(tmp_path)
    with torch.no_grad():
        tokenizer.autoencoder.decoder.decoder_pos_embed[0, 3] += 0.01
    with pytest.raises(UserError, match="decoder_pos_embed must be the table that the class computes"):
        tokenizer.save_diffusers(tmp_path / "there")
    tokenizer = published_rae(tmp_path)
    tokenizer.autoencoder.encoder.layers = 2
    with pytest.raises(UserError, match=r"representation\.layers must be 1 for diffusers' AutoencoderRAE, got 2"):
        tokenizer.save_diffusers(tmp_path / "there")
    tokenizer = published_rae(tmp_path)
    tokenizer.autoencoder.encoder.teacher.backbone.model.config.num_attention_heads = 4
    with pytest.raises(UserError, match="num_attention_heads must be 1 for diffusers' AutoencoderRAE, got 4"):
        tokenizer.save_diffusers(tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    made_by_diffusers(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "diffusion_pytorch_model.safetensors"
    whole, tensors = json.loads(config.read_text()), load_file(weights)
    for key, value, message in (
        ("encoder_type", "clip", "encoder_type must be one of dinov2, siglip2, mae"),
        ("patch_size", "2", "patch_size must be a whole number above 0, got '2'"),
        ("reshape_to_2d", False, "reshape_to_2d must be True"),
        ("encoder_input_size", 200, "encoder_input_size must be a multiple of encoder_patch_size 14"),
    ):
        config.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(UserError, match=message):
            Tokenizer.from_pretrained(tmp_path)
    config.write_text(json.dumps(whole))
    for name in ("decoder.decoder_norm.weight", "encoder.embeddings.cls_token", "_latents_std"):
        save_file({other: value for other, value in tensors.items() if other != name}, weights)
        with pytest.raises(UserError, match=name.removeprefix("decoder.").removeprefix("encoder.")):
            Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a representation autoencoder, not an AutoencoderKL"):
        AutoencoderKL.from_pretrained(tmp_path)


def test_a_decoder_and_its_teacher(tmp_path: Path) -> None:
    tokenizer = published_rae(tmp_path)
    assert tokenizer.autoencoder.encoder.teacher.input_size == (224, 224)
    assert "assumed, as the file does not say: trained with noise 0.8" in str(tokenizer.report)
    with pytest.raises(UserError, match="pass its teacher, such as dinov2-registers-base"):
        Tokenizer.from_pretrained(tmp_path / "model.pt", statistics="identity")
    with pytest.raises(UserError, match="decoder must be for latents of 32 channels, got 64"):
        write_tiny_encoder(tmp_path / "other", "dinov2", 32)
        Tokenizer.from_pretrained(tmp_path / "model.pt", teacher=str(tmp_path / "other"), heads=2)
