"""Classification from latents or features: linear probe and nearest neighbors. Both are deterministic."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vavae import rng
from vavae.device import to_float64

Features = NDArray[np.floating] | Tensor
Labels = NDArray[np.integer] | Tensor

_HELD_OUT = 5  # every fifth training sample, in a fixed random order, selects the regularization
_REGULARIZATIONS = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 7))  # 1e-5 ... 1e3


def _as_rows(
    train_x: Features, train_y: Labels, test_x: Features, test_y: Labels
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features (N, ...) as (N, d) float64 and labels on the same device, for both sets."""
    if len(train_x) != len(train_y) or len(test_x) != len(test_y):
        raise ValueError(
            f"{len(train_x)} and {len(test_x)} features need as many labels, got {len(train_y)} and {len(test_y)}"
        )
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(f"features differ in shape: {tuple(train_x.shape[1:])} and {tuple(test_x.shape[1:])}")
    train, test = (to_float64(_tensor(features).detach().flatten(1)) for features in (train_x, test_x))
    return train, _tensor(train_y).to(train.device), test, _tensor(test_y).to(train.device)


def _tensor(values: NDArray[Any] | Tensor) -> Tensor:
    """Return a tensor unchanged, an array as a copy: torch cannot share read-only arrays, such as a source's labels."""
    return values if isinstance(values, Tensor) else torch.tensor(values)


class _RidgePath:
    """Ridge regressions of one data set for many regularizations, from one symmetric eigendecomposition.

    They minimize |X W - Y|² / n + r |W|² with X standardized and Y centered. The smaller of XᵀX and XXᵀ is decomposed.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._mean = x.mean(0)
        std = x.std(0, correction=0)
        self._scale = torch.where(std > 1e-12, 1.0 / std.clamp(min=1e-12), torch.zeros_like(std))
        self._target_mean = y.mean(0)
        x = (x - self._mean) * self._scale
        y = y - self._target_mean
        self._count = len(x)
        primal = x.shape[1] <= x.shape[0]
        values, vectors = torch.linalg.eigh(x.T @ x if primal else x @ x.T)
        self._values = values.clamp(min=0)
        self._left = vectors if primal else x.T @ vectors
        self._right = vectors.T @ (x.T @ y if primal else y)

    def predict(self, x: Tensor, regularization: float) -> Tensor:
        inverse = 1.0 / (self._values + regularization * self._count)
        weights = self._left @ (inverse[:, None] * self._right)
        return ((x - self._mean) * self._scale) @ weights + self._target_mean


def linear_probe(train_x: Features, train_y: Labels, test_x: Features, test_y: Labels) -> float:
    """Return the accuracy of a ridge classifier on standardized features.

    The classifier is one linear map to one-hot targets by least squares. Its regularization is chosen from 17 values
    between 1e-5 and 1e3: the one that classifies a held-out fifth of the training samples best, the largest of equally
    good ones. Then the map is fitted to all training samples.

    Args:
        train_x: (N, ...) features or latents, flattened here.
        train_y: (N,) integer labels.
        test_x: (M, ...).
        test_y: (M,).

    Returns:
        The share of correctly classified test samples, in [0, 1].
    """
    train, known, test, wanted = _as_rows(train_x, train_y, test_x, test_y)
    classes = known.unique()
    targets = (known[:, None] == classes).to(train.dtype)

    order = rng.permutation(0, "linear probe", len(train)).to(train.device)
    held, kept = order[::_HELD_OUT], order[torch.arange(len(order)) % _HELD_OUT != 0]
    path = _RidgePath(train[kept], targets[kept])
    best, best_accuracy = _REGULARIZATIONS[-1], -1.0
    for regularization in reversed(_REGULARIZATIONS):
        predicted = classes[path.predict(train[held], regularization).argmax(1)]
        accuracy = float((predicted == known[held]).double().mean())
        if accuracy > best_accuracy:
            best, best_accuracy = regularization, accuracy
    predicted = classes[_RidgePath(train, targets).predict(test, best).argmax(1)]
    return float((predicted == wanted).double().mean())


def knn_accuracy(
    train_x: Features, train_y: Labels, test_x: Features, test_y: Labels, k: int = 20, temperature: float = 0.07
) -> float:
    """Return the accuracy of a nearest-neighbor vote by cosine similarity, as usual for frozen features.

    Each of the k most similar training samples votes for its class with weight exp(similarity / temperature)
    (arXiv 1805.01978); k and temperature as in DINO (arXiv 2104.14294).

    Args:
        train_x: (N, ...) features or latents, flattened here.
        train_y: (N,) integer labels.
        test_x: (M, ...).
        test_y: (M,).
        k: Number of neighbors, at most all training samples.
        temperature: Temperature of the votes.

    Returns:
        The share of correctly classified test samples, in [0, 1].
    """
    train, known, test, wanted = _as_rows(train_x, train_y, test_x, test_y)
    train, test = (torch.nn.functional.normalize(rows, dim=1) for rows in (train, test))
    classes = known.unique()
    one_hot = (known[:, None] == classes).to(train.dtype)
    right = 0
    for queries, labels in zip(test.split(512), wanted.split(512), strict=True):
        similarity, neighbors = (queries @ train.T).topk(min(k, len(train)), dim=1)
        votes = (torch.exp(similarity / temperature)[..., None] * one_hot[neighbors]).sum(1)
        right += int((classes[votes.argmax(1)] == labels).sum())
    return right / len(test)
