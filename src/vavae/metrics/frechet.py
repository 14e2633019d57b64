"""Fréchet distance between Gaussians, and the running mean and covariance that it needs."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vavae.device import float64_device, to_float64
from vavae.errors import UserError
from vavae.metrics.npz import stored_count

Array = NDArray[np.floating] | Tensor
_TOLERANCE = 1e-3  # largest error of a factored covariance, relative to its norm
_LARGEST = 1e100  # number in statistics, whose squares and sums must be finite
_PRECISION = 1e-11  # relative to the traces of the covariances: a distance of a thousandth of them has eight digits


def _as_double(values: Array) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return to_float64(tensor.detach())


def _factor(covariance: Tensor, name: str) -> Tensor:
    """Return A (d, r) with A Aᵀ = covariance, r its numerical rank, by Cholesky decomposition with pivoting.

    It costs a fraction of eigenvectors. Values below the rounding of the largest entry are noise around zero and left
    out: their roots would be 1e-8 instead of 1e-16.

    Raises:
        ValueError: The covariance is not positive semi-definite, apart from float32 rounding. `name` is its name.
    """
    from scipy.linalg.lapack import dpstrf

    covariance = covariance.cpu()
    symmetric = ((covariance + covariance.T) / 2).numpy()
    factor = np.empty((len(symmetric), 0))
    if symmetric.diagonal().max(initial=0.0) > 0:
        lower, pivots, rank, _ = dpstrf(symmetric, lower=1)
        factor = np.empty((len(symmetric), rank))
        factor[pivots - 1] = np.tril(lower)[:, :rank]
    root = torch.from_numpy(factor)
    if torch.linalg.norm(covariance - root @ root.T) > _TOLERANCE * torch.linalg.norm(covariance):
        raise ValueError(f"{name} is not symmetric and positive semi-definite, as covariances are")
    return root


def _nuclear_norm(matrix: Tensor, needed: float) -> Tensor:
    """Return the sum of singular values, to an absolute error of `needed` or the precision of singular values.

    The roots of the eigenvalues of the smaller Gram matrix take a third of the time of singular values. Eigenvalues
    are exact to a rounding of the largest one. Their roots are as exact unless they are small, which is checked.
    """
    if min(matrix.shape) == 0:
        return matrix.new_zeros(())
    gram = matrix.T @ matrix if matrix.shape[1] <= matrix.shape[0] else matrix @ matrix.T
    values = torch.linalg.eigvalsh(gram)
    rounding = torch.finfo(torch.float64).eps * values[-1].clamp(min=0)
    if float(values[0]) > 0 and float((rounding / (2 * values.sqrt())).sum()) <= needed:
        return values.sqrt().sum()
    return torch.linalg.svdvals(matrix).sum()


def frechet_distance(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """Return the squared Fréchet distance between two Gaussians: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½).

    The matrix root is not needed for its trace: with C1 = A Aᵀ and C2 = B Bᵀ (with as many columns as their rank),
    tr (C1 C2)^½ is the sum of the singular values of Aᵀ B, computed by a symmetric eigendecomposition. The result is
    real, finite and accurate for singular covariances too, for example of fewer samples than dimensions, for which a
    general matrix square root fails.

    Args:
        mean1: (d,).
        cov1: (d, d), positive semi-definite.
        mean2: (d,).
        cov2: (d, d), positive semi-definite.

    Returns:
        The distance, at least 0, computed in float64.

    Raises:
        ValueError: Shapes differ, a number is not finite, or a matrix is not positive semi-definite.
    """
    m1, c1, m2, c2 = (_as_double(values) for values in (mean1, cov1, mean2, cov2))
    size = m1.numel()
    if m1.shape != (size,) or m2.shape != (size,) or c1.shape != (size, size) or c2.shape != (size, size):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (m1, c1, m2, c2))
        raise ValueError(f"means (d,) and covariances (d, d) of one d are needed, got {shapes}")
    for name, tensor in (("mean1", m1), ("cov1", c1), ("mean2", m2), ("cov2", c2)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} has numbers that are not finite")
    spread = float((m1 - m2).square().sum() + c1.trace() + c2.trace())
    root1, root2 = _factor(c1, "cov1"), _factor(c2, "cov2")
    overlap = float(_nuclear_norm(root1.T @ root2, _PRECISION * spread))
    distance = spread - 2 * overlap
    return max(distance, 0.0)


class RunningMoments:
    """Mean and covariance of features that come in batches, in float64.

    Parts of several batches or processes are combined exactly (Chan, Golub, LeVeque 1979).

    Args:
        dimension: Number of features.
        device: Device of the sums; the CPU if the device has no float64.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        device = float64_device(device)
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (d, d), of at least two samples."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)

    def update(self, features: Tensor) -> None:
        """Add (N, d) features."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features must be (N, {len(self.mean)}), got {tuple(features.shape)}")
        if len(features) == 0:
            return
        x = to_float64(features.detach()).to(self.mean)
        mean = x.mean(0)
        centered = x - mean
        self._combine(len(x), mean, centered.T @ centered)

    def merge(self, other: "RunningMoments") -> None:
        """Add all features of `other`."""
        if other.count:
            self._combine(other.count, other.mean.to(self.mean), other.scatter.to(self.scatter))

    def _combine(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        difference = mean - self.mean
        self.scatter += scatter + torch.outer(difference, difference) * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total

    def distance(self, other: "RunningMoments") -> float:
        """Return the Fréchet distance to another set of features."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], name: str, mean: str = "mu", covariance: str = "sigma"
    ) -> Self:
        """Build reference statistics from the arrays of a file.

        Args:
            arrays: Arrays by name. `count` is the number of samples; without it 50,000 is assumed, which the distance
                does not depend on.
            name: Name of the file, for messages.
            mean: Name of the mean, (d,).
            covariance: Name of the covariance, (d, d).

        Raises:
            UserError: Shapes do not fit, an array does not contain finite numbers of single or double precision, or
                the covariance is not positive semi-definite. (Half precision changes a distance by hundredths.)
        """
        m, c = (arrays[key] for key in (mean, covariance))
        if m.ndim != 1 or c.shape != (len(m), len(m)):
            raise UserError(f"{name}: {mean} has shape {m.shape}, {covariance} {c.shape}")
        for key in (mean, covariance):
            if arrays[key].dtype.kind not in "fiu":
                raise UserError(f"{name}: {key} must be real numbers, got {arrays[key].dtype}")
            if arrays[key].dtype == np.float16:
                raise UserError(f"{name}: {key} must be float32 or float64, got float16, which changes distances")
            if not (np.abs(arrays[key].astype(np.float64)) < _LARGEST).all():  # false for NaN too
                raise UserError(f"{name}: {key} holds numbers that are not finite or above {_LARGEST:g}")
        try:
            _factor(torch.from_numpy(c.astype(np.float64)), covariance)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
        moments = cls(len(m))
        moments.count = stored_count(arrays, name) or 50_000
        moments.mean = torch.from_numpy(m.astype(np.float64))
        moments.scatter = torch.from_numpy(c.astype(np.float64)) * (moments.count - 1)
        return moments
