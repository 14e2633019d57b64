"""Align hidden states of a diffusion transformer with a foundation model.

REPA (arXiv 2410.06940) projects them by an MLP; iREPA (arXiv 2512.10794) by a convolution, to normalized features.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError

ProjectorKind = Literal["mlp", "linear", "conv"]


class Projector(nn.Module):
    """Hidden tokens (B, T, width) -> predicted features (B, T, features).

    State-dict names are the published ones: `0`, `2`, `4` of the MLP, `projection_layer` of the convolution.

    Args:
        width: Channels of a token of the transformer.
        features: Channels of the teacher.
        kind: "mlp" (REPA: three linear layers with SiLU), "linear", or "conv" (iREPA: one convolution on the grid).
        hidden: Width of the MLP's hidden layers.
        kernel: Side of the convolution's kernel, odd; zeros are padded.

    Raises:
        UserError: The kind does not exist, or the kernel is not odd.
    """

    def __init__(
        self, width: int, features: int, kind: ProjectorKind = "mlp", hidden: int = 2048, kernel: int = 3
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"projector.kernel must be an odd number, got {kernel}")
        self.kind = kind
        if kind == "mlp":
            layers = (nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
            for number, layer in enumerate((*layers, nn.Linear(hidden, features))):
                self.add_module(str(number), layer)
        elif kind == "linear":
            self.projection_layer: nn.Module = nn.Linear(width, features)
        elif kind == "conv":
            self.projection_layer = nn.Conv2d(width, features, kernel, padding=kernel // 2)
        else:
            raise UserError(f"projector.kind must be mlp, linear or conv, got {kind!r}")

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Project the tokens of a grid (h, w), which are row by row."""
        if self.kind == "conv":
            squares = tokens.transpose(1, 2).unflatten(2, grid)  # (B, T, width) -> (B, width, h, w)
            return self.projection_layer(squares).flatten(2).transpose(1, 2)
        for layer in self.children():
            tokens = layer(tokens)
        return tokens


def projection_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Return minus the mean cosine of predicted and teacher's features, (B, T, D) each; 0-dim.

    Raises:
        UserError: The shapes differ.
    """
    if projected.shape != features.shape:
        raise UserError(
            f"features must have the shape of the projected tokens {tuple(projected.shape)}, got "
            f"{tuple(features.shape)}"
        )
    return -F.cosine_similarity(projected.float(), features.float(), dim=-1, eps=1e-12).mean()


def spatial_normalize(features: Tensor, alpha: float = 0.6) -> Tensor:
    """Return (f − alpha·mean) / (std + 1e-6) of features (B, T, D), over the tokens of each image and channel (iREPA).

    What all tokens share says little about places; alpha is the share of it that is removed. The standard deviation is
    the unbiased one of the features as they were.
    """
    mean = features.mean(dim=1, keepdim=True)
    return (features - alpha * mean) / (features.std(dim=1, keepdim=True) + 1e-6)


def scheduled_weight(weight: float, images_seen: int, end: int | None, kind: str = "constant") -> float:
    """Return the weight of the alignment after a number of images; it helps early and hurts late.

    Args:
        weight: Weight at the start.
        images_seen: Images seen so far.
        end: Images at which the weight is 0; None for "constant".
        kind: "constant"; "linear" falls to 0 at `end`; "cutoff" is constant before `end`.

    Raises:
        UserError: The kind does not exist, or `end` is missing.
    """
    if kind == "constant":
        return weight
    if kind not in ("linear", "cutoff"):
        raise UserError(f"representation.schedule must be constant, linear or cutoff, got {kind!r}")
    if end is None or end < 1:
        raise UserError(f"representation.end_images must be a positive number for {kind}, got {end}")
    left = max(0.0, 1 - images_seen / end)
    return weight * (left if kind == "linear" else float(left > 0))


def mean_projection_loss(projected: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """Return the mean of `projection_loss` over several teachers; 0-dim."""
    return torch.stack([projection_loss(*pair) for pair in zip(projected, features, strict=True)]).mean()
