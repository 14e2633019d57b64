"""Small models and a feature network for tests of evaluation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vavae.metrics import FeatureNetwork
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.stages import evaluate
from vavae.tokenizer import AutoencoderKL, LatentStatistics
from vavae.transformer import LightningDiT


def color_network(name: str = "inception-colors", device: str | torch.device = "cpu") -> FeatureNetwork:
    """Return a network of mean colors: "pool" of four quarters, "spatial" of the upper, "logits" of the lower two."""

    def parts(pixels: Tensor) -> dict[str, Tensor]:
        images = pixels.permute(0, 3, 1, 2).float() / 255
        quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2)
        return {
            "pool": quarters.flatten(1),
            "spatial": quarters[:, :, :2].flatten(1),
            "logits": 10 * quarters[:, :, 2:].flatten(1),
        }

    return FeatureNetwork(name, f"fingerprint of {name}", torch.device(device), parts, ("pool", "spatial", "logits"))


def make_tokenizer() -> Tokenizer:
    """Return a tokenizer of factor 4 with random weights."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        latent_channels=4, base_channels=32, channel_multipliers=(1, 1, 2), blocks_per_level=1, attention_levels=()
    )
    return Tokenizer(autoencoder, LatentStatistics(torch.zeros(4), torch.ones(4)))


def make_generator(seed: int = 1, **shape: Any) -> Generator:
    """Return a generator of 32 px images with random weights; another seed makes another transformer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    transformer = LightningDiT(
        latent_size=8,
        patch_size=2,
        latent_channels=4,
        width=32,
        depth=1,
        heads=2,
        num_classes=10,
        **shape,
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return Generator(transformer, tokenizer, sampling=SamplingConfig(steps=3, guidance_scale=1.5))


def use_colors(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Let `vavae evaluate` use `color_network` for every feature network and a plain difference for LPIPS.

    Args:
        replace: `monkeypatch.setattr`, which a test undoes.
    """
    replace(evaluate, "load_feature_network", color_network)
    plain = {"lpips_vgg16": lambda a, b: (a - b).abs().mean((1, 2, 3))}
    replace(evaluate.of_tokenizer, "perceptual_networks", lambda *_: plain)
