"""Counter-based random numbers: their distribution, and that they depend on (seed, stream, index) only."""

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vavae import rng


def test_known_numbers() -> None:
    """Stored runs depend on these numbers: a change of the hash would break every resume."""
    assert rng.integers(0, "order", [0, 1, 2, 3], 1000).tolist() == [995, 287, 527, 662]
    numbers = rng.normal(7, "noise", [5], (3,))[0]
    torch.testing.assert_close(numbers, torch.tensor([1.42052710, 0.07446035, 0.07489885]), rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 2**40), min_size=1, max_size=8), st.integers(1, 9))
def test_row_depends_on_its_index_only(seed: int, indices: list[int], count: int) -> None:
    together = rng.normal(seed, "s", indices, (count,))
    apart = torch.cat([rng.normal(seed, "s", [i], (count,)) for i in indices])
    assert torch.equal(together, apart)
    # a longer row begins with the shorter one
    assert torch.equal(rng.normal(seed, "s", indices, (count + 4,))[:, :count], together)


def test_streams_and_seeds_differ() -> None:
    base = rng.uniform(0, "a", range(100))
    assert not torch.equal(base, rng.uniform(0, "b", range(100)))
    assert not torch.equal(base, rng.uniform(1, "a", range(100)))


def test_normal_distribution() -> None:
    numbers = rng.normal(3, "noise", range(400), (501,))
    assert scipy.stats.kstest(numbers.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert abs(float(numbers.mean())) < 0.01
    assert abs(float(numbers.std()) - 1) < 0.01
    # neighboring rows, and neighboring columns (which share one hash in pairs), are not correlated
    correlation = torch.corrcoef(numbers[:50])
    assert float((correlation - torch.eye(50)).abs().max()) < 0.25
    pairs = numbers[:, :500].reshape(-1, 2).T
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(pairs.square())[0, 1])) < 0.02


def test_uniform_distribution() -> None:
    numbers = rng.uniform(3, "t", range(20000))
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert scipy.stats.kstest(numbers.double().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("high", [1, 2, 10, 50_000, 1_281_167, 2**31])
def test_integers_are_in_range_and_even(high: int) -> None:
    numbers = rng.integers(1, "i", range(5000), high)
    assert int(numbers.min()) >= 0 and int(numbers.max()) < high
    if high == 10:
        assert scipy.stats.chisquare(torch.bincount(numbers).numpy()).pvalue > 1e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 300))
def test_permutation(seed: int, length: int) -> None:
    order = rng.permutation(seed, "epoch/0", length)
    assert sorted(order.tolist()) == list(range(length))
    assert torch.equal(order, rng.permutation(seed, "epoch/0", length))
