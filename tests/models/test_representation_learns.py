"""A decoder of a real teacher's latents, trained on a CPU: better than the best linear one, and robust to noise."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.data import DemoImages, load_images
from vavae.grids import to_tokens
from vavae.metrics import psnr
from vavae.models.representation import RepresentationAutoencoder, RepresentationConfig
from vavae.teachers import Teacher, load_teacher

pytestmark = pytest.mark.slow
TRAIN, HELD_OUT, PATCH, BATCH = 200, 80, 8, 16


@dataclass(frozen=True)
class Pairs:
    """Images (N, 3, 32, 32) and their latents (N, 384, 4, 4)."""

    images: Tensor
    latents: Tensor


@cache
def teacher() -> Teacher:
    return load_teacher("dinov2-small-focus", input_size=56)


def model(noise: float) -> RepresentationAutoencoder:
    torch.manual_seed(0)
    config = RepresentationConfig("B", PATCH, width=96, depth=2, heads=4, mlp_width=192, noise=noise)
    return config.build(teacher())


def pairs(split: str, count: int) -> Pairs:
    images = load_images(DemoImages(split), torch.arange(count), 32)  # type: ignore[arg-type]
    encoder = model(0.0)
    return Pairs(images, torch.cat([encoder.encode(part) for part in images.split(50)]))


def trained(data: Pairs, noise: float, steps: int) -> RepresentationAutoencoder:
    """Train a decoder by squared error, with the noise of training on the latents."""
    autoencoder = model(noise)
    optimizer = torch.optim.Adam(autoencoder.decoder.parameters(), 4e-3, betas=(0.9, 0.95), fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min((step + 1) / 30, 1 - step / steps)
        chosen = torch.randint(len(data.images), (BATCH,))
        latents = data.latents[chosen]
        if noise:
            latents = latents + autoencoder.noise_scale(torch.rand(BATCH)) * torch.randn_like(latents)
        images = autoencoder.decode(latents)
        optimizer.zero_grad()
        F.mse_loss(images, data.images[chosen]).backward()
        optimizer.step()
    return autoencoder.eval()


def linear(data: Pairs, held_out: Pairs, ridge: float) -> Tensor:
    """Return the images of the closed-form ridge regression from a position's latent to its pixels."""
    x = F.pad(to_tokens(data.latents), (0, 1), value=1.0).flatten(0, 1).double()  # (N·16, 385)
    y = F.unfold(data.images, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1).double()  # (N·16, 192)
    weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ y).float()
    pixels = F.pad(to_tokens(held_out.latents), (0, 1), value=1.0) @ weights
    return F.fold(pixels.transpose(1, 2), 32, PATCH, stride=PATCH)


def quality(images: Tensor, held_out: Pairs) -> float:
    """Return the mean PSNR in dB."""
    return psnr(images.clamp(-1, 1), held_out.images).mean().item()


@torch.no_grad()
def test_decoder_beats_the_linear_one_and_noise_training_helps_under_noise() -> None:
    data, held_out = pairs("train", TRAIN), pairs("test", HELD_OUT)
    mean = quality(data.images.mean(0).expand_as(held_out.images), held_out)
    best_linear = max(quality(linear(data, held_out, ridge), held_out) for ridge in (10.0, 100.0, 1000.0, 10_000.0))
    noisy = held_out.latents + 0.5 * torch.randn(held_out.latents.shape, generator=torch.Generator().manual_seed(1))
    with torch.enable_grad():
        plain, robust = trained(data, 0.0, 250), trained(data, 0.8, 120)
    clean = quality(plain.decode(held_out.latents), held_out)
    assert clean > best_linear > mean
    assert clean - quality(robust.decode(held_out.latents), held_out) < 1.5
    # By 0.96 dB; by 0.55 without the noise, since it is trained for fewer steps.
    assert quality(robust.decode(noisy), held_out) > quality(plain.decode(noisy), held_out) + 0.75
