"""The representation autoencoder: frozen encoder, noise of training, decoding, against RAE's numbers."""

import math

import pytest
import torch
from golden_next import assert_close, load, vit_decoder
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import to_grid, to_tokens
from vavae.models import RepresentationAutoencoder
from vavae.teachers import IMAGENET, Backbone, Teacher, TeacherFeatures
from vavae.tokenizer import LatentStatistics, ViTDecoder


class Patches(nn.Module):
    """A convolution and a norm in place of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.blocks = nn.ModuleList([nn.Identity()])
        self.layernorm = nn.LayerNorm(32)


class PatchBackbone(Backbone):
    width, patch = 32, 4

    def __init__(self) -> None:
        super().__init__()
        self.model = Patches()

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        tokens = self.model.blocks[0](to_tokens(self.model.patches(pixels)))
        tokens = self.model.layernorm(tokens)
        return TeacherFeatures(to_grid(tokens, (pixels.shape[2] // 4, pixels.shape[3] // 4)), None)


def patch_teacher() -> Teacher:
    return Teacher("patches", PatchBackbone(), (16, 16), IMAGENET)


def small(**options: object) -> RepresentationAutoencoder:
    decoder = ViTDecoder(32, 4, 4, width=8, depth=1, heads=2, mlp_width=8)
    return RepresentationAutoencoder(patch_teacher(), decoder, **options)  # type: ignore[arg-type]


def test_decoding_of_normalized_latents() -> None:
    tensors, config, weights = load("rae_decoder")
    decoder = vit_decoder(config, weights["decoder"])
    assert tuple(config["image_mean"]) == IMAGENET.mean and tuple(config["image_std"]) == IMAGENET.std
    model = RepresentationAutoencoder(patch_teacher(), decoder)
    statistics = LatentStatistics.from_dict({"mean": tensors["stat_mean"], "var": tensors["stat_var"]})
    with torch.no_grad():
        images = model.decode(statistics.denormalize(tensors["latents"]))
    assert_close((images + 1) / 2, tensors["image_normalised"], 1e-5)


def test_noise_of_training() -> None:
    tensors, config, _ = load("rae_encoder_dinov2")
    model = small(noise=config["noise_tau"])
    # tokens (B, h·w, C) -> (B, C, h, w)
    noise = tensors["noise"].transpose(1, 2).reshape(tensors["latents"].shape)
    noised = tensors["latents"] + model.noise_scale(tensors["noise_u"].flatten()) * noise
    statistics = LatentStatistics.from_dict({"mean": tensors["stat_mean"], "var": tensors["stat_var"]})
    assert_close(statistics.normalize(noised), tensors["latents_noised_normalised"], 1e-6)


def test_normal_noise_has_the_papers_spread() -> None:
    model = small(noise=0.8, noise_kind="normal")
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    sigma = model.noise_scale(uniform)[:, 0, 0, 0]
    assert sigma.min() >= 0
    assert sigma.mean().item() == pytest.approx(0.8 * math.sqrt(2 / math.pi), rel=1e-3)
    assert sigma.square().mean().sqrt().item() == pytest.approx(0.8, rel=2e-3)


def test_only_the_decoder_learns() -> None:
    model = small()
    model(torch.zeros(1, 3, 16, 16)).sum().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {f"decoder.{name}" for name, _ in model.decoder.named_parameters()}
    assert model.encode(torch.zeros(1, 3, 16, 16)).shape == (1, 32, 4, 4)


def test_wrong_parts_are_refused() -> None:
    decoder = ViTDecoder(16, 4, 4, width=8, depth=1, heads=2, mlp_width=8)
    with pytest.raises(UserError, match="decoder must be for latents of 32 channels, got 16"):
        RepresentationAutoencoder(patch_teacher(), decoder)
    with pytest.raises(UserError, match="noise must be at least 0, got -1"):
        small(noise=-1)
    with pytest.raises(UserError, match="noise_kind must be uniform or normal, got 'other'"):
        small(noise_kind="other")
