"""Other distances between sets of features: kernel distance for small sets, precision and recall."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vavae.device import float64_device, to_float64

_ROWS = 2048  # samples on either side of the part of a distance or kernel matrix that is held at once


def _check_features(first: Tensor, second: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features (N, d) and (M, d) are needed, not {tuple(first.shape)}, {tuple(second.shape)}")
    if min(len(first), len(second)) < fewest:
        raise ValueError(f"at least {fewest} samples on each side are needed, not {len(first)} and {len(second)}")
    return first.detach(), second.detach().to(first.device)


def _parts(features: Tensor) -> Iterator[Tensor]:
    """The samples in float64, some at a time: a whole copy of a million would take as much again twice."""
    return (to_float64(rows) for rows in features.split(_ROWS))


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Kernel distance (KID, arXiv 1801.01401): unbiased squared MMD with the kernel (x · y / d + 1)³.

    Unlike the Fréchet distance it does not depend on the number of samples on average, so it suits small sets; it may
    be slightly negative. All samples enter at once, where other programs average over random subsets: (N + M)² · d
    floating-point operations, in memory that does not grow with their number beside the features.

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
    """Sum of the kernel over all ordered pairs of different samples."""
    total = _zero(samples)
    for number, rows in enumerate(_parts(samples)):
        own = _kernel(rows, rows)
        total += own.sum() - own.trace()
        for columns in _parts(samples[(number + 1) * _ROWS :]):
            total += 2 * _kernel(rows, columns).sum()
    return total


@dataclass(frozen=True)
class PrecisionRecall:
    """How much two sets of features overlap.

    Attributes:
        precision: Share of generated samples that lie in the manifold of the reference: fidelity.
        recall: Share of reference samples that lie in the manifold of the generated ones: diversity.
    """

    precision: float
    recall: float


def precision_recall(reference: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (arXiv 1904.06991).

    The manifold of a set is the union of balls around its samples, each as wide as the distance to its k-th nearest
    neighbour in the set. Both numbers depend on the numbers of samples, which must go with them.

    Args:
        reference: (N, d) features, more than k.
        generated: (M, d) features, more than k.
        k: Neighbour that sets the width; 3 as usual.
    """
    real, fake = _check_features(reference, generated, k + 1)
    return PrecisionRecall(_share_inside(real, fake, k), _share_inside(fake, real, k))


def _share_inside(manifold: Tensor, points: Tensor, k: int) -> float:
    """Share of `points` inside the manifold of another set."""
    radii = _radii(manifold, k)
    inside = 0
    for rows in _parts(points):
        within = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for columns, widths in zip(_parts(manifold), radii.split(_ROWS), strict=True):
            within |= (torch.cdist(rows, columns) <= widths).any(dim=1)
        inside += int(within.sum())
    return inside / len(points)


def _radii(samples: Tensor, k: int) -> Tensor:
    """Distance of each sample to its k-th nearest neighbour."""
    radii = []
    for rows in _parts(samples):
        nearest = rows.new_empty(len(rows), 0)
        for columns in _parts(samples):
            known = torch.cat([nearest, torch.cdist(rows, columns)], dim=1)
            nearest = known.topk(min(k + 1, known.shape[1]), dim=1, largest=False).values
        radii.append(nearest[:, k])  # the nearest is the sample itself, at distance 0
    return torch.cat(radii)
