"""Loss terms of tokenizer training: reconstruction, KL, adversarial, and alignment (the VF loss)."""

from vavae.losses.adaptive import adaptive_weight
from vavae.losses.adversarial import AdversarialConfig, DiscriminatorConfig
from vavae.losses.alignment import AlignmentConfig, AlignmentLoss, cosine_alignment, distance_matrix_alignment
from vavae.losses.kl import KLConfig
from vavae.losses.objective import EVALUATED_TERMS, ObjectiveConfig, TokenizerObjective
from vavae.losses.perceptual import LPIPS, PerceptualConfig
from vavae.losses.pixel import PixelConfig

__all__ = [
    "EVALUATED_TERMS",
    "LPIPS",
    "AdversarialConfig",
    "AlignmentConfig",
    "AlignmentLoss",
    "DiscriminatorConfig",
    "KLConfig",
    "ObjectiveConfig",
    "PerceptualConfig",
    "PixelConfig",
    "TokenizerObjective",
    "adaptive_weight",
    "cosine_alignment",
    "distance_matrix_alignment",
]
