"""The Inception Score: confident and varied class predictions."""

import math

import torch
from torch import Tensor

from vavae.device import to_float64


class InceptionScore:
    """Running Inception Score (arXiv 1606.03498), in constant memory.

    The score is exp(mean KL(p(y | x) ‖ p(y))) of each split of `split_size` consecutive samples, averaged over the
    splits, as in ADM's evaluator; the last split may be shorter. Samples sorted by class score too low: their order
    must be random or alternating.

    Args:
        split_size: Samples per split.
    """

    def __init__(self, split_size: int = 5000) -> None:
        if split_size < 1:
            raise ValueError(f"split_size must be positive, got {split_size}")
        self.split_size = split_size
        self._scores: list[float] = []
        self._restart()

    def _restart(self) -> None:
        self._count = 0
        self._probabilities: Tensor | None = None
        self._negentropy = 0.0

    def update(self, logits: Tensor) -> None:
        """Add the logits (N, classes) of the next samples."""
        left = to_float64(logits.detach()).cpu()
        while len(left):
            part = left[: self.split_size - self._count]
            left = left[len(part) :]
            logs = torch.log_softmax(part, dim=1)
            total = logs.exp().sum(0)
            self._probabilities = total if self._probabilities is None else self._probabilities + total
            self._negentropy += float((logs.exp() * logs).sum())
            self._count += len(part)
            if self._count == self.split_size:
                self._scores.append(self._score())
                self._restart()

    def _score(self) -> float:
        assert self._probabilities is not None
        marginal = self._probabilities / self._count
        return math.exp(self._negentropy / self._count - float(torch.xlogy(marginal, marginal).sum()))

    def compute(self) -> float:
        """Return the score, between 1 and the number of classes.

        Raises:
            ValueError: There were no samples.
        """
        scores = [*self._scores, *([self._score()] if self._count else [])]
        if not scores:
            raise ValueError("an Inception Score needs samples")
        return sum(scores) / len(scores)
