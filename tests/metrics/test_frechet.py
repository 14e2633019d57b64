"""Fréchet distance: closed forms, scipy's matrix square root, singular covariances, splits of the data."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vavae.data import DemoImages
from vavae.errors import UserError
from vavae.metrics import RunningMoments, frechet_distance
from vavae.metrics.npz import read_npz


def load(path: Path) -> RunningMoments:
    return RunningMoments.from_arrays(read_npz(path), str(path))


def random_covariance(rng: np.random.Generator, size: int, rank: int | None = None) -> np.ndarray:
    factor = rng.normal(size=(size, rank or size)) * np.logspace(0, -2, rank or size)
    return factor @ factor.T


def by_square_root(m1, c1, m2, c2) -> float:
    root = scipy.linalg.sqrtm(c1 @ c2)
    return float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * np.trace(root).real)


@pytest.mark.parametrize("size", [1, 2, 10, 64])
def test_agrees_with_matrix_square_root(size):
    rng = np.random.default_rng(size)
    m1, m2 = rng.normal(size=(2, size))
    c1, c2 = random_covariance(rng, size), random_covariance(rng, size)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(by_square_root(m1, c1, m2, c2), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    a=st.floats(1e-3, 1e3),
    b=st.floats(1e-3, 1e3),
    shift=st.floats(-10, 10),
    size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_commuting_covariances(a, b, shift, size, seed):
    """C1 = a Q D Qᵀ, C2 = b Q D² Qᵀ: the distance is a sum over eigenvalues."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    d = rng.uniform(0.1, 2, size)
    c1, c2 = basis * (a * d) @ basis.T, basis * (b * d**2) @ basis.T
    mean = rng.normal(size=size)
    expected = size * shift**2 + ((np.sqrt(a * d) - np.sqrt(b * d**2)) ** 2).sum()
    assert frechet_distance(mean, c1, mean + shift, c2) == pytest.approx(expected, rel=1e-9, abs=1e-9 * (a + b))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 20), rank1=st.integers(1, 20), rank2=st.integers(1, 20), seed=st.integers(0, 999))
def test_distance_is_symmetric_and_finite_for_any_rank(size, rank1, rank2, seed):
    rng = np.random.default_rng(seed)
    c1, c2 = random_covariance(rng, size, rank1), random_covariance(rng, size, rank2)
    zero = np.zeros(size)
    distance = frechet_distance(zero, c1, zero, c2)
    assert np.isfinite(distance) and distance >= 0
    assert distance == pytest.approx(frechet_distance(zero, c2, zero, c1), rel=1e-7, abs=1e-9)
    assert frechet_distance(zero, c1, zero, c1) == pytest.approx(0, abs=1e-9 * np.trace(c1))
    rotation = np.linalg.qr(rng.normal(size=(size, size)))[0]
    turned = frechet_distance(zero, rotation @ c1 @ rotation.T, zero, rotation @ c2 @ rotation.T)
    assert turned == pytest.approx(distance, rel=1e-6, abs=1e-8)


def test_singular_covariances_in_orthogonal_spaces():
    """The general square root returns NaN or complex numbers here. The overlap is zero and the distance exact."""
    c1, c2 = np.diag([4.0, 1, 0, 0, 0]), np.diag([0.0, 0, 9, 0, 0])
    assert frechet_distance(np.zeros(5), c1, np.zeros(5), c2) == pytest.approx(14, abs=1e-12)
    assert frechet_distance(np.zeros(5), np.zeros((5, 5)), np.ones(5), c2) == pytest.approx(14, abs=1e-12)


def test_fewer_samples_than_dimensions():
    """tr (C1 C2)^½ from samples is the nuclear norm of X1 X2ᵀ / ((n1 - 1) (n2 - 1))^½, without any covariance."""
    rng = np.random.default_rng(0)
    x1, x2 = rng.normal(size=(20, 100)), rng.normal(size=(15, 100)) * 2 + 0.3
    a, b = RunningMoments(100), RunningMoments(100)
    a.update(torch.from_numpy(x1))
    b.update(torch.from_numpy(x2))
    y1, y2 = x1 - x1.mean(0), x2 - x2.mean(0)
    overlap = np.linalg.svd(y1 @ y2.T, compute_uv=False).sum() / np.sqrt(19 * 14)
    spread = (y1**2).sum() / 19 + (y2**2).sum() / 14
    expected = ((x1.mean(0) - x2.mean(0)) ** 2).sum() + spread - 2 * overlap
    assert a.distance(b) == pytest.approx(expected, rel=1e-10)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\), \(3, 3\), \(2,\)"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))
    bad = np.eye(3)
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match="cov2"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), bad)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), cut=st.integers(0, 8), seed=st.integers(0, 99))
def test_moments_do_not_depend_on_splits(sizes, cut, seed):
    if sum(sizes) < 2:
        sizes = [*sizes, 2]
    rng = np.random.default_rng(seed)
    # The mean is large and the spread small: adding up squares would lose every digit.
    x = rng.normal(size=(sum(sizes), 5)) + 1e6
    parts = (RunningMoments(5), RunningMoments(5))
    first = 0
    for number, size in enumerate(sizes):
        parts[number >= cut].update(torch.from_numpy(x[first : first + size]))
        first += size
    parts[0].merge(parts[1])
    assert parts[0].count == len(x)
    np.testing.assert_allclose(parts[0].mean.numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(parts[0].covariance.numpy(), np.cov(x.T), rtol=0, atol=1e-7)


def test_moments_of_real_images():
    pixels = DemoImages("test").pixels[:200, ::4, ::4].reshape(200, -1).astype(np.float32)
    moments = RunningMoments(192)
    for part in torch.from_numpy(pixels).split(37):
        moments.update(part)
    np.testing.assert_allclose(moments.covariance.numpy(), np.cov(pixels.T.astype(np.float64)), rtol=1e-9)
    with pytest.raises(UserError, match="at least 2"):
        _ = RunningMoments(3).covariance
    with pytest.raises(ValueError, match="192"):
        moments.update(torch.zeros(2, 3))


def test_statistics_of_a_file(tmp_path):
    moments = RunningMoments(6)
    moments.update(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    np.savez(tmp_path / "reference.npz", mu=moments.mean, sigma=moments.covariance, count=moments.count)
    loaded = load(tmp_path / "reference.npz")
    assert loaded.count == 50
    torch.testing.assert_close(loaded.covariance, moments.covariance)
    loaded.update(torch.ones(1, 6))
    moments.update(torch.ones(1, 6))
    torch.testing.assert_close(loaded.covariance, moments.covariance)


def test_statistics_of_other_programs(tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(6), sigma=np.eye(6), mu_s=np.zeros(3))
    assert load(tmp_path / "adm.npz").covariance.trace() == pytest.approx(6)
    whole = (tmp_path / "adm.npz").read_bytes()
    (tmp_path / "flipped.npz").write_bytes(whole.replace(np.eye(6).tobytes(), np.full((6, 6), 2.0).tobytes()))
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "shape.npz", mu=np.zeros(6), sigma=np.eye(5))
    np.savez(tmp_path / "nan.npz", mu=np.full(6, np.nan), sigma=np.eye(6))
    np.savez(tmp_path / "counts.npz", mu=np.zeros(6), sigma=np.eye(6), count=[3, 4])
    for name, reason in {
        "absent": "absent",
        "flipped": "CRC",
        "text": "not a file of reference",
        "shape": "sigma",
        "nan": "mu holds numbers that are not finite",
        "counts": "count is not one number",
    }.items():
        with pytest.raises(UserError, match=reason):
            load(tmp_path / f"{name}.npz")


def test_other_matrices_are_refused():
    for matrix in (-np.eye(2), np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[1.0, 0.9], [0.0, 1.0]])):
        with pytest.raises(ValueError, match="cov2 is not symmetric and positive semi-definite"):
            frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), matrix)


def test_float32_covariance_of_few_samples():
    samples = np.random.default_rng(0).normal(size=(20, 64)) @ np.random.default_rng(1).normal(size=(64, 64))
    covariance = np.cov(samples, rowvar=False)
    exact = frechet_distance(np.zeros(64), covariance, np.zeros(64), np.eye(64))
    stored = frechet_distance(np.zeros(64), covariance.astype(np.float32), np.zeros(64), np.eye(64))
    assert stored == pytest.approx(exact, rel=1e-4)
