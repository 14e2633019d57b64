"""Loss terms of tokenizer training: reconstruction, KL, adversarial, and alignment (the VF loss)."""

from vavae.grids import resample_grid
from vavae.losses.adaptive import adaptive_weight
from vavae.losses.adversarial import (
    AdversarialConfig,
    DiscriminatorConfig,
    PatchDiscriminator,
    discriminator_hinge_loss,
    generator_loss,
)
from vavae.losses.alignment import (
    AlignmentConfig,
    AlignmentLoss,
    cosine_alignment,
    distance_matrix_alignment,
)
from vavae.losses.kl import KLConfig, kl_loss
from vavae.losses.objective import ObjectiveConfig, TokenizerObjective
from vavae.losses.perceptual import LPIPS, PerceptualConfig
from vavae.losses.pixel import PixelConfig, pixel_error

__all__ = [
    "LPIPS",
    "AdversarialConfig",
    "AlignmentConfig",
    "AlignmentLoss",
    "DiscriminatorConfig",
    "KLConfig",
    "ObjectiveConfig",
    "PatchDiscriminator",
    "PerceptualConfig",
    "PixelConfig",
    "TokenizerObjective",
    "adaptive_weight",
    "cosine_alignment",
    "discriminator_hinge_loss",
    "distance_matrix_alignment",
    "generator_loss",
    "kl_loss",
    "pixel_error",
    "resample_grid",
]
