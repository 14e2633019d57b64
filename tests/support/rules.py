"""Weights made by a rule, to compare networks without their real weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vavae import rng
from vavae.metrics import FIDInception


def sine(k: int, shape: Sequence[int]) -> Tensor:
    """Return the numbers that the weights of golden files are made of, for parameter number k, in float64."""
    index = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(12.9898 * index + 78.233 * (k + 1)).view(tuple(shape))


def golden_weight(k: int, shape: Sequence[int], name: str) -> Tensor:
    """Return parameter number k of a golden file: sines scaled by its fan in, or a gain or a bias if it is a vector."""
    if len(shape) > 1:
        return sine(k, shape) * math.sqrt(2 / math.prod(shape[1:]))
    return 1 + 0.1 * sine(k, shape) if name.endswith("weight") else 0.05 * sine(k, shape)


def inception_rule_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return weights of FID Inception: counter-based normal numbers n of seed 0, one stream per name.

    Convolutions n · (2 / fan in)^½, `beta` and `mean` 0.1 n, `var` 1 + 0.2 |n|.
    """
    weights = {}
    for name, shape in shapes.items():
        n = rng.normal(0, name, [0], shape)[0]
        if name.endswith("weight"):
            weights[name] = n * (2 / n[0].numel()) ** 0.5
        else:
            weights[name] = 1 + 0.2 * n.abs() if name.endswith("var") else 0.1 * n
    return weights


def inception_shapes() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights in the asset."""
    found: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        network = FIDInception()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            found[f"{name}.weight"] = tuple(layer.weight.shape)
            found |= {f"{name}.{part}": (layer.out_channels,) for part in ("beta", "mean", "var")}
    return found
