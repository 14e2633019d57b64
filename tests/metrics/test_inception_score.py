"""Inception Score: closed forms and the formula by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vavae.metrics import inception_score


def by_hand(logits: np.ndarray, split: int) -> float:
    """Return the score by its formula, in numpy."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    scores = []
    for start in range(0, len(p), split):
        part = p[start : start + split]
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    return float(np.mean(scores))


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 40),
    split=st.integers(1, 17),
    cuts=st.lists(st.integers(1, 13), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_formula_with_any_batches(count, split, cuts, seed):
    logits = np.random.default_rng(seed).normal(size=(count, 7)) * 3
    batches, start = [], 0
    while start < count:
        step = cuts[start % len(cuts)]
        batches.append(torch.from_numpy(logits[start : start + step]))
        start += step
    assert inception_score(batches, split) == pytest.approx(by_hand(logits, split), rel=1e-9)


def test_closed_forms():
    certain = 1000 * torch.eye(10)
    assert inception_score([certain.repeat(20, 1)]) == pytest.approx(10, rel=1e-12)
    assert inception_score([certain[:1].repeat(50, 1)]) == pytest.approx(1, rel=1e-12)
    assert inception_score([torch.zeros(50, 10)]) == pytest.approx(1, rel=1e-12)
    # Two classes, 9 to 1 either way: exp(log 2 - H(0.1)).
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log().repeat(8, 1)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert inception_score([logits]) == pytest.approx(math.exp(math.log(2) - entropy), rel=1e-6)


def test_sorted_samples_score_too_low_in_splits():
    logits = 1000 * torch.eye(10).repeat_interleave(100, 0)
    assert inception_score([logits], 1000) == pytest.approx(10) and inception_score([logits], 100) == pytest.approx(1)
    with pytest.raises(ValueError, match="samples"):
        inception_score([])
