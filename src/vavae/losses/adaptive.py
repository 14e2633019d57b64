"""Weights that keep a second loss term's gradient in proportion to the reconstruction's."""

import torch
from torch import Tensor


def adaptive_weight(reference_grad: Tensor, grad: Tensor, maximum: float) -> Tensor:
    """‖reference_grad‖₂ / (‖grad‖₂ + 1e-4), clamped to [0, maximum]; 0-dim, without gradient.

    Both are gradients with respect to one layer's weight: of the reconstruction term, and of the term to
    weigh (VQGAN, arXiv 2012.09841, equation 7; VA-VAE uses it for the alignment too).
    """
    with torch.no_grad():
        ratio = torch.linalg.vector_norm(reference_grad) / (torch.linalg.vector_norm(grad) + 1e-4)
        return ratio.clamp(0.0, maximum)
