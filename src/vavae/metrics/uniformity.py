"""Uniformity of latents as in the VA-VAE paper (arXiv 2501.01423, table 6)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vavae import rng
from vavae.extras import require_extra


@dataclass(frozen=True)
class Uniformity:
    """Evenness of a point cloud, from its kernel density at its points. Even clouds have small first three numbers.

    Attributes:
        density_std: Standard deviation of the density.
        density_cv: Coefficient of variation of the density: standard deviation / mean.
        gini: Gini coefficient of the densities, in [0, 1).
        normalized_entropy: Entropy of the densities as shares, / log2 n; at most 1, for equal densities.
    """

    density_std: float
    density_cv: float
    gini: float
    normalized_entropy: float


def latent_uniformity(points: NDArray[np.floating] | Tensor) -> Uniformity:
    """Return the uniformity of points (n, d), published with d = 2 after `tsne_points`.

    Densities d_i come from a Gaussian kernel density estimate with Scott's bandwidth. With p_i = d_i / Σ d and
    d_(i) in rising order: entropy -Σ p log2(p + 1e-10) / log2 n, Gini Σ (2 i - n - 1) d_(i) / (n Σ d).
    """
    from scipy.stats import gaussian_kde

    array = np.asarray(points.detach().cpu() if isinstance(points, Tensor) else points, dtype=np.float64)
    if array.ndim != 2 or len(array) < 3:
        raise ValueError(f"at least 3 points (n, d) are needed, got {array.shape}")
    count = len(array)
    density = gaussian_kde(array.T)(array.T)
    share = density / density.sum()
    rank = np.arange(1, count + 1)
    std = float(density.std())
    return Uniformity(
        density_std=std,
        density_cv=std / float(density.mean()),
        gini=float(((2 * rank - count - 1) * np.sort(density)).sum() / (count * density.sum())),
        normalized_entropy=float(-(share * np.log2(share + 1e-10)).sum() / np.log2(count)),
    )


def one_position_each(latents: Tensor, seed: int) -> Tensor:
    """Return one spatial position of each latent, chosen at random by (seed, row): (N, C, h, w) -> (N, C)."""
    flat = latents.flatten(2)  # (N, C, h w)
    chosen = rng.integers(seed, "uniformity position", torch.arange(len(flat)), flat.shape[2])
    return flat[torch.arange(len(flat)), :, chosen.to(flat.device)]


def tsne_points(latents: Tensor, seed: int = 42) -> NDArray[np.float64]:
    """Return points in the plane for `latent_uniformity`, as published.

    One random position of each latent is embedded by t-SNE with perplexity 30 and 1000 iterations. The paper uses
    10,000 latents and averages 10 runs.

    Args:
        latents: (N, C, h, w), normalized per channel; N more than 30.
        seed: Seed of the positions and of t-SNE; 42 is the published random state.

    Returns:
        (N, 2).
    """
    require_extra("metrics", "tsne_points")
    from sklearn.manifold import TSNE

    points = one_position_each(latents.detach(), seed).float().cpu().numpy()
    embedding = TSNE(n_components=2, perplexity=30, max_iter=1000, random_state=seed).fit_transform(points)
    return embedding.astype(np.float64)


def average(runs: Sequence[Uniformity]) -> Uniformity:
    """Return the mean of each number over several runs."""
    return Uniformity(*(float(np.mean([getattr(run, f.name) for run in runs])) for f in fields(Uniformity)))


def mean_uniformity(latents: Tensor, seeds: int = 10) -> Uniformity:
    """Return the uniformity as in the paper: the mean over `seeds` runs of `tsne_points`, with seeds 0, 1, 2, …

    Args:
        latents: (N, C, h, w), normalized per channel; N more than 30.
        seeds: Number of runs, at least 1.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    return average([latent_uniformity(tsne_points(latents, seed)) for seed in range(seeds)])
