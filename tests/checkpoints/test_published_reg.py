"""Checkpoints of REG: the class token, projectors, direction of time."""

import argparse
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vavae.models import Generator, Tokenizer
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics
from vavae.transformer import LightningDiT


def drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def state_dict() -> dict[str, Tensor]:
    """Return the weights of the golden numbers, as in tests/transformer/test_class_token.py."""
    shape = {"latent_size": 4, "latent_channels": 8, "width": 48, "depth": 3, "heads": 3, "num_classes": 10}
    model = LightningDiT(**shape, swiglu=False, rope=False, rmsnorm=False, class_token=12)
    state = dict(model.state_dict())
    projector = nn.Sequential(nn.Linear(48, 20), nn.SiLU(), nn.Linear(20, 20), nn.SiLU(), nn.Linear(20, 12))
    for name, value in (*model.named_parameters(), *projector.named_parameters("projectors.0")):
        state[name] = (1.0 if name.endswith("norm.weight") else 0.0) + 0.05 * drawn(name, *value.shape)
    return state


def test_a_checkpoint_is_a_generator(tmp_path: Path) -> None:
    args = argparse.Namespace(path_type="linear", prediction="v", model="SiT-XL/2", enc_type="dinov2-vit-b", cls=0.03)
    torch.save({"model": {}, "ema": state_dict(), "opt": {}, "args": args, "steps": 7}, tmp_path / "0001000.pt")
    torch.manual_seed(0)
    tokenizer = Tokenizer(
        AutoencoderKL(AutoencoderConfig(8, 32, (1, 2), 1, ())), LatentStatistics(torch.zeros(8), torch.ones(8), 1)
    )
    generator = Generator.from_pretrained(tmp_path / "0001000.pt", tokenizer=tokenizer, heads=3)
    assert generator.config.class_token == 12 and generator.config.latent_size == 4
    x, tau, y = drawn("x", 2, 8, 4, 4), torch.tensor([0.3, 0.8]), torch.tensor([1, 10])
    with torch.no_grad():
        output = generator.transformer(x, 1 - tau, y, class_token=drawn("cls", 2, 12))
    assert (-output.prediction).flatten()[:2].tolist() == pytest.approx([-0.2599956, -0.228004], abs=1e-5)
    assert (-output.class_token).flatten()[:2].tolist() == pytest.approx([-0.2960349, -0.0699036], abs=1e-5)
    assert "left out projectors.*" in " ".join(str(generator.report).split())
    assert generator.latents([0, 1], steps=3).shape == (2, 8, 4, 4)
