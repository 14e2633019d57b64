"""Paths between noise and data: x_t = alpha(t)·data + sigma(t)·noise, with t = 0 noise and t = 1 data.

A path sets the amounts of data and noise at each time. The velocity along it is alpha'(t)·data + sigma'(t)·noise. At a
known x_t any one of velocity, noise, data and score determines the others (Stochastic interpolants, arXiv 2303.08797;
SiT, arXiv 2401.08740).
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
    """Coefficients of a path at given times: of data and noise, and their derivatives by t."""

    alpha: Tensor
    sigma: Tensor
    alpha_prime: Tensor
    sigma_prime: Tensor


class ProbabilityPath(ABC):
    """A path from noise (t = 0) to data (t = 1).

    Args:
        floor: Least sigma by which a data prediction is divided to become a velocity; JiT (arXiv 2511.13720) and its
            successors take 0.05. 0 divides by sigma itself, and sampling stays away from the ends.

    Attributes:
        margin: Distance of sampling from an end where a conversion divides by zero; 1e-3 as published.

    Raises:
        UserError: The floor is not from 0 to 1.
    """

    margin = 1e-3

    def __init__(self, floor: float = 0.0) -> None:
        if not 0 <= floor <= 1:
            raise UserError(f"velocity_floor must be from 0 to 1, got {floor}")
        self.floor = floor

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """Return the coefficients of data and noise and their derivatives, each of the shape of t."""

    def interval(self, prediction: Prediction) -> tuple[float, float]:
        """Return the first and last time of integration for a network that predicts `prediction`."""
        bounded = prediction == "velocity" or (prediction == "data" and self.floor > 0)
        return (0.0, 1.0) if bounded else (self.margin, 1.0 - self.margin)

    def interpolate(self, t: Tensor, noise: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return the point at time t between noise and data, and the velocity there.

        Args:
            t: (B,) times in [0, 1].
            noise: (B, ...) standard normal noise.
            data: (B, ...) data of the same shape.

        Returns:
            x_t and velocity, both of the shape of data.

        Raises:
            UserError: Noise and data differ in shape.
        """
        if noise.shape != data.shape:
            raise UserError(f"noise must have the shape of the data {tuple(data.shape)}, got {tuple(noise.shape)}")
        c = self._at(t, data)
        return c.alpha * data + c.sigma * noise, c.alpha_prime * data + c.sigma_prime * noise

    def convert(self, value: Tensor, x: Tensor, t: Tensor, source: Prediction, target: Prediction) -> Tensor:
        """Convert a prediction at x_t = x from the kind `source` to the kind `target`.

        Args:
            value: (B, ...) velocity, noise, data or score (the gradient of the log-density of x_t).
            x: (B, ...) point on the path.
            t: (B,) or scalar times; inside `interval` if the conversion divides by alpha or sigma.
            source: Kind of `value`.
            target: Kind to return.

        Returns:
            (B, ...) prediction of kind `target`.

        Raises:
            UserError: A kind does not exist.
        """
        for kind in (source, target):
            if kind not in PREDICTIONS:
                raise UserError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {kind!r}")
        if source == target:
            return value
        c = self._at(t, x)
        # Solve x = alpha·data + sigma·noise and v = alpha'·data + sigma'·noise for data and noise.
        determinant = c.alpha * c.sigma_prime - c.alpha_prime * c.sigma
        if source == "velocity":
            if target == "data":
                return (c.sigma_prime * x - c.sigma * value) / determinant
            noise = (c.alpha * value - c.alpha_prime * x) / determinant
            return noise if target == "noise" else -noise / c.sigma
        if source == "data":
            if target == "velocity":
                return (c.sigma_prime * x - determinant * value) / c.sigma.clamp(min=self.floor)
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
        """Return coefficients that broadcast over `like`, (B, ...), for t of shape (B,) or ()."""
        values = self.coefficients(t)
        # (B,) -> (B, 1, ..., 1)
        return Coefficients(*(value.view(value.shape + (1,) * (like.ndim - 1)) for value in values))


class LinearPath(ProbabilityPath):
    """Straight lines: alpha = t, sigma = 1 - t (rectified flow, arXiv 2209.03003); the published path."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha = t, sigma = 1 - t and their derivatives."""
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)


class CosinePath(ProbabilityPath):
    """Quarter circles that keep the variance at 1: alpha = sin(pi t / 2), sigma = cos(pi t / 2) (GVP)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha = sin(pi t / 2), sigma = cos(pi t / 2) and their derivatives."""
        angle = t * (math.pi / 2)
        sin, cos = angle.sin(), angle.cos()
        return Coefficients(sin, cos, cos * (math.pi / 2), -sin * (math.pi / 2))


class VariancePreservingPath(ProbabilityPath):
    """Variance-preserving diffusion (arXiv 2011.13456) with beta from 0.1 to 20, from noise to data.

    log alpha = -(beta_max - beta_min)·(1 - t)²/4 - beta_min·(1 - t)/2, sigma² = 1 - alpha². alpha is still e^-5 at
    t = 0, and the velocity grows without bound as t approaches 1.
    """

    beta_min = 0.1
    beta_max = 20.0

    def interval(self, prediction: Prediction) -> tuple[float, float]:
        """Return 0 and 1 - margin: only sigma reaches zero, at t = 1."""
        return 0.0, 1.0 - self.margin

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha and sigma of the variance-preserving diffusion and their derivatives."""
        span = self.beta_max - self.beta_min
        log_alpha = -span / 4 * (1 - t) ** 2 - self.beta_min / 2 * (1 - t)
        log_alpha_prime = span / 2 * (1 - t) + self.beta_min / 2
        alpha = log_alpha.exp()
        sigma = (-torch.expm1(2 * log_alpha)).sqrt()
        return Coefficients(alpha, sigma, alpha * log_alpha_prime, -(alpha**2) * log_alpha_prime / sigma)


PathName = Literal["linear", "cosine", "vp"]
_PATHS: dict[str, type[ProbabilityPath]] = {"linear": LinearPath, "cosine": CosinePath, "vp": VariancePreservingPath}


def path_by_name(name: PathName, floor: float = 0.0) -> ProbabilityPath:
    """Return the path that recipes call "linear", "cosine" or "vp", with the `floor` of data predictions.

    Raises:
        UserError: The path does not exist.
    """
    if name not in _PATHS:
        raise UserError(f"path must be one of {', '.join(_PATHS)}, got {name!r}")
    return _PATHS[name](floor)
