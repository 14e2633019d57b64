"""Alignment with teacher features against brute force and published numbers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vavae.metrics import cknna, distance_matrix_similarity, mapped_cosine


def brute_cknna(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Return CKNNA from neighbor lists as sets and HSIC by equation 5 of Song et al. 2012 (diagonals are 0)."""
    n = len(a)
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    kernels = a @ a.T, b @ b.T

    def lists(kernel: np.ndarray) -> list[set[int]]:
        return [set(sorted(set(range(n)) - {i}, key=lambda j: -kernel[i, j])[:k]) for i in range(n)]

    near = [lists(kernel) for kernel in kernels]

    def masked(kernel: np.ndarray, one: list[set[int]], two: list[set[int]]) -> np.ndarray:
        return np.array([[kernel[i, j] * (j in one[i] and j in two[i]) for j in range(n)] for i in range(n)])

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        one = np.ones(n)
        terms = np.trace(x @ y) + (one @ x @ one) * (one @ y @ one) / ((n - 1) * (n - 2))
        return (terms - 2 / (n - 2) * (one @ x @ y @ one)) / (n * (n - 3))

    cross = hsic(masked(kernels[0], *near), masked(kernels[1], *near))
    own = [hsic(*[masked(kernel, lists_, lists_)] * 2) for kernel, lists_ in zip(kernels, near, strict=True)]
    return cross / np.sqrt(own[0] * own[1])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 6))
def test_cknna_by_brute_force(seed, k):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(8, 5))
    b = a @ rng.normal(size=(5, 3)) + 0.5 * rng.normal(size=(8, 3))
    expected = brute_cknna(a, b, k)
    assert cknna(torch.from_numpy(a), torch.from_numpy(b), k) == pytest.approx(
        expected, rel=1e-9, abs=1e-9, nan_ok=True
    )


def test_cknna_of_equal_rotated_and_unrelated_features():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 4, 2, 2, generator=generator)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    assert cknna(a, a) == pytest.approx(1, abs=1e-12)
    assert cknna(a, a.flatten(1) @ turn * 3) == pytest.approx(1, abs=1e-5)
    assert abs(cknna(a, torch.randn(300, 10, generator=generator))) < 0.05
    noisy = [cknna(a, a + level * torch.randn(a.shape, generator=generator)) for level in (0.1, 0.5, 2.0)]
    assert 1 > noisy[0] > noisy[1] > noisy[2] > 0
    with pytest.raises(ValueError, match="more than 300 and 3, are needed, got"):
        cknna(a, a, 300)


def test_distance_matrix_similarity_published_number():
    """The published distance-matrix loss with margin 0 of these sines is .13230667."""
    z = torch.sin(0.11 * torch.arange(2 * 1024 * 16, dtype=torch.float64)).view(2, 1024, 4, 4)
    f = torch.sin(0.07 * torch.arange(2 * 1024 * 16, dtype=torch.float64) + 0.5).view(2, 1024, 4, 4)
    values = distance_matrix_similarity(z, f)
    assert values.shape == (2,)
    assert float(values.mean()) == pytest.approx(0.13230667, abs=1e-7)


def test_distance_matrix_similarity_by_brute_force():
    generator = torch.Generator().manual_seed(1)
    z, f = torch.randn(3, 5, 2, 3, generator=generator), torch.randn(3, 9, 2, 3, generator=generator)

    def cosine(x: torch.Tensor, i: int, j: int) -> float:
        a, b = x.flatten(1)[:, i].double(), x.flatten(1)[:, j].double()
        return float(a @ b / (a.norm() * b.norm()))

    for image in range(3):
        pairs = itertools.product(range(6), repeat=2)
        expected = np.mean([abs(cosine(z[image], i, j) - cosine(f[image], i, j)) for i, j in pairs])
        assert float(distance_matrix_similarity(z, f)[image]) == pytest.approx(expected, rel=1e-9)
    assert float(distance_matrix_similarity(z, 4 * z).max()) < 1e-6
    with pytest.raises(ValueError, match="needed"):
        distance_matrix_similarity(z, f[:, :, :1])


def test_mapped_cosine_finds_linear_maps_only():
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(40, 6, 4, 4, generator=generator)
    linear = torch.einsum("dc,bchw->bdhw", torch.randn(20, 6, generator=generator), z)
    assert mapped_cosine(z, linear) > 0.9999
    noisy = linear + 2 * torch.randn(linear.shape, generator=generator)
    unrelated = torch.randn(linear.shape, generator=generator)
    assert 0.5 < mapped_cosine(z, noisy) < 0.95
    assert abs(mapped_cosine(z, unrelated)) < 0.05
    assert mapped_cosine(z * 1000, noisy) == pytest.approx(mapped_cosine(z, noisy), rel=1e-6)
    with pytest.raises(ValueError, match="2 images"):
        mapped_cosine(z[:1], linear[:1])
