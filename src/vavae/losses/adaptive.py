"""Adaptive weight that scales the gradient of a loss term to the gradient of the reconstruction."""

import torch
from torch import Tensor


def adaptive_weight(reference_grad: Tensor, grad: Tensor, maximum: float) -> Tensor:
    """Return ‖reference_grad‖₂ / (‖grad‖₂ + 1e-4), clamped to [0, maximum]: 0-dim, without gradient.

    VQGAN, arXiv 2012.09841, equation 7; VA-VAE uses it for the alignment too.

    Args:
        reference_grad: Gradient of the reconstruction term with respect to a layer's weight.
        grad: Gradient of the term to be weighted, with respect to the same weight.
        maximum: Upper bound.
    """
    with torch.no_grad():
        ratio = torch.linalg.vector_norm(reference_grad) / (torch.linalg.vector_norm(grad) + 1e-4)
        return ratio.clamp(0.0, maximum)
