"""A velocity network narrower than its latents cannot learn them; a wide head or data prediction can (RAE, RiT).

The output of a network of width d is in a space of d dimensions, so of the n channels of noise it misses n − d: the
mean squared error of velocities stays above (n − d) / n, whatever the data and however long the training.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vavae.flow import LinearPath, TimeDistribution, flow_matching_loss
from vavae.flow.paths import Prediction
from vavae.transformer import DiTDH, LightningDiT

CHANNELS, NARROW, SIDE = 32, 8, 2
FLOOR = (CHANNELS - NARROW) / CHANNELS


def narrow() -> nn.Module:
    return LightningDiT(
        latent_size=SIDE, latent_channels=CHANNELS, width=NARROW, depth=1, heads=2, num_classes=0, label_dropout=0.0
    )


def wide_head() -> nn.Module:
    return DiTDH(
        latent_size=SIDE,
        latent_channels=CHANNELS,
        widths=(NARROW, 32),
        depths=(1, 1),
        heads=(2, 2),
        num_classes=0,
        label_dropout=0.0,
    )


def latents(count: int) -> Tensor:
    """Latents in a few dimensions of their channels, as those of foundation models are."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(2, CHANNELS, generator=generator) / 2**0.5
    return torch.einsum("bkhw,kc->bchw", torch.randn(count, 2, SIDE, SIDE, generator=generator), basis)


def trained(build: Callable[[], nn.Module], steps: int, prediction: Prediction = "velocity") -> float:
    """Train on 500 latents; return the mean squared error of velocities over times up to .9, of the same latents."""
    torch.manual_seed(0)
    model, data, path = build(), latents(500), LinearPath(0.05)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2, fused=True)
    times = TimeDistribution(kind="uniform", high=0.9)
    settings: Any = {"path": path, "times": times, "prediction": prediction, "space": "velocity"}
    for _ in range(steps):
        batch = data[torch.randint(len(data), (32,))]
        optimizer.zero_grad()
        labels = torch.zeros(32, dtype=torch.int64)
        flow_matching_loss(model, batch, labels, **settings)["mse"].mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():  # compared with the path's own velocity, so that a wrong conversion shows
        repeated = data.repeat(4, 1, 1, 1)
        t = times.sample(len(repeated))
        x, velocity = path.interpolate(t, torch.randn(repeated.shape), repeated)
        output = model(x, t, torch.zeros(len(repeated), dtype=torch.int64))
        return (path.convert(output, x, t, prediction, "velocity") - velocity).square().mean().item()


@pytest.mark.slow
def test_narrow_velocity_network_stays_above_the_floor() -> None:
    assert FLOOR <= trained(narrow, 100) < 1.6  # 2 before training


@pytest.mark.slow
def test_wide_head_goes_below_the_floor() -> None:
    assert trained(wide_head, 80) < 0.9 * FLOOR


@pytest.mark.slow
def test_narrow_data_network_goes_below_the_floor() -> None:
    assert trained(narrow, 200, prediction="data") < 0.9 * FLOOR
