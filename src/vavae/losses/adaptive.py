"""Adaptive weight that scales the gradient of a loss term to the gradient of the reconstruction."""

import torch
from torch import Tensor


def adaptive_weight(reference_grad: Tensor, grad: Tensor, maximum: float, eps: float = 1e-4) -> Tensor:
    """Return ‖reference_grad‖₂ / (‖grad‖₂ + eps), clamped to [0, maximum]: 0-dim, without gradient.

    VQGAN, arXiv 2012.09841, equation 7; VA-VAE uses it for the alignment too.

    Args:
        reference_grad: Gradient of the reconstruction term with respect to a layer's weight.
        grad: Gradient of the term to be weighted, with respect to the same weight.
        maximum: Upper bound.
        eps: 1e-4 in VQGAN and VA-VAE, 1e-6 in RAE.
    """
    with torch.no_grad():
        ratio = torch.linalg.vector_norm(reference_grad) / (torch.linalg.vector_norm(grad) + eps)
        return ratio.clamp(0.0, maximum)
