"""Kernel distance, precision and recall by brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from vavae.metrics import distribution, kernel_distance, precision_recall


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 9), m=st.integers(2, 9), size=st.integers(1, 4), seed=st.integers(0, 999))
def test_kernel_distance_by_brute_force(n, m, size, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, size)), rng.normal(size=(m, size)) + 0.5

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / size + 1) ** 3

    within_a = np.mean([kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j])
    within_b = np.mean([kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j])
    across = np.mean([kernel(x, y) for x in a for y in b])
    found = kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(within_a + within_b - 2 * across, rel=1e-9, abs=1e-9)


def test_kernel_distance_of_equal_distributions():
    generator = torch.Generator().manual_seed(0)
    draws = [kernel_distance(*torch.randn(2, 20, 8, generator=generator)) for _ in range(300)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(300)
    assert min(draws) < 0 < max(draws)
    shifted = torch.randn(200, 8, generator=generator) + 1
    assert kernel_distance(torch.randn(200, 8, generator=generator), shifted) > 1


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 12), m=st.integers(4, 12), k=st.integers(1, 3), seed=st.integers(0, 999))
def test_precision_and_recall_by_brute_force(n, m, k, seed):
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) * 0.7 + 0.3

    def share(manifold: np.ndarray, points: np.ndarray) -> float:
        radii = [sorted(np.linalg.norm(manifold - x, axis=1))[k] for x in manifold]
        inside = [any(np.linalg.norm(p - x) <= r for x, r in zip(manifold, radii, strict=True)) for p in points]
        return float(np.mean(inside))

    found = precision_recall(torch.from_numpy(real), torch.from_numpy(fake), k)
    assert found.precision == pytest.approx(share(real, fake))
    assert found.recall == pytest.approx(share(fake, real))


def test_precision_and_recall_differ():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 4, generator=generator)
    narrow = precision_recall(real, 0.2 * torch.randn(400, 4, generator=generator))
    wide = precision_recall(real, 4 * torch.randn(400, 4, generator=generator))
    assert narrow.precision > 0.95 and narrow.recall < 0.2
    assert wide.precision < 0.3 and wide.recall > 0.8
    same = precision_recall(real, real)
    assert same.precision == same.recall == 1.0


def test_rows_per_part_do_not_matter(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(50, 6, generator=generator), torch.randn(40, 6, generator=generator)
    whole = kernel_distance(a, b), precision_recall(a, b)
    monkeypatch.setattr(distribution, "_ROWS", 7)
    assert kernel_distance(a, b) == pytest.approx(whole[0], rel=1e-9)
    assert precision_recall(a, b) == whole[1]


class LargestOutput(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        for value in given if isinstance(given, tuple | list) else (given,):
            # A view of the features takes no further memory.
            if isinstance(value, torch.Tensor) and not any(r.alias_info for r in func._schema.returns):
                self.elements = max(self.elements, value.numel())
        return given


def test_memory_does_not_grow_with_samples(monkeypatch):
    monkeypatch.setattr(distribution, "_ROWS", 16)
    a, b = torch.randn(2, 96, 32, generator=torch.Generator().manual_seed(2))
    for measured in (kernel_distance, precision_recall):
        with LargestOutput() as largest:
            measured(a, b)
        assert 16 * 16 <= largest.elements < 16 * 64  # 16 rows of either matrix have 16 * 96 elements


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="at least 4"):
        precision_recall(torch.zeros(3, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"\(5, 3\), \(5, 4\)"):
        kernel_distance(torch.zeros(5, 3), torch.zeros(5, 4))
