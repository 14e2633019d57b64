"""Paths: published numbers, derivatives, and conversions against the score of a Gaussian mixture."""

from pathlib import Path as File

import pytest
import torch
from closed_forms import GaussianMixture
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vavae.errors import UserError
from vavae.flow import CosinePath, LinearPath, ProbabilityPath, VariancePreservingPath, path_by_name
from vavae.flow.paths import PREDICTIONS

GOLDEN = load_file(File(__file__).parents[1] / "golden" / "flow.safetensors")
PATHS = {"linear": LinearPath(), "gvp": CosinePath(), "vp": VariancePreservingPath()}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_published_numbers(name: str) -> None:
    path = PATHS[name]
    x, velocity = path.interpolate(GOLDEN["t"], GOLDEN["noise"], GOLDEN["data"])
    torch.testing.assert_close(x, GOLDEN[f"{name}.xt"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(velocity, GOLDEN[f"{name}.velocity"], rtol=1e-9, atol=1e-9)
    score = path.convert(velocity, x, GOLDEN["t"], "velocity", "score")
    torch.testing.assert_close(score, GOLDEN[f"{name}.score"], rtol=1e-9, atol=1e-9)


@each_path
@given(t=st.floats(1e-3, 1 - 1e-3))
def test_velocity_is_the_derivative_of_the_point(path: ProbabilityPath, t: float) -> None:
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    c = path.coefficients(time)
    (alpha_prime,) = torch.autograd.grad(c.alpha, time, retain_graph=True)
    (sigma_prime,) = torch.autograd.grad(c.sigma, time)
    torch.testing.assert_close(c.alpha_prime, alpha_prime)
    torch.testing.assert_close(c.sigma_prime, sigma_prime)


@given(seed=st.integers(0, 1000), size=st.integers(1, 4))
def test_ends_are_noise_and_data(seed: int, size: int) -> None:
    noise, data = torch.randn(2, size, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    zeros, ones = torch.zeros(size).double(), torch.ones(size).double()
    for path in (LinearPath(), CosinePath()):
        torch.testing.assert_close(path.interpolate(zeros, noise, data)[0], noise)
        torch.testing.assert_close(path.interpolate(ones, noise, data)[0], data)
    start = path_by_name("vp").coefficients(zeros)
    assert start.alpha[0].item() == pytest.approx(0.00657, rel=1e-2)  # e^-5.025 of data is left
    assert path_by_name("vp").coefficients(ones).sigma[0] == 0


@given(t=st.floats(0, 1))
def test_variance_is_kept_on_curved_paths(t: float) -> None:
    for path in (CosinePath(), VariancePreservingPath()):
        c = path.coefficients(torch.tensor(t, dtype=torch.float64))
        assert (c.alpha**2 + c.sigma**2).item() == pytest.approx(1, abs=1e-12)


@each_path
@settings(max_examples=30)  # of four points each
@given(t=st.floats(0.05, 0.95), seed=st.integers(0, 100))
def test_conversions_agree_with_the_true_density(path: ProbabilityPath, t: float, seed: int) -> None:
    """All sixteen, at points of a mixture: autograd gives the score, Bayes' rule the data and noise."""
    generator = torch.Generator().manual_seed(seed)
    mixture = GaussianMixture(2 * torch.randn(3, 2, dtype=torch.float64, generator=generator), std=0.5)
    x = torch.randn(4, 2, dtype=torch.float64, generator=generator).requires_grad_()
    time = torch.tensor(t, dtype=torch.float64)
    c = path.coefficients(time)
    (score,) = torch.autograd.grad(mixture.log_density(x, c.alpha, c.sigma).sum(), x)
    x = x.detach()
    data, noise = mixture.expectations(x, c.alpha, c.sigma)
    velocity = c.alpha_prime * data + c.sigma_prime * noise
    truth = {"velocity": velocity, "noise": noise, "data": data, "score": score}
    for source in PREDICTIONS:
        for target in PREDICTIONS:
            converted = path.convert(truth[source], x, time.expand(4), source, target)
            torch.testing.assert_close(converted, truth[target], rtol=1e-7, atol=1e-7)


@each_path
def test_velocity_converts_to_data_at_both_ends(path: ProbabilityPath) -> None:
    noise, data = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in path.interval("velocity"):
        time = torch.full((3,), t, dtype=torch.float64)
        x, velocity = path.interpolate(time, noise, data)
        torch.testing.assert_close(path.convert(velocity, x, time, "velocity", "data"), data)


def test_intervals_avoid_division_by_zero() -> None:
    for path in PATHS.values():
        for source in PREDICTIONS:
            for t in path.interval(source):
                x = torch.ones(1, 2)
                assert path.convert(x, x, torch.tensor(t), source, "velocity").isfinite().all()


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="path must be one of linear, cosine, vp, got 'straight'"):
        path_by_name("straight")
    with pytest.raises(UserError, match=r"prediction must be one of .*, got 'epsilon'"):
        LinearPath().convert(torch.ones(1), torch.ones(1), torch.tensor(0.5), "epsilon", "data")
    assert [type(path_by_name(name)) for name in ("linear", "cosine", "vp")] == [type(p) for p in PATHS.values()]
