"""Posterior of the autoencoder: a Gaussian with one mean and one variance per latent element."""

import torch
from torch import Tensor

from vavae.errors import UserError


class DiagonalGaussian:
    """N(mean, var) over latents.

    Args:
        moments: (B, 2C, h, w) output of the encoder: means, then log-variances, which are clamped to [-30, 20].
            Half-precision moments are converted to float32 first.

    Attributes:
        mean: (B, C, h, w).
        logvar: (B, C, h, w), natural logarithm of the variance.
    """

    def __init__(self, moments: Tensor) -> None:
        if moments.ndim < 2 or moments.shape[1] % 2 != 0:
            raise UserError(f"moments must have an even number of channels, got shape {tuple(moments.shape)}")
        if moments.dtype in (torch.bfloat16, torch.float16):
            moments = moments.float()
        self.mean, logvar = moments.chunk(2, dim=1)  # (B, 2C, h, w) -> two of (B, C, h, w)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation, (B, C, h, w)."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """Variance, (B, C, h, w)."""
        return torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """Return the most probable latent, the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Return mean + std · noise, differentiable in the moments.

        Args:
            generator: Source of the noise; a CPU generator gives the same noise for every device.
            noise: Standard normal numbers of the latents' shape, used instead of `generator`.

        Raises:
            UserError: The noise has another shape than the latents.
        """
        if noise is None:
            device = self.mean.device if generator is None else generator.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        elif noise.shape != self.mean.shape:
            raise UserError(f"noise must have the latents' shape {tuple(self.mean.shape)}, got {tuple(noise.shape)}")
        return self.mean + self.std * noise.to(self.mean)

    def kl(self) -> Tensor:
        """Return KL(N(mean, var) ‖ N(0, I)) in nats, one value per image: (B,).

        The value is ½ Σ (mean² + var − 1 − logvar) over channels and positions.
        """
        # (B, C, h, w) -> (B, C·h·w) -> (B,)
        return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar).flatten(1).sum(1)
