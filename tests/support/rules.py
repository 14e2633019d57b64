"""Weights made by a rule, to compare networks without their real weights."""

import torch
from torch import Tensor, nn

from vavae import rng
from vavae.metrics import FIDInception


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
