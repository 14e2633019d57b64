"""Solvers that integrate a velocity field from noise to data. All have the same signature:

    solve(velocity, x, times, *, callback=None) -> x

    velocity: (x, t) -> dx/dt of the shape of x; t is a Python number.
    x: (B, ...) the state at times[0]; it is not changed.
    times: increasing grid points, a CPU tensor or numbers. Fixed-step solvers take one step between two of them.
    callback: called as callback(step, t, x, v) at the start of each step; v is the velocity there.
    returns: the state at times[-1]. Other states are not kept.

With a fixed-step solver samples are independent. The adaptive solver chooses its steps for the whole batch, so there a
sample depends on its batch within the tolerance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from vavae import rng
from vavae.device import supports_float64
from vavae.errors import UserError
from vavae.flow.paths import LinearPath, ProbabilityPath

Velocity = Callable[[Tensor, float], Tensor]
StepCallback = Callable[[int, float, Tensor, Tensor], None]
StepNoise = Callable[[int, Tensor], Tensor]


class Solver(Protocol):
    """Signature of a solver."""

    def __call__(
        self, velocity: Velocity, x: Tensor, times: Tensor | Sequence[float], *, callback: StepCallback | None = None
    ) -> Tensor:
        """Integrate x from times[0] to times[-1]."""
        ...


def _numbers(times: Tensor | Sequence[float]) -> list[float]:
    return times.tolist() if isinstance(times, Tensor) else list(times)


def _steps(times: Tensor | Sequence[float]) -> Iterator[tuple[int, float, float]]:
    """Yield (step, start, length) of each step."""
    numbers = _numbers(times)
    for step, (start, end) in enumerate(pairwise(numbers)):
        yield step, start, end - start


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method with fixed steps.

    Attributes:
        stages: Rows of the Butcher tableau: for each stage after the first, the weights of the earlier slopes. Their
            sum is the stage's time.
        weights: Weights of all slopes in the step.
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def __call__(
        self, velocity: Velocity, x: Tensor, times: Tensor | Sequence[float], *, callback: StepCallback | None = None
    ) -> Tensor:
        """Integrate x from times[0] to times[-1]."""
        for step, t, dt in _steps(times):
            slopes = [velocity(x, t)]
            if callback is not None:
                callback(step, t, x, slopes[0])
            for row in self.stages:
                slopes.append(velocity(_advance(x, dt, row, slopes), t + dt * sum(row)))
            x = _advance(x, dt, self.weights, slopes)
        return x


def _advance(x: Tensor, dt: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Return x + dt · sum of weight · slope."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = x + (dt * weight) * slope
    return x


euler = RungeKutta(stages=(), weights=(1.0,))
heun = RungeKutta(stages=((1.0,),), weights=(0.5, 0.5))
midpoint = RungeKutta(stages=((0.5,),), weights=(0.0, 1.0))
# Kutta's 3/8 rule, which torchdiffeq and therefore the published code call rk4.
rk4 = RungeKutta(stages=((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), weights=(1 / 8, 3 / 8, 3 / 8, 1 / 8))


@dataclass(frozen=True)
class Dopri5:
    """The adaptive Dormand-Prince method of order 5 (torchdiffeq); it uses only the first and last of `times`.

    Attributes:
        atol: Absolute tolerance.
        rtol: Relative tolerance.
    """

    atol: float = 1e-6
    rtol: float = 1e-3

    def __call__(
        self, velocity: Velocity, x: Tensor, times: Tensor | Sequence[float], *, callback: StepCallback | None = None
    ) -> Tensor:
        """Integrate x from times[0] to times[-1]; the callback is called for each accepted step."""
        from torchdiffeq import odeint

        observed = _Observed(velocity, callback)
        numbers = _numbers(times)
        dtype = torch.float64 if supports_float64(x.device) else torch.float32
        ends = torch.tensor([numbers[0], numbers[-1]], dtype=dtype, device=x.device)
        return odeint(observed, x, ends, method="dopri5", atol=self.atol, rtol=self.rtol, options={"dtype": dtype})[-1]


class _Observed:
    """A velocity with torchdiffeq's order of arguments that calls the callback for accepted steps.

    The last slope of an accepted step is the first of the next, so no extra evaluation is needed.
    """

    def __init__(self, velocity: Velocity, callback: StepCallback | None) -> None:
        self.velocity = velocity
        self.callback = callback
        self.step = 0
        self.start: Tensor | None = None
        self.latest: Tensor | None = None

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.latest = self.velocity(x, float(t))
        if self.start is None:
            self.start = self.latest
        return self.latest

    def callback_accept_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        """Call the callback; torchdiffeq passes the start of an accepted step."""
        if self.callback is not None and self.start is not None:
            self.callback(self.step, float(t), x, self.start)
        self.step += 1
        self.start = self.latest


@dataclass(frozen=True)
class EulerMaruyama:
    """Stochastic sampler with the same marginals as the flow (SiT, arXiv 2401.08740; REPA, arXiv 2410.06940).

    dx = (v + w/2 · score) dt + sqrt(w) dW with w(t) = diffusion · sigma(t). The score follows from the velocity. The
    last step adds no noise: it returns the mean. `stochastic_times` makes the published grid.

    Attributes:
        path: Path of the velocity.
        diffusion: Strength of the noise; 2 as published, 0 is Euler's method.
        noise: (step, x) -> standard normal numbers of the shape of x. None draws them from torch's default
            generator; `counter_noise` makes them a function of seed and image.
    """

    path: ProbabilityPath = field(default_factory=LinearPath)
    diffusion: float = 2.0
    noise: StepNoise | None = None

    def __call__(
        self, velocity: Velocity, x: Tensor, times: Tensor | Sequence[float], *, callback: StepCallback | None = None
    ) -> Tensor:
        """Integrate x from times[0] to times[-1]."""
        last = len(times) - 2
        for step, t, dt in _steps(times):
            v = velocity(x, t)
            if callback is not None:
                callback(step, t, x, v)
            time = torch.tensor(t, dtype=x.dtype, device=x.device)
            noise = self.path.convert(v, x, time, "velocity", "noise")
            # score = -noise / sigma and w = diffusion · sigma, so sigma cancels in w/2 · score.
            mean = x + dt * (v - self.diffusion / 2 * noise)
            if step == last:
                return mean
            spread = (self.diffusion * float(self.path.coefficients(torch.tensor(t)).sigma) * dt) ** 0.5
            x = mean + spread * (torch.randn_like(x) if self.noise is None else self.noise(step, x))
        return x


def counter_noise(seed: int, indices: Tensor | Sequence[int]) -> StepNoise:
    """Return noise for `EulerMaruyama` that depends only on seed, step and the index of each image in the batch."""

    def noise(step: int, x: Tensor) -> Tensor:
        return rng.normal(seed, f"flow.sde/{step}", indices, x.shape[1:], device=x.device).to(x.dtype)

    return noise


SolverName = Literal["euler", "heun", "midpoint", "rk4", "dopri5", "euler_maruyama"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)
_DETERMINISTIC: dict[str, Solver] = {"euler": euler, "heun": heun, "midpoint": midpoint, "rk4": rk4, "dopri5": Dopri5()}
DETERMINISTIC_SOLVERS: tuple[SolverName, ...] = tuple(name for name in SOLVERS if name in _DETERMINISTIC)


def solver_by_name(name: str, *, path: ProbabilityPath | None = None, step_noise: StepNoise | None = None) -> Solver:
    """Return the solver called `name`, with its defaults.

    Args:
        name: One of `SOLVERS`.
        path: Path of the velocity, used by "euler_maruyama"; straight lines if None.
        step_noise: Noise of "euler_maruyama"; from torch's default generator if None.

    Raises:
        UserError: The solver does not exist.
    """
    if name == "euler_maruyama":
        return EulerMaruyama(path=LinearPath() if path is None else path, noise=step_noise)
    if name not in _DETERMINISTIC:
        raise UserError(f"solver must be one of {', '.join(SOLVERS)}, got {name!r}")
    return _DETERMINISTIC[name]
