"""Distributions whose flow is known in closed form: a Gaussian mixture along any path."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vavae.flow import Prediction, ProbabilityPath


@dataclass(frozen=True)
class GaussianMixture:
    """Equally likely Gaussians N(mean_k, std²·I) as data; x_t is then a mixture too, and so is each posterior."""

    means: Tensor  # (K, D)
    std: float

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log p_t(x) up to a constant, for x (B, D) and scalar alpha, sigma."""
        variance = alpha**2 * self.std**2 + sigma**2
        squares = (x[:, None] - alpha * self.means).square().sum(dim=2)
        return torch.logsumexp(-squares / (2 * variance), dim=1)

    def expectations(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[data | x_t = x] and E[noise | x_t = x], (B, D) each."""
        variance = alpha**2 * self.std**2 + sigma**2
        residual = x[:, None] - alpha * self.means
        weights = torch.softmax(-residual.square().sum(dim=2) / (2 * variance), dim=1)[:, :, None]
        data = self.means + alpha * self.std**2 / variance * residual
        noise = sigma / variance * residual
        return (weights * data).sum(dim=1), (weights * noise).sum(dim=1)


class Oracle(nn.Module):
    """The best possible network for a mixture: predicts velocity, noise, data or score exactly.

    Labels shift the data by label · shift, so that conditions matter; latents have shape (B, C, h, w).
    """

    def __init__(
        self, mixture: GaussianMixture, path: ProbabilityPath, prediction: Prediction = "velocity", shift: float = 0.0
    ):
        super().__init__()
        self.mixture, self.path, self.prediction, self.shift = mixture, path, prediction, shift
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """(B, C, h, w), (B,) equal times, (B,) labels."""
        self.calls.append(len(x))
        c = self.path.coefficients(t[0].to(x.dtype))
        moved = self.shift * y.to(x.dtype)[:, None]
        data, noise = self.mixture.expectations(x.flatten(1) - c.alpha * moved, c.alpha, c.sigma)
        data = data + moved
        out = {
            "velocity": c.alpha_prime * data + c.sigma_prime * noise,
            "noise": noise,
            "data": data,
            "score": -noise / c.sigma,
        }[self.prediction]
        return out.view_as(x)
