"""The posterior of the autoencoder: a Gaussian with one mean and variance per latent element."""

import torch
from torch import Tensor

from vavae.errors import UserError


class DiagonalGaussian:
    """N(mean, var) over latents, from the encoder's moments.

    Args:
        moments: (B, 2C, h, w): the means, then the log-variances, which are clamped to [-30, 20].
            Half-precision moments are widened to float32 first.

    Attributes:
        mean: (B, C, h, w).
        logvar: (B, C, h, w), natural logarithm of the variance.
    """

    def __init__(self, moments: Tensor) -> None:
        if moments.ndim < 2 or moments.shape[1] % 2 != 0:
            raise UserError(f"moments: an even number of channels is needed, not shape {tuple(moments.shape)}")
        if moments.dtype in (torch.bfloat16, torch.float16):
            moments = moments.float()
        self.mean, logvar = moments.chunk(2, dim=1)
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
        """The most probable latent, which is the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """mean + std · noise, differentiable in the moments.

        Args:
            generator: where the noise comes from; a CPU generator gives the same noise for every device.
            noise: standard normal numbers of the latents' shape, instead of a generator.
        """
        if noise is None:
            device = self.mean.device if generator is None else generator.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        elif noise.shape != self.mean.shape:
            raise UserError(f"noise: shape {tuple(noise.shape)} is not the latents' {tuple(self.mean.shape)}")
        return self.mean + self.std * noise.to(self.mean)

    def kl(self) -> Tensor:
        """KL(N(mean, var) ‖ N(0, I)) in nats, one value per image, (B,).

        ½ Σ (mean² + var − 1 − logvar) over channels and positions.
        """
        return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar).flatten(1).sum(1)
