"""Agreement of latents with the features of a foundation model, without training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae import rng
from vavae.device import to_float64

_RIDGE = 1e-3  # weight of |W|² relative to the mean squared error, in units of the latents' mean square


def _hsic(a: Tensor, b: Tensor) -> Tensor:
    """Estimate HSIC from two (n, n) kernel matrices (Song et al. 2012, equation 5).

    The estimate is unbiased for symmetric kernels. Published CKNNA uses it with masks of neighbors too, which are not
    symmetric.
    """
    n = len(a)
    a = a.clone().fill_diagonal_(0)
    b = b.clone().fill_diagonal_(0)
    trace = (a * b.T).sum()
    sums = a.sum() * b.sum() / ((n - 1) * (n - 2))
    cross = a.sum(0) @ b.sum(1) * (2 / (n - 2))
    return (trace + sums - cross) / (n * (n - 3))


def _neighbors(kernel: Tensor, k: int) -> Tensor:
    """Return (n, n) 0/1: whether column j is one of the k others most similar to row i."""
    nearest = kernel.clone().fill_diagonal_(-torch.inf).topk(k, dim=1).indices
    return torch.zeros_like(kernel).scatter_(1, nearest, 1.0)


def cknna(a: Tensor, b: Tensor, k: int = 10) -> float:
    """Return the centered kernel nearest-neighbor alignment of two representations (CKNNA, arXiv 2405.07987).

    This is a CKA whose kernels keep only pairs that are among the k nearest neighbors in both representations. Kernels
    are linear in L2-normalized features, as in REPA and others (k = 10).

    Args:
        a: (n, ...) features or latents of n images, flattened here.
        b: (n, ...) features of the same images; shapes may differ otherwise.
        k: Number of neighbors, less than n.

    Returns:
        1 for equal neighborhoods and kernels, about 0 for unrelated ones; nan if one of them has no structure.
    """
    if len(a) != len(b) or not 1 <= k < len(a) or len(a) < 4:
        raise ValueError(f"equally many samples, more than {k} and 3, are needed, got {len(a)} and {len(b)}")
    first = F.normalize(to_float64(a.detach().flatten(1)), dim=1)
    second = F.normalize(to_float64(b.detach().flatten(1)).to(first.device), dim=1)
    kernel_a, kernel_b = first @ first.T, second @ second.T
    near_a, near_b = _neighbors(kernel_a, k), _neighbors(kernel_b, k)
    shared = near_a * near_b
    cross = _hsic(shared * kernel_a, shared * kernel_b)
    own_a = _hsic(near_a * kernel_a, near_a * kernel_a)
    own_b = _hsic(near_b * kernel_b, near_b * kernel_b)
    return float(cross / (own_a * own_b).sqrt())


def _check_grids(latents: Tensor, features: Tensor) -> None:
    same = len(latents) == len(features) and latents.shape[2:] == features.shape[2:]
    if not same or latents.ndim != 4:
        raise ValueError(f"(B, C, h, w) and (B, D, h, w) needed: {tuple(latents.shape)}, {tuple(features.shape)}")


def distance_matrix_similarity(latents: Tensor, features: Tensor) -> Tensor:
    """Return the mean difference of each image's token-by-token cosine matrices: the distance-matrix loss, margin 0.

    Args:
        latents: (B, C, h, w).
        features: (B, D, h, w), of the same grid.

    Returns:
        (B,) float64, in [0, 2]; 0 if the cosines between tokens are equal.
    """
    _check_grids(latents, features)

    def cosines(x: Tensor) -> Tensor:
        tokens = F.normalize(to_float64(x.detach()).flatten(2), dim=1)  # (B, C, h w)
        return tokens.transpose(1, 2) @ tokens

    return (cosines(latents) - cosines(features)).abs().mean(dim=(1, 2))


def mapped_cosine(latents: Tensor, features: Tensor) -> float:
    """Return the mean cosine between teacher features and the best linear map of the latents to them.

    This is the cosine of the VF loss with a projection fitted by ridge regression, so that tokenizers trained without
    the loss can be compared. The map is fitted to the tokens of half of the images, chosen at random by a fixed seed,
    and evaluated on the other half.

    Args:
        latents: (B, C, h, w), at least 2 images.
        features: (B, D, h, w), of the same grid.

    Returns:
        The mean cosine over tokens of the held-out images, in [-1, 1].
    """
    _check_grids(latents, features)
    if len(latents) < 2:
        raise ValueError("at least 2 images are needed")
    order = rng.permutation(0, "mapped cosine", len(latents))
    fitted, judged = order[: len(order) // 2], order[len(order) // 2 :]

    def tokens(x: Tensor, images: Tensor) -> Tensor:
        return to_float64(x.detach()[images.to(x.device)]).permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, C)

    x, y = tokens(latents, fitted), tokens(features, fitted)
    gram = x.T @ x / len(x)
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + ridge, x.T @ y / len(x))
    predicted = tokens(latents, judged) @ weights
    return float(F.cosine_similarity(predicted, tokens(features, judged), dim=1).mean())
