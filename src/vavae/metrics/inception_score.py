"""The Inception Score: confident and varied class predictions."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from vavae.device import to_float64


def inception_score(batches: Iterable[Tensor], split_size: int = 5000) -> float:
    """Return the Inception Score (arXiv 1606.03498), in constant memory.

    The score is exp(mean KL(p(y | x) ‖ p(y))) of each split of `split_size` consecutive samples, averaged over the
    splits, as in ADM's evaluator; the last split may be shorter. Samples sorted by class score too low: their order
    must be random or alternating.

    Args:
        batches: Logits (B, classes) of consecutive samples.
        split_size: Samples per split, at least 1.

    Returns:
        The score, between 1 and the number of classes.

    Raises:
        ValueError: `batches` has no samples.
    """
    scores: list[float] = []
    count, probabilities, negentropy = 0, torch.zeros((), dtype=torch.float64), 0.0
    for logits in batches:
        left = to_float64(logits.detach()).cpu()
        while len(left):
            part = left[: split_size - count]
            left = left[len(part) :]
            logs = torch.log_softmax(part, dim=1)
            probabilities = probabilities + logs.exp().sum(0)
            negentropy += float((logs.exp() * logs).sum())
            count += len(part)
            if count == split_size:
                scores.append(_score(count, probabilities, negentropy))
                count, probabilities, negentropy = 0, torch.zeros((), dtype=torch.float64), 0.0
    if count:
        scores.append(_score(count, probabilities, negentropy))
    if not scores:
        raise ValueError("an Inception Score needs samples")
    return sum(scores) / len(scores)


def _score(count: int, probabilities: Tensor, negentropy: float) -> float:
    """Return the score of a split from its sums over samples of p(y | x) and of Σ p log p."""
    marginal = probabilities / count
    return math.exp(negentropy / count - float(torch.xlogy(marginal, marginal).sum()))
