"""Kernel distance (KID) and precision and recall of two sets of features."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vavae.device import float64_device, to_float64

_ROWS = 2048  # rows and columns of a distance or kernel matrix that are held at once


def _check_features(first: Tensor, second: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features (N, d) and (M, d) are needed, got {tuple(first.shape)}, {tuple(second.shape)}")
    if min(len(first), len(second)) < fewest:
        raise ValueError(f"at least {fewest} samples on each side are needed, got {len(first)} and {len(second)}")
    return first.detach(), second.detach().to(first.device)


def _parts(features: Tensor) -> Iterator[Tensor]:
    """Return the samples in float64 in parts, since a copy of all would take twice their memory."""
    return (to_float64(rows) for rows in features.split(_ROWS))


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Return the kernel distance (KID, arXiv 1801.01401): unbiased squared MMD with the kernel (x · y / d + 1)³.

    Unlike the Fréchet distance, its mean does not depend on the number of samples, so it suits small sets. It may be
    slightly negative. All samples are used, where other programs average over random subsets. This takes (N + M)² · d
    floating-point operations; apart from the features, memory does not grow with the number of samples.

    Args:
        first: (N, d) features, at least 2.
        second: (M, d) features, at least 2.
    """
    a, b = _check_features(first, second, 2)
    n, m = len(a), len(b)
    across = sum((_kernel(rows, columns).sum() for rows in _parts(a) for columns in _parts(b)), _zero(a))
    return float(_kernel_within(a) / (n * (n - 1)) + _kernel_within(b) / (m * (m - 1)) - 2 * across / (n * m))


def _zero(features: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.double, device=float64_device(features.device))


def _kernel(rows: Tensor, columns: Tensor) -> Tensor:
    return (rows @ columns.T).div_(rows.shape[1]).add_(1).pow_(3)


def _kernel_within(samples: Tensor) -> Tensor:
    """Return the sum of the kernel over all ordered pairs of different samples."""
    total = _zero(samples)
    for number, rows in enumerate(_parts(samples)):
        own = _kernel(rows, rows)
        total += own.sum() - own.trace()
        for columns in _parts(samples[(number + 1) * _ROWS :]):
            total += 2 * _kernel(rows, columns).sum()
    return total


@dataclass(frozen=True)
class PrecisionRecall:
    """Overlap of two sets of features."""

    precision: float  # share of generated samples in the manifold of the reference: fidelity
    recall: float  # share of reference samples in the manifold of the generated samples: diversity


def precision_recall(reference: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Return improved precision and recall (arXiv 1904.06991).

    The manifold of a set is the union of balls around its samples. The radius of a ball is the distance to the sample's
    k-th nearest neighbor in the set. Both results depend on the numbers of samples: report them together.

    Args:
        reference: (N, d) features, more than k.
        generated: (M, d) features, more than k.
        k: Neighbor that defines the radius; usually 3.
    """
    real, fake = _check_features(reference, generated, k + 1)
    return PrecisionRecall(_share_inside(real, fake, k), _share_inside(fake, real, k))


def _share_inside(manifold: Tensor, points: Tensor, k: int) -> float:
    """Return the share of `points` inside the manifold of another set."""
    radii = _radii(manifold, k)
    inside = 0
    for rows in _parts(points):
        within = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for columns, widths in zip(_parts(manifold), radii.split(_ROWS), strict=True):
            within |= (torch.cdist(rows, columns) <= widths).any(dim=1)
        inside += int(within.sum())
    return inside / len(points)


def _radii(samples: Tensor, k: int) -> Tensor:
    """Return the distance of each sample to its k-th nearest neighbor."""
    radii = []
    for rows in _parts(samples):
        nearest = rows.new_empty(len(rows), 0)
        for columns in _parts(samples):
            known = torch.cat([nearest, torch.cdist(rows, columns)], dim=1)
            nearest = known.topk(min(k + 1, known.shape[1]), dim=1, largest=False).values
        radii.append(nearest[:, k])  # the nearest is the sample itself, at distance 0
    return torch.cat(radii)
