"""Training times against scipy's distributions; sampling grids against published numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import special, stats

from vavae.errors import UserError
from vavae.flow import TimeDistribution, shifted_times
from vavae.flow.times import shift_times

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "flow.safetensors")
distributions = st.builds(
    TimeDistribution,
    kind=st.sampled_from(["logit_normal", "uniform"]),
    mean=st.floats(-2, 2),
    std=st.floats(0.3, 2),
    shift=st.floats(0.2, 5),
)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("times.")])
def test_grids_are_the_published_ones(name: str) -> None:
    _, steps, *shift = name.split(".")
    grid = shifted_times(int(steps), float(".".join(shift)))
    assert grid.dtype == torch.float32
    assert torch.equal(grid.double(), GOLDEN[name])


def test_grid_computed_by_hand() -> None:
    expected = [0, 0.0909091, 0.2307692, 0.4736842, 1]
    assert shifted_times(5, 0.3).tolist() == pytest.approx(expected, abs=1e-7)


@given(steps=st.integers(2, 300), shift=st.floats(0.05, 20))
def test_grids_rise_from_zero_to_one(steps: int, shift: float) -> None:
    grid = shifted_times(steps, shift)
    assert len(grid) == steps
    assert grid[0] == 0
    assert grid[-1] == 1
    assert (grid.diff() > 0).all()
    if steps > 2 and shift < 0.99:
        assert grid[1] < 1 / (steps - 1)


@given(t=st.floats(0, 1), shift=st.floats(0.05, 20))
def test_inverse_shift_undoes_the_shift(t: float, shift: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    assert shift_times(shift_times(time, shift), 1 / shift).item() == pytest.approx(t, abs=1e-12)


def test_bad_grids() -> None:
    with pytest.raises(UserError, match="steps"):
        shifted_times(1, 0.3)
    with pytest.raises(UserError, match="shift"):
        shifted_times(10, -1)


def cdf(distribution: TimeDistribution, t: np.ndarray) -> np.ndarray:
    """Return the cumulative distribution without truncation, from scipy."""
    base = t / (distribution.shift - (distribution.shift - 1) * t)
    if distribution.kind == "uniform":
        return base
    return stats.norm.cdf(special.logit(base), distribution.mean, distribution.std)


@given(distribution=distributions, u=st.floats(0.001, 0.999))
def test_times_invert_the_cumulative_distribution(distribution: TimeDistribution, u: float) -> None:
    t = distribution.from_uniform(torch.tensor([u], dtype=torch.float64))
    assert cdf(distribution, t.numpy())[0] == pytest.approx(u, abs=1e-9)


@given(distribution=distributions, low=st.floats(0, 0.9), width=st.floats(0.05, 1), u=st.floats(0.001, 0.999))
def test_truncated_times(distribution: TimeDistribution, low: float, width: float, u: float) -> None:
    high = min(1.0, low + width)
    whole = cdf(distribution, np.array([low, high]))
    assume(whole[1] - whole[0] > 1e-3)
    truncated = TimeDistribution(distribution.kind, distribution.mean, distribution.std, distribution.shift, low, high)
    t = truncated.from_uniform(torch.tensor([u], dtype=torch.float64))
    assert low <= t <= high
    share = (cdf(distribution, t.numpy())[0] - whole[0]) / (whole[1] - whole[0])
    assert share == pytest.approx(u, abs=1e-6)


def test_published_distribution() -> None:
    times = TimeDistribution().sample(20000, generator=torch.Generator().manual_seed(0))
    assert times.dtype == torch.float32
    assert stats.kstest(special.logit(times.double().numpy()), "norm").pvalue > 1e-3


def test_partial_truncation_is_a_mixture() -> None:
    distribution = TimeDistribution("uniform", low=0.5, high=0.75, partial_probability=0.4)
    times = distribution.sample(20000, generator=torch.Generator().manual_seed(0)).double().numpy()
    knots = [0, 0.5, 0.75, 1.0]
    shares = [0, 0.3, 0.3 + 0.4 + 0.15, 1]
    assert stats.kstest(times, lambda t: np.interp(t, knots, shares)).pvalue > 1e-3
    unused = TimeDistribution("uniform", low=0.5, high=0.75, partial_probability=0.0)
    u = torch.rand(100, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(unused.from_uniform(u), u)


def test_times_belong_to_images() -> None:
    distribution = TimeDistribution(mean=0.3)
    together = distribution.at(7, [3, 1, 4, 1, 5])
    assert torch.equal(together[[1]], together[[3]])
    assert torch.equal(together, torch.cat([distribution.at(7, [i]) for i in (3, 1, 4, 1, 5)]))
    assert not torch.equal(together, distribution.at(8, [3, 1, 4, 1, 5]))
    many = distribution.at(0, torch.arange(20000)).double().numpy()
    assert stats.kstest(special.logit(many), "norm", args=(0.3, 1)).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["logit_normal", "uniform"])
def test_times_of_extreme_uniform_numbers(kind: str) -> None:
    u = torch.tensor([0.0, 2.0**-24, 1 - 2.0**-24])
    t = TimeDistribution(kind).from_uniform(u)
    assert (t > 0).all()
    assert (t < 1).all()
    narrow = TimeDistribution(kind, low=1e-6, high=2e-6).from_uniform(u)
    assert (narrow >= 1e-6).all()
    assert (narrow <= 2e-6).all()
    # So late that the cumulative distribution rounds to 1.
    late = TimeDistribution(kind, low=0.9998, high=0.9999).from_uniform(u.double())
    assert (late >= 0.9998).all()
    assert (late <= 0.9999).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "beta"}, "kind"),
        ({"std": 0.0}, "std"),
        ({"std": float("nan")}, "std"),
        ({"mean": float("nan")}, "mean"),
        ({"shift": float("inf")}, "shift"),
        ({"shift": 0.0}, "shift"),
        ({"shift": "dim"}, "shift"),
        ({"std": "dimension"}, "std"),
        ({"low": 0.6, "high": 0.5}, "low and high"),
        ({"high": 1.5}, "low and high"),
        ({"partial_probability": 2.0}, "partial_probability"),
    ],
)
def test_bad_values_are_named(changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=f"^{named} must"):
        TimeDistribution(**changes)
