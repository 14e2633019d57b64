"""The pull of the posterior towards the standard normal distribution."""

from dataclasses import dataclass

from torch import Tensor

from vavae.errors import UserError
from vavae.tokenizer.gaussian import DiagonalGaussian


@dataclass(frozen=True)
class KLConfig:
    """The KL term.

    Attributes:
        weight: factor of the KL divergence in nats per image; 0 switches it off.
    """

    weight: float = 1e-6

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UserError(f"kl.weight: {self.weight} is negative")


def kl_loss(posterior: DiagonalGaussian) -> Tensor:
    """KL divergence to N(0, I) in nats: summed over a latent, averaged over the batch; 0-dim."""
    return posterior.kl().mean()
