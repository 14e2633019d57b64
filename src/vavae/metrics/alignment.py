"""How far latents agree with the features of a foundation model, without training anything on them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae import rng
from vavae.device import to_float64


def _hsic(a: Tensor, b: Tensor) -> Tensor:
    """Estimate of HSIC from two (n, n) kernel matrices (Song et al. 2012, equation 5).

    Unbiased for symmetric kernels; masks of neighbours are not symmetric, and published CKNNA uses it all the same.
    """
    n = len(a)
    a = a.clone().fill_diagonal_(0)
    b = b.clone().fill_diagonal_(0)
    trace = (a * b.T).sum()
    sums = a.sum() * b.sum() / ((n - 1) * (n - 2))
    cross = a.sum(0) @ b.sum(1) * (2 / (n - 2))
    return (trace + sums - cross) / (n * (n - 3))


def _neighbours(kernel: Tensor, k: int) -> Tensor:
    """(n, n) 0/1: whether column j is among the k most similar to row i, itself apart."""
    nearest = kernel.clone().fill_diagonal_(-torch.inf).topk(k, dim=1).indices
    return torch.zeros_like(kernel).scatter_(1, nearest, 1.0)


def cknna(a: Tensor, b: Tensor, k: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment (arXiv 2405.07987): do two representations agree on neighbours?

    A CKA whose kernels keep only pairs that are among the k nearest neighbours in both representations; linear
    kernels of L2-normalised features, as REPA and others report it (k = 10).

    Args:
        a: (n, ...) features or latents of n images, flattened here.
        b: (n, ...) features of the same images; shapes may differ otherwise.
        k: Number of neighbours, less than n.

    Returns:
        1 for equal neighbourhoods and kernels, about 0 for unrelated ones; nan where one of them has no structure.
    """
    if len(a) != len(b) or not 1 <= k < len(a) or len(a) < 4:
        raise ValueError(f"{len(a)} and {len(b)} samples with {k} neighbours")
    first = F.normalize(to_float64(a.detach().flatten(1)), dim=1)
    second = F.normalize(to_float64(b.detach().flatten(1)).to(first.device), dim=1)
    kernel_a, kernel_b = first @ first.T, second @ second.T
    near_a, near_b = _neighbours(kernel_a, k), _neighbours(kernel_b, k)
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
    """Mean difference of the token-by-token cosine matrices of each image: the distance-matrix loss, margin 0.

    Args:
        latents: (B, C, h, w).
        features: (B, D, h, w), of the same grid.

    Returns:
        (B,) float64, in [0, 2]; 0 where tokens of both relate to one another alike.
    """
    _check_grids(latents, features)

    def cosines(x: Tensor) -> Tensor:
        tokens = F.normalize(to_float64(x.detach()).flatten(2), dim=1)
        return tokens.transpose(1, 2) @ tokens

    return (cosines(latents) - cosines(features)).abs().mean(dim=(1, 2))


def mapped_cosine(latents: Tensor, features: Tensor, regularisation: float = 1e-3) -> float:
    """Mean cosine between teacher features and the best linear map of the latents to them.

    What the cosine term of the VF loss asks for, with the projection fitted by ridge regression, so that tokenizers
    trained without the loss can be compared. The map is fitted to the tokens of half of the images, chosen at
    random by a fixed seed, and judged on the other half.

    Args:
        latents: (B, C, h, w), at least 2 images.
        features: (B, D, h, w), of the same grid.
        regularisation: Weight of |W|² beside the mean squared error, in units of the latents' mean square.

    Returns:
        The mean cosine over tokens of the held-out images, in [-1, 1].
    """
    _check_grids(latents, features)
    if len(latents) < 2:
        raise ValueError("at least 2 images are needed")
    order = rng.permutation(0, "mapped cosine", len(latents))
    fitted, judged = order[: len(order) // 2], order[len(order) // 2 :]

    def tokens(x: Tensor, images: Tensor) -> Tensor:
        return to_float64(x.detach()[images.to(x.device)]).permute(0, 2, 3, 1).flatten(0, 2)

    x, y = tokens(latents, fitted), tokens(features, fitted)
    gram = x.T @ x / len(x)
    ridge = regularisation * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + ridge, x.T @ y / len(x))
    predicted = tokens(latents, judged) @ weights
    return float(F.cosine_similarity(predicted, tokens(features, judged), dim=1).mean())
