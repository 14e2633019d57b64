"""Other distances between sets of features: kernel distance for small sets, precision and recall."""

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 2048  # rows of a distance or kernel matrix held at once


def _check_features(first: Tensor, second: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features (N, d) and (M, d) are needed, not {tuple(first.shape)}, {tuple(second.shape)}")
    if min(len(first), len(second)) < fewest:
        raise ValueError(f"at least {fewest} samples on each side are needed, not {len(first)} and {len(second)}")
    a = first.detach().double()
    return a, second.detach().to(a)


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Kernel distance (KID, arXiv 1801.01401): unbiased squared MMD with the kernel (x · y / d + 1)³.

    Unlike the Fréchet distance it does not depend on the number of samples on average, so it suits small sets; it may
    be slightly negative. All samples enter at once, where other programs average over random subsets.

    Args:
        first: (N, d) features, at least 2.
        second: (M, d) features, at least 2.
    """
    a, b = _check_features(first, second, 2)

    def kernel_sum(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([((rows @ y.T / x.shape[1] + 1) ** 3).sum() for rows in x.split(_ROWS)]).sum()

    def diagonal_sum(x: Tensor) -> Tensor:
        return ((x.square().sum(1) / x.shape[1] + 1) ** 3).sum()

    n, m = len(a), len(b)
    within_a = (kernel_sum(a, a) - diagonal_sum(a)) / (n * (n - 1))
    within_b = (kernel_sum(b, b) - diagonal_sum(b)) / (m * (m - 1))
    return float(within_a + within_b - 2 * kernel_sum(a, b) / (n * m))


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
    # The nearest is the sample itself, at distance 0.
    radii = torch.cat([torch.cdist(rows, manifold).kthvalue(k + 1, dim=1).values for rows in manifold.split(_ROWS)])
    inside = sum(int((torch.cdist(rows, manifold) <= radii).any(dim=1).sum()) for rows in points.split(_ROWS))
    return inside / len(points)
