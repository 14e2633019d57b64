"""Uniformity of latents: published numbers, formulas by hand, choice of positions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vavae.metrics import latent_uniformity, tsne_points
from vavae.metrics.uniformity import one_position_each

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "uniformity.safetensors")


@pytest.mark.parametrize("name", ["clusters", "gauss", "uniform"])
def test_published_numbers(name):
    found = latent_uniformity(GOLDEN[f"{name}.points"])
    assert found.density_std == pytest.approx(float(GOLDEN[f"{name}.density_std"]), rel=1e-9)
    assert found.density_cv == pytest.approx(float(GOLDEN[f"{name}.density_cv"]), rel=1e-9)
    assert found.gini == pytest.approx(float(GOLDEN[f"{name}.gini_coefficient"]), rel=1e-9)
    assert found.normalized_entropy == pytest.approx(float(GOLDEN[f"{name}.normalized_entropy"]), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(8, 40), size=st.integers(1, 3), seed=st.integers(0, 99))
def test_formulas_by_hand(count, size, seed):
    points = np.random.default_rng(seed).normal(size=(count, size))
    # Gaussian kernel density with the data's covariance times Scott's factor n^(-1 / (d + 4)), squared.
    covariance = np.cov(points.T).reshape(size, size) * count ** (-2 / (size + 4))
    inverse, norm = np.linalg.inv(covariance), np.sqrt(np.linalg.det(2 * np.pi * covariance))
    d = np.array([sum(np.exp(-0.5 * (p - q) @ inverse @ (p - q)) for q in points) for p in points]) / (count * norm)
    found = latent_uniformity(torch.from_numpy(points))
    assert found.density_std == pytest.approx(np.std(d), rel=1e-9)
    assert found.density_cv == pytest.approx(np.std(d) / np.mean(d), rel=1e-9)
    # The Gini coefficient as half the relative mean difference of all pairs.
    gini = np.abs(d[:, None] - d[None, :]).sum() / (2 * count**2 * d.mean())
    assert found.gini == pytest.approx(gini, rel=1e-9)
    p = d / d.sum()
    assert found.normalized_entropy == pytest.approx(-(p * np.log2(p)).sum() / np.log2(count), rel=1e-6)


def test_clumps_are_less_even_than_a_grid():
    axis = np.linspace(0, 1, 20)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    clumps = np.concatenate([grid[:300] * 0.02, grid[300:] * 0.3 + 5])
    even, uneven = latent_uniformity(grid), latent_uniformity(clumps)
    assert even.density_cv < uneven.density_cv and even.gini < uneven.gini
    assert even.normalized_entropy > uneven.normalized_entropy
    # Shares and ratios do not depend on units.
    assert latent_uniformity(grid * 100).gini == pytest.approx(even.gini, rel=1e-9)
    with pytest.raises(ValueError, match="3 points"):
        latent_uniformity(grid[:2])


def test_positions_depend_on_seed_and_row():
    latents = torch.arange(400 * 2 * 12).view(400, 2, 3, 4).float()
    points = one_position_each(latents, seed=1)
    assert points.shape == (400, 2)
    position = points[:, 0] - latents[:, 0, 0, 0]
    assert torch.equal(points[:, 1] - latents[:, 1, 0, 0], position)
    counts = torch.bincount(position.long(), minlength=12)
    assert counts.shape == (12,) and counts.min() > 15 and counts.max() < 60
    assert torch.equal(one_position_each(latents[:100], seed=1), points[:100])
    assert not torch.equal(one_position_each(latents, seed=2), points)


def test_tsne_separates_groups_and_repeats():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(64) % 2
    latents = torch.randn(64, 4, 2, 2, generator=generator) + 20 * groups.view(-1, 1, 1, 1)
    points = tsne_points(latents)
    assert points.shape == (64, 2) and points.dtype == np.float64
    near, far = points[groups == 0], points[groups == 1]
    gap = np.linalg.norm(near.mean(0) - far.mean(0))
    assert gap > 2 * max(near.std(), far.std())
    assert (tsne_points(latents) == points).all()
