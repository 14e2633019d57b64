"""From images to latents and back: the autoencoder, its Gaussian posterior, and the statistics of its latents."""

from vavae.tokenizer.autoencoder import AutoencoderConfig, AutoencoderKL
from vavae.tokenizer.gaussian import DiagonalGaussian
from vavae.tokenizer.statistics import LatentStatistics, RunningStatistics
from vavae.tokenizer.vit_decoder import ViTDecoder

__all__ = [
    "AutoencoderConfig",
    "AutoencoderKL",
    "DiagonalGaussian",
    "LatentStatistics",
    "RunningStatistics",
    "ViTDecoder",
]
