"""The table of models: its numbers agree with the networks, and its names find them."""

import json
import re

import pytest
import torch
from torch import nn

from vavae.checkpoints.registry import MODELS, NOT_PUBLISHED, KnownModel, find_model, get_model
from vavae.config import from_plain
from vavae.errors import UserError
from vavae.models import SamplingConfig
from vavae.teachers import TEACHERS
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, ViTDecoder
from vavae.transformer import DiTDH, LightningDiT, LightningDiTConfig


def network(model: KnownModel) -> nn.Module:
    """Return the network of an entry, without weights."""
    factor, channels = map(int, re.fullmatch(r"f(\d+)d(\d+)", model.latents).groups())  # type: ignore[union-attr]
    with torch.device("meta"):
        if model.folder is not None:
            stored = json.loads((model.folder / "config.json").read_text())["transformer"]
            return LightningDiT(from_plain(LightningDiTConfig, stored))
        if model.name.startswith("rae-"):
            place = 32 if "512" in model.name else 16
            if model.kind == "tokenizer":
                return ViTDecoder.from_size("XL", latent_channels=channels, grid=place)
            return DiTDH.from_size("S" if "-s-" in model.name else "XL", latent_channels=channels, latent_size=place)
        if model.kind == "generator":
            lightning = not model.name.startswith("sit-")
            switches = dict.fromkeys(("swiglu", "rope", "rmsnorm"), lightning)
            return LightningDiT.from_size("XL/1", latent_channels=channels, **switches)
        shape = AutoencoderConfig(channels) if factor == 16 else AutoencoderConfig(channels, 128, (1, 2, 4, 4), 2, ())
        if model.name == "flux2-vae":
            shape = AutoencoderConfig(128, 128, (1, 2, 4, 4), 2, (), unshuffle=2)
        autoencoder = AutoencoderKL(shape)
        assert autoencoder.factor == factor
        return autoencoder


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_entry_is_whole(model: KnownModel) -> None:
    tables = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")  # constants
    assert model.parameters == sum(v.numel() for k, v in network(model).state_dict().items() if not k.endswith(tables))
    assert (model.folder is None) == bool(model.hub_id) and model.license and model.description
    if model.kind == "generator":
        guidance = from_plain(SamplingConfig, dict(model.sampling)).guidance
        assert (guidance is None) == model.name.startswith("rae-")
        assert model.folder is not None or get_model(model.tokenizer).latents == model.latents
    else:
        assert model.statistics and not model.sampling and not model.tokenizer
        assert not model.file or model.statistics == NOT_PUBLISHED or model.statistics_file
        assert not model.teacher or any(model.teacher == spec.name for spec in TEACHERS)


def test_entry_of_the_package_agrees_with_its_folder() -> None:
    model = get_model("demo")
    assert model.folder is not None
    stored = json.loads((model.folder / "config.json").read_text())
    assert from_plain(SamplingConfig, dict(model.sampling)) == from_plain(SamplingConfig, stored["sampling"])
    assert (stored["path"], stored["prediction"]) == (model.path, model.prediction)
    assert model.published.split()[1] in (model.folder / "README.md").read_text()


def test_names_are_unique_and_found() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS)
    for model in MODELS:
        assert find_model(model.name) is find_model(f"{model.name}@v1") is model
    assert find_model("hustvl/lightningdit-xl-imagenet256-64ep") is get_model("lightningdit-xl-imagenet256-64ep")
    assert find_model("hustvl/va-vae-imagenet256-experimental-variants") is None  # which of its files?
    with pytest.raises(UserError, match=r"^no model has the short name sdvae-ft-mse; did you mean 'sd-vae-ft-mse'\?$"):
        get_model("sdvae-ft-mse")
    with pytest.raises(UserError, match="these have: demo, lightningdit-xl"):
        get_model("x")
