"""Solvers: published end states, orders of convergence, exact Gaussian flows, the stochastic sampler."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path as File

import pytest
import torch
from closed_forms import GaussianMixture, Oracle
from safetensors.torch import load_file
from torch import Tensor
from torchdiffeq import odeint

from vavae.errors import UserError
from vavae.flow import SOLVERS, CosinePath, LinearPath, ProbabilityPath, counter_noise, sample, shifted_times
from vavae.flow.solvers import Dopri5, EulerMaruyama, solver_by_name
from vavae.flow.times import stochastic_times

GOLDEN = load_file(File(__file__).parents[1] / "golden" / "flow.safetensors")
FIXED = {"euler": (1, 1), "heun": (2, 2), "midpoint": (2, 2), "rk4": (4, 4)}  # order, evaluations per step


def golden_drift(x: Tensor, t: float) -> Tensor:
    time = torch.full((len(x), 1, 1, 1), t)  # float32, as in the published code
    return torch.sin(3 * x) * (1 - time) + time * x


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("ode.")])
def test_published_end_states(name: str) -> None:
    _, method, steps, *shift = name.split(".")
    times = shifted_times(int(steps), float(".".join(shift)))
    noise = GOLDEN["noise"].clone()
    end = solver_by_name(method)(golden_drift, noise, times)
    torch.testing.assert_close(end, GOLDEN[name], rtol=1e-9, atol=1e-9)
    assert torch.equal(noise, GOLDEN["noise"])


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("ode.")])
def test_published_end_states_by_sample(name: str) -> None:
    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        time = t.view(-1, 1, 1, 1)
        return torch.sin(3 * x) * (1 - time) + time * x

    _, method, steps, *shift = name.split(".")
    labels = torch.zeros(4, dtype=torch.long)
    options = {"solver": method, "steps": int(steps), "shift": float(".".join(shift))}
    end = sample(model, GOLDEN["noise"], labels, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(end, GOLDEN[name], rtol=1e-9, atol=1e-9)


def field(x: Tensor, t: float) -> Tensor:
    return -2 * x + math.cos(3 * t)


def exact(x: Tensor) -> Tensor:
    """The solution of `field` at t = 1 from x at t = 0."""

    def particular(t: float) -> float:
        return (2 * math.cos(3 * t) + 3 * math.sin(3 * t)) / 13

    return (x - particular(0)) * math.exp(-2) + particular(1)


@pytest.mark.parametrize("name", FIXED)
def test_order_of_convergence(name: str) -> None:
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    order, _ = FIXED[name]
    errors = []
    for steps in (20, 40, 80):
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        errors.append((solver_by_name(name)(field, x, times) - exact(x)).abs().max().item())
    slopes = [math.log2(errors[0] / errors[1]), math.log2(errors[1] / errors[2])]
    assert slopes == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize(
    ("name", "method"), [("euler", "euler"), ("heun", "heun2"), ("midpoint", "midpoint"), ("rk4", "rk4")]
)
def test_fixed_steps_against_torchdiffeq(name: str, method: str) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = shifted_times(7, 0.3).double()
    expected = odeint(lambda t, state: field(state, t.item()), x, times, method=method)[-1]
    torch.testing.assert_close(solver_by_name(name)(field, x, times), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FIXED)
def test_evaluations_and_callback(name: str) -> None:
    calls: list[float] = []
    seen: list[tuple[int, float, Tensor, Tensor]] = []

    def counted(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return field(x, t)

    x = torch.ones(2)
    times = shifted_times(6, 0.3)
    solver_by_name(name)(counted, x, times, callback=lambda *step: seen.append(step))
    assert len(calls) == 5 * FIXED[name][1]
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, *_ in seen] == times.tolist()[:-1]
    assert torch.equal(seen[0][2], x)
    for _, t, state, velocity in seen:
        assert torch.equal(velocity, field(state, t))


def test_adaptive_meets_its_tolerance() -> None:
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    loose = (Dopri5()(field, x, [0, 1]) - exact(x)).abs().max()
    tight = (Dopri5(atol=1e-10, rtol=1e-10)(field, x, [0, 1]) - exact(x)).abs().max()
    assert loose < 2e-3
    assert tight < 1e-9


def test_adaptive_callback_sees_accepted_steps_with_their_velocity() -> None:
    seen: list[tuple[int, float, Tensor, Tensor]] = []
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)

    def stiff_start(x: Tensor, t: float) -> Tensor:  # it makes the solver reject some steps
        return field(x, t) + 40 * math.sin(60 * t**2)

    end = Dopri5()(stiff_start, x, [0, 1], callback=lambda *step: seen.append(step))
    assert torch.equal(end, Dopri5()(stiff_start, x, [0, 1]))
    assert [step for step, *_ in seen] == list(range(len(seen)))
    times = [t for _, t, *_ in seen]
    assert times[0] == 0
    assert times == sorted(times)
    for _, t, state, velocity in seen:
        torch.testing.assert_close(velocity, stiff_start(state, t))


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()])
def test_gaussian_data_with_the_exact_velocity(path: ProbabilityPath) -> None:
    """The flow from N(0, 1) to N(mean, std²) is x -> mean + std · x, which solvers must reproduce."""
    mixture = GaussianMixture(torch.tensor([[0.7, -1.2, 2.0, 0.1]], dtype=torch.float64), std=0.6)
    oracle = Oracle(mixture, path)
    noise = torch.randn(16, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(16, dtype=torch.long)

    def velocity(x: Tensor, t: float) -> Tensor:
        return oracle(x, torch.full((16,), t, dtype=x.dtype), labels)

    expected = mixture.means.view(1, 1, 2, 2) + 0.6 * noise
    even = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(solver_by_name("rk4")(velocity, noise, even), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(solver_by_name("heun")(velocity, noise, even), expected, rtol=0, atol=2e-3)
    precise = Dopri5(atol=1e-9, rtol=1e-9)(velocity, noise, even)
    torch.testing.assert_close(precise, expected, rtol=0, atol=1e-7)


def marginals(path: ProbabilityPath, diffusion: float, steps: int = 400) -> tuple[Tensor, list[float]]:
    """Standard deviation along an Euler-Maruyama run over 20,000 numbers of N(0, 0.5²), and the times."""
    std = 0.5
    x = torch.randn(20000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    spreads: list[float] = []
    times: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        c = path.coefficients(torch.tensor(t, dtype=x.dtype))
        variance = c.alpha**2 * std**2 + c.sigma**2
        return (c.alpha_prime * c.alpha * std**2 + c.sigma_prime * c.sigma) / variance * x

    def noise(step: int, x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    def record(step: int, t: float, x: Tensor, v: Tensor) -> None:
        spreads.append(x.std().item())
        times.append(t)

    solver = EulerMaruyama(path=path, diffusion=diffusion, noise=noise)
    end = solver(velocity, x, torch.linspace(0, 1, steps, dtype=torch.float64), callback=record)
    return torch.tensor([*spreads, end.std().item()], dtype=torch.float64), [*times, 1.0]


@pytest.mark.parametrize("diffusion", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("path", [LinearPath(), CosinePath()])
def test_stochastic_sampler_keeps_the_marginals(path: ProbabilityPath, diffusion: float) -> None:
    spreads, times = marginals(path, diffusion)
    c = path.coefficients(torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(spreads, (c.alpha**2 * 0.25 + c.sigma**2).sqrt(), rtol=0.03, atol=0)


def test_stochastic_sampler_without_diffusion_is_euler() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    times = shifted_times(9, 0.3)
    expected = solver_by_name("euler")(field, x, times)
    torch.testing.assert_close(EulerMaruyama(diffusion=0.0)(field, x, times), expected)
    torch.manual_seed(0)
    moved = solver_by_name("euler_maruyama")(field, x, times)
    assert not torch.allclose(moved, expected, atol=1e-2)


def plain_sde(field: Callable[[Tensor, float], Tensor], x: Tensor, noises: Tensor, cosine: bool) -> Tensor:
    """SiT's and REPA's sampler with w = 2·sigma, in their time τ = 1 − t and sign, in float64."""
    steps = len(noises) + 1
    times = [1 - 0.96 * i / (steps - 1) for i in range(steps)]
    for i, (now, following) in enumerate(pairwise([*times, 0.0])):
        alpha, sigma, d_alpha, d_sigma = 1 - now, now, -1.0, 1.0
        if cosine:
            angle = now * math.pi / 2
            alpha, sigma = math.cos(angle), math.sin(angle)
            d_alpha, d_sigma = -sigma * math.pi / 2, alpha * math.pi / 2
        v, ratio, w = -field(x, 1 - now), alpha / d_alpha, 2 * sigma
        score = (ratio * v - x) / (sigma**2 - ratio * d_sigma * sigma)
        x = x + (following - now) * (v - w / 2 * score)
        if i < steps - 1:
            x = x + (w * (now - following)) ** 0.5 * noises[i]
    return x


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()])
def test_stochastic_sampler_is_the_published_one(path: ProbabilityPath) -> None:
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(9, 4, 1, 2, 2, generator=generator, dtype=torch.float64)
    x, labels = noises[0].flip(0), torch.zeros(4, dtype=torch.long)
    seen: list[int] = []
    drawn = sample(
        lambda x, t, y: golden_drift(x, float(t[0])),
        x,
        labels,
        solver="euler_maruyama",
        steps=9,
        shift=0,
        path=path,
        step_noise=lambda step, x: noises[step + 1],
        callback=lambda step, *_: seen.append(step),
    )
    expected = plain_sde(golden_drift, x, noises[1:], isinstance(path, CosinePath))
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-5)
    assert seen == list(range(9))


@pytest.mark.parametrize("shift", [0, 0.3])
def test_stochastic_sampler_draws_the_data(shift: float) -> None:
    """Mean and deviation of Gaussian data, within four standard errors and the bias of the last step."""
    mixture = GaussianMixture(torch.tensor([[0.7, -1.2, 2.0, 0.1]], dtype=torch.float64), std=0.6)
    count = 10_000
    noise = torch.randn(count, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, step_noise = torch.zeros(count, dtype=torch.long), counter_noise(0, range(count))
    options = {"solver": "euler_maruyama", "steps": 100, "shift": shift, "step_noise": step_noise}
    drawn = sample(Oracle(mixture, LinearPath()), noise, labels, **options).flatten(1)  # type: ignore[arg-type]
    torch.testing.assert_close(drawn.mean(0), mixture.means[0], rtol=0, atol=4 * 0.6 / count**0.5 + 0.01)
    torch.testing.assert_close(drawn.std(0), torch.full_like(drawn[0], 0.6), rtol=0.04, atol=0)
    assert float((drawn - noise.flatten(1)).std(0).mean()) > 0.6  # not the flow's own map, which keeps the order


def test_grid_of_the_stochastic_sampler() -> None:
    """As published, even points up to 0.04 before the end and the end."""
    published = 1 - torch.cat((torch.linspace(1, 0.04, 250, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)))
    torch.testing.assert_close(stochastic_times(250, 0).double(), published, rtol=0, atol=1e-6)
    torch.testing.assert_close(stochastic_times(5, 1, 0.8), torch.tensor([0, 0.19, 0.38, 0.57, 0.76, 0.8]))
    shifted = stochastic_times(5, 0.5)
    assert float(shifted[5] - shifted[4]) == pytest.approx(0.04)
    torch.testing.assert_close(shifted[:5] / 0.96, shifted_times(5, 0.5))


def test_counted_noise_belongs_to_images() -> None:
    x = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(0))
    times = shifted_times(9, 0.3)
    whole = EulerMaruyama(noise=counter_noise(3, [10, 11, 12, 13]))(field, x, times)
    part = EulerMaruyama(noise=counter_noise(3, [12, 13]))(field, x[2:], times)
    torch.testing.assert_close(whole[2:], part)
    assert not torch.allclose(whole, EulerMaruyama(noise=counter_noise(4, [10, 11, 12, 13]))(field, x, times))


def test_unknown_solver() -> None:
    with pytest.raises(UserError, match=r"solver must be one of euler, heun, .* got 'ddim'"):
        solver_by_name("ddim")
    assert set(SOLVERS) == {*FIXED, "dopri5", "euler_maruyama"}
