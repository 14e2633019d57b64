"""Shape of a latent space without t-SNE: spectrum, nearest neighbors, pairwise potential."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.device import to_float64

_ROWS = 1024  # rows of a distance matrix held at once


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Distribution of the variance of latents over directions of their channels."""

    eigenvalues: Tensor  # (C,) of the covariance of all tokens, largest first
    effective_rank: float  # exp of the entropy of the eigenvalues as shares (Roy, Vetterli 2007), in [1, C]
    participation_ratio: float  # (Σ λ)² / Σ λ², in [1, C]


def latent_spectrum(latents: Tensor) -> Spectrum:
    """Return the spectrum of the channels of latents (N, C, h, w); every position is a sample."""
    if latents.ndim != 4 or latents.shape[0] * latents.shape[2] * latents.shape[3] < 2:
        raise ValueError(f"latents (N, C, h, w) of at least 2 tokens are needed, got {tuple(latents.shape)}")
    tokens = to_float64(latents.detach().movedim(1, 0).flatten(1))  # (C, N h w)
    values = torch.linalg.eigvalsh(torch.cov(tokens).view(len(tokens), len(tokens))).clamp(min=0).flip(0)
    share = values / values.sum()
    return Spectrum(
        values,
        math.exp(-float(torch.xlogy(share, share).sum())),
        float(values.sum().square() / values.square().sum()),
    )


@dataclass(frozen=True)
class NeighborUniformity:
    """Evenness of points in their space, from each point's distance to its k-th neighbor."""

    distance_cv: float  # coefficient of variation of these distances; 0 if all are equal
    distance_gini: float  # Gini coefficient of these distances, in [0, 1)
    # Entropy of a normal distribution of the same covariance minus entropy of the points, in nats per dimension: 0 for
    # a normal cloud, more for clumps and thin sheets. The estimate of Kozachenko and Leonenko is low by some hundredths
    # in tens of dimensions: compare equal counts.
    entropy_gap: float


def neighbor_distances(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return distances (N, k), float64, and indices (N, k) of the k nearest other points of points (N, d)."""
    if points.ndim != 2 or not 1 <= k < len(points):
        raise ValueError(f"more than {k} points (N, d) are needed, got {tuple(points.shape)}")
    x = to_float64(points.detach())
    distances, indices = [], []
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        found = torch.cdist(rows, x)
        found[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
        nearest = found.topk(k, dim=1, largest=False)
        distances.append(nearest.values)
        indices.append(nearest.indices)
    return torch.cat(distances), torch.cat(indices)


def neighbor_uniformity(points: Tensor, k: int = 5) -> NeighborUniformity:
    """Return the uniformity of points (N, d), for example one token of each of N latents, in their own space.

    Args:
        points: (N, d), N greater than k and d.
        k: Neighbor whose distance counts.
    """
    distances = neighbor_distances(points, k)[0][:, -1].cpu()
    count, size = points.shape
    ordered = distances.sort().values
    rank = torch.arange(1, count + 1, dtype=torch.float64)
    gini = float(((2 * rank - count - 1) * ordered).sum() / (count * ordered.sum()))
    # Kozachenko and Leonenko 1987: ψ(n) - ψ(k) + log volume of the unit ball + d · mean log distance.
    volume = size / 2 * math.log(math.pi) - math.lgamma(size / 2 + 1)
    psi = torch.special.digamma(torch.tensor([float(count), float(k)], dtype=torch.float64))
    logs = distances.clamp(min=torch.finfo(torch.float64).tiny).log().mean()
    entropy = float(psi[0] - psi[1]) + volume + size * float(logs)
    covariance = torch.cov(to_float64(points.detach()).T).view(size, size)
    normal = 0.5 * (size * math.log(2 * math.pi * math.e) + float(torch.linalg.slogdet(covariance).logabsdet))
    return NeighborUniformity(float(distances.std() / distances.mean()), gini, (normal - entropy) / size)


def sphere_uniformity(points: Tensor, t: float = 2.0) -> float:
    """Return log E exp(-t |x - y|²) over pairs of points (N, d) of unit length (arXiv 2005.10242); lower is more even.

    The range is from 0 (all in one direction) to about -2 t for an even sphere in many dimensions.
    """
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"at least 2 points (N, d) are needed, got {tuple(points.shape)}")
    x = F.normalize(to_float64(points.detach()), dim=1)
    total = torch.stack([torch.exp(-t * (2 - 2 * rows @ x.T)).sum() for rows in x.split(_ROWS)]).sum()
    count = len(x)
    return math.log(float(total - count) / (count * (count - 1)))


def interpolate_neighbors(latents: Tensor, share: float = 0.5) -> Tensor:
    """Move latents (N, ...) by `share` of the way to their nearest other latent, by Euclidean distance.

    The Fréchet distance between their decodings and the images predicts the distance of a generator trained on such
    latents (interpolated FID, arXiv 2603.05630). The distance of reconstructions does not predict it.
    """
    nearest = neighbor_distances(latents.detach().flatten(1), 1)[1][:, 0]
    return torch.lerp(latents, latents[nearest.to(latents.device)], share)
