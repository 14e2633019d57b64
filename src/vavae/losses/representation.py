"""Align hidden states of a diffusion transformer with a foundation model.

REPA (arXiv 2410.06940) projects them by an MLP; iREPA (arXiv 2512.10794) by a convolution, to normalized features.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import to_grid, to_tokens

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
        for layer in self.children():
            if isinstance(layer, nn.Linear):  # as the transformer's own layers
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Project the tokens of a grid (h, w), which are row by row; without `grid` it is square."""
        if self.kind == "conv":
            side = math.isqrt(tokens.shape[1])
            if grid is None and side * side != tokens.shape[1]:
                raise UserError(f"grid must be given for {tokens.shape[1]} tokens, which do not form a square")
            return to_tokens(self.projection_layer(to_grid(tokens, grid or (side, side))))
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
    the unbiased one of the features as they were. Half precision becomes float32.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    mean = features.mean(dim=1, keepdim=True)
    return (features - alpha * mean) / (features.std(dim=1, keepdim=True) + 1e-6)


def mean_projection_loss(projected: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """Return the mean of `projection_loss` over several teachers; 0-dim."""
    return torch.stack([projection_loss(*pair) for pair in zip(projected, features, strict=True)]).mean()
