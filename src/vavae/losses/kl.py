"""KL divergence of the posterior to the standard normal distribution."""

from dataclasses import dataclass

from torch import Tensor

from vavae.losses.checks import check_not_negative
from vavae.tokenizer.gaussian import DiagonalGaussian


@dataclass(frozen=True)
class KLConfig:
    """The KL term.

    Attributes:
        weight: Factor of the KL divergence in nats per image (`kl_weight` in the published code); 0 switches it off.
    """

    weight: float = 1e-6

    def __post_init__(self) -> None:
        check_not_negative("kl", self, "weight")


def kl_loss(posterior: DiagonalGaussian) -> Tensor:
    """Return the KL divergence to N(0, I) in nats, summed over each latent, averaged over the batch: 0-dim."""
    return posterior.kl().mean()
