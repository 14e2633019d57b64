"""Shape of latent spaces: closed forms, scikit-learn, invariances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from vavae.metrics import (
    interpolate_neighbors,
    latent_shape,
    latent_spectrum,
    latent_uniformity,
    mean_uniformity,
    neighbor_uniformity,
    one_position_each,
    sphere_uniformity,
    uniformity,
)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(2, 8), seed=st.integers(0, 99))
def test_spectrum_of_the_covariance(size, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(60, size)) @ rng.normal(size=(size, size)) + 3
    latents = torch.from_numpy(tokens).view(15, 2, 2, size).permute(0, 3, 1, 2)
    values = np.sort(np.linalg.eigvalsh(np.cov(tokens.T)))[::-1]
    found = latent_spectrum(latents)
    np.testing.assert_allclose(found.eigenvalues.numpy(), values, rtol=1e-8, atol=1e-12)
    share = values / values.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-8)
    assert found.participation_ratio == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-8)
    turn = torch.linalg.qr(torch.from_numpy(rng.normal(size=(size, size))))[0]
    turned = torch.einsum("dc,nchw->ndhw", turn, latents) * 7
    assert latent_spectrum(turned).effective_rank == pytest.approx(found.effective_rank, rel=1e-8)


def test_effective_rank_counts_even_directions():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(4000, 3, 1, 1, generator=generator)
    latents = torch.cat((flat, torch.zeros(4000, 5, 1, 1)), dim=1)
    assert latent_spectrum(latents).effective_rank == pytest.approx(3, abs=0.02)
    assert latent_spectrum(latents).participation_ratio == pytest.approx(3, abs=0.02)
    with pytest.raises(ValueError, match="2 tokens"):
        latent_spectrum(torch.zeros(1, 3, 1, 1))


@pytest.mark.parametrize("rows", [2048, 13])
def test_neighbor_distances_against_scikit_learn(monkeypatch, rows):
    monkeypatch.setattr(latent_shape, "_ROWS", rows)
    points = np.random.default_rng(0).normal(size=(120, 5))
    expected = NearestNeighbors(n_neighbors=5).fit(points).kneighbors()
    distances, indices = latent_shape.neighbor_distances(torch.from_numpy(points), 5)
    np.testing.assert_allclose(distances.numpy(), expected[0], rtol=1e-9)
    np.testing.assert_array_equal(indices.numpy(), expected[1])
    with pytest.raises(ValueError, match="more than 120"):
        latent_shape.neighbor_distances(torch.from_numpy(points), 120)


def test_entropy_gap_closed_forms():
    """0 for a normal cloud of any covariance; for a cube, half log of (2 πe / 12) per dimension."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 2, generator=generator) @ torch.tensor([[3.0, 0.5], [0.0, 0.2]])
    assert neighbor_uniformity(normal).entropy_gap == pytest.approx(0, abs=0.02)
    cube = torch.rand(4000, 2, generator=generator)
    assert neighbor_uniformity(cube).entropy_gap == pytest.approx(0.5 * math.log(2 * math.pi * math.e / 12), abs=0.03)


def test_clumps_are_less_even_by_every_measure():
    generator = torch.Generator().manual_seed(1)
    even = torch.randn(1500, 4, generator=generator)
    centers = 4 * torch.randn(10, 4, generator=generator)
    spread = torch.linspace(0.01, 0.3, 10)[torch.arange(1500) % 10, None]
    clumps = centers[torch.arange(1500) % 10] + spread * torch.randn(1500, 4, generator=generator)
    a, b = neighbor_uniformity(even), neighbor_uniformity(clumps)
    assert a.distance_cv < b.distance_cv and a.distance_gini < b.distance_gini and a.entropy_gap + 0.5 < b.entropy_gap
    assert sphere_uniformity(even) < sphere_uniformity(clumps)
    scaled = neighbor_uniformity(clumps * 100)
    assert scaled.distance_cv == pytest.approx(b.distance_cv, rel=1e-4)
    assert scaled.entropy_gap == pytest.approx(b.entropy_gap, rel=1e-4)


def test_sphere_uniformity_by_hand():
    """Two opposite points: exp(-2 · 4); a cross: two pairs in six are opposite, four at a right angle."""
    line = torch.tensor([[1.0, 0], [-5, 0]])
    assert sphere_uniformity(line) == pytest.approx(-8)
    cross = torch.tensor([[1.0, 0], [-1, 0], [0, 3], [0, -1]])
    assert sphere_uniformity(cross) == pytest.approx(math.log((2 * math.exp(-8) + 4 * math.exp(-4)) / 6))
    assert sphere_uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)


def test_interpolation_reaches_the_middle():
    latents = torch.tensor([0.0, 1.0, 10.0, 14.0, 15.0]).view(5, 1, 1, 1).expand(5, 2, 1, 3)
    assert interpolate_neighbors(latents)[:, 0, 0, 0].tolist() == [0.5, 0.5, 12.0, 14.5, 14.5]
    assert torch.equal(interpolate_neighbors(latents, 0.0), latents)
    assert torch.equal(interpolate_neighbors(latents, 1.0), latents[[1, 0, 3, 4, 3]])


def test_mean_uniformity_averages_runs(monkeypatch):
    monkeypatch.setattr(uniformity, "tsne_points", lambda latents, seed: one_position_each(latents, seed).numpy())
    latents = torch.randn(60, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    runs = [latent_uniformity(one_position_each(latents, seed)) for seed in (0, 1)]
    found = mean_uniformity(latents, 2)
    assert runs[0].gini != runs[1].gini
    assert found.gini == pytest.approx((runs[0].gini + runs[1].gini) / 2)
    assert found.density_cv == pytest.approx((runs[0].density_cv + runs[1].density_cv) / 2)
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        mean_uniformity(latents, 0)
