"""Paths between noise and data: x_t = alpha(t)·data + sigma(t)·noise, with t = 0 noise and t = 1 data.

A path fixes how much data and how much noise there is at each time. Along it the velocity is
alpha'(t)·data + sigma'(t)·noise, and at a known x_t any one of velocity, noise, data and score tells the
others (Stochastic interpolants, arXiv 2303.08797; SiT, arXiv 2401.08740).
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vavae.errors import UserError

Prediction = Literal["velocity", "noise", "data", "score"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


class Coefficients(NamedTuple):
    """A path at given times: the shares of data and noise, and their derivatives by t."""

    alpha: Tensor
    sigma: Tensor
    alpha_prime: Tensor
    sigma_prime: Tensor


class ProbabilityPath(ABC):
    """A path from noise (t = 0) to data (t = 1).

    Attributes:
        margin: How far sampling stays from the ends where a conversion divides by zero there; 1e-3 as
            published.
    """

    margin = 1e-3

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """Shares of data and noise and their derivatives, each of the shape of t."""

    def interval(self, prediction: Prediction) -> tuple[float, float]:
        """The times on which a network that predicts `prediction` can be integrated."""
        return (0.0, 1.0) if prediction == "velocity" else (self.margin, 1.0 - self.margin)

    def interpolate(self, t: Tensor, noise: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        """The point at time t between noise and data, and the velocity there.

        Args:
            t: (B,) times in [0, 1].
            noise: (B, ...) standard normal noise.
            data: (B, ...) data of the same shape.

        Returns:
            x_t and velocity, both of the shape of data.
        """
        c = self._at(t, data)
        return c.alpha * data + c.sigma * noise, c.alpha_prime * data + c.sigma_prime * noise

    def convert(self, value: Tensor, x: Tensor, t: Tensor, source: Prediction, target: Prediction) -> Tensor:
        """What `value`, a prediction of kind `source` at x_t = x, says of `target`.

        Args:
            value: (B, ...) velocity, noise, data or score (the gradient of the log-density of x_t).
            x: (B, ...) the point on the path.
            t: (B,) or scalar times; inside `interval` where a conversion needs to divide by alpha or sigma.
            source: What `value` is.
            target: What to return.

        Raises:
            UserError: No such kind of prediction.
        """
        for kind in (source, target):
            if kind not in PREDICTIONS:
                raise UserError(f"prediction: {kind!r} is not one of {', '.join(PREDICTIONS)}")
        if source == target:
            return value
        c = self._at(t, x)
        # x = alpha·data + sigma·noise and v = alpha'·data + sigma'·noise, solved for data and noise.
        determinant = c.alpha * c.sigma_prime - c.alpha_prime * c.sigma
        if source == "velocity":
            if target == "data":
                return (c.sigma_prime * x - c.sigma * value) / determinant
            noise = (c.alpha * value - c.alpha_prime * x) / determinant
            return noise if target == "noise" else -noise / c.sigma
        if source == "data":
            if target == "velocity":
                return (c.sigma_prime * x - determinant * value) / c.sigma
            noise = (x - c.alpha * value) / c.sigma
            return noise if target == "noise" else -noise / c.sigma
        noise = value if source == "noise" else -c.sigma * value
        if target == "noise":
            return noise
        if target == "score":
            return -noise / c.sigma
        if target == "data":
            return (x - c.sigma * noise) / c.alpha
        return (c.alpha_prime * x + determinant * noise) / c.alpha

    def _at(self, t: Tensor, like: Tensor) -> Coefficients:
        """Coefficients that broadcast over `like`, (B, ...), for t of shape (B,) or ()."""
        values = self.coefficients(t)
        return Coefficients(*(value.view(value.shape + (1,) * (like.ndim - 1)) for value in values))


class LinearPath(ProbabilityPath):
    """Straight lines: alpha = t, sigma = 1 - t (rectified flow, arXiv 2209.03003); the published choice."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha = t, sigma = 1 - t."""
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)


class CosinePath(ProbabilityPath):
    """Quarter circles that keep the variance at 1: alpha = sin(pi t / 2), sigma = cos(pi t / 2) (GVP)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha = sin(pi t / 2), sigma = cos(pi t / 2)."""
        angle = t * (math.pi / 2)
        sin, cos = angle.sin(), angle.cos()
        return Coefficients(sin, cos, cos * (math.pi / 2), -sin * (math.pi / 2))


class VariancePreservingPath(ProbabilityPath):
    """The variance-preserving diffusion (arXiv 2011.13456) with beta from 0.1 to 20, run from noise to data.

    log alpha = -(beta_max - beta_min)·(1 - t)²/4 - beta_min·(1 - t)/2, sigma² = 1 - alpha². There is still
    e^-5 of data at t = 0, and the velocity grows without bound as t approaches 1.
    """

    beta_min = 0.1
    beta_max = 20.0

    def interval(self, prediction: Prediction) -> tuple[float, float]:
        """[0, 1 - margin]: only sigma reaches zero, at t = 1."""
        return 0.0, 1.0 - self.margin

    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha and sigma of the variance-preserving diffusion."""
        span = self.beta_max - self.beta_min
        log_alpha = -span / 4 * (1 - t) ** 2 - self.beta_min / 2 * (1 - t)
        log_alpha_prime = span / 2 * (1 - t) + self.beta_min / 2
        alpha = log_alpha.exp()
        sigma = (-torch.expm1(2 * log_alpha)).sqrt()
        return Coefficients(alpha, sigma, alpha * log_alpha_prime, -(alpha**2) * log_alpha_prime / sigma)


PathName = Literal["linear", "cosine", "vp"]
_PATHS: dict[str, type[ProbabilityPath]] = {
    "linear": LinearPath,
    "cosine": CosinePath,
    "vp": VariancePreservingPath,
}


def path_by_name(name: PathName) -> ProbabilityPath:
    """The path called "linear", "cosine" or "vp" in recipes.

    Raises:
        UserError: No such path.
    """
    if name not in _PATHS:
        raise UserError(f"path: {name!r} is not one of {', '.join(_PATHS)}")
    return _PATHS[name]()
