"""Times: the distribution for training and the grid for sampling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vavae import rng
from vavae.device import to_float64
from vavae.errors import UserError

TimeKind = Literal["logit_normal", "uniform"]
Shift = float | Literal["dimension"]
# Length of the stochastic sampler's last step.
_LAST_STEP = 0.04
# Size of the latents for which RAE's rule shifts nothing.
_BASE_DIMENSION = 4096


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Return shift·t / (1 + (shift - 1)·t): below 1 moves times towards noise, 1 changes nothing, 0 and 1 stay.

    Stable Diffusion 3 (arXiv 2403.03206) counts time from data to noise; its alpha is 1/shift.
    """
    return shift * t / (1 + (shift - 1) * t)


def shift_for_dimension(channels: int, height: int, width: int) -> float:
    """Return the shift for latents of a dimension: 1 / sqrt(C·h·w / 4096), at most 1 (RAE, arXiv 2510.11690).

    More numbers carry more signal through the same noise, so training and sampling need more times near noise.

    Raises:
        UserError: The latents have fewer than 4,096 numbers, for which the rule is not made.
    """
    dimension = channels * height * width
    if dimension < _BASE_DIMENSION:
        raise UserError(
            f"shift must be a number for latents of {channels}x{height}x{width}: 'dimension' needs at least "
            f"{_BASE_DIMENSION:,} numbers, got {dimension:,}"
        )
    return (dimension / _BASE_DIMENSION) ** -0.5


def shift_in_numbers(shift: Shift, shape: Sequence[int]) -> float:
    """Return a shift as a number: "dimension" is the one for latents of `shape` (C, h, w).

    Raises:
        UserError: The latents are too small for the rule.
    """
    return shift_for_dimension(*shape) if isinstance(shift, str) else shift


def shifted_times(steps: int, shift: float, end: float = 1.0) -> Tensor:
    """Return the time grid of sampling, from noise (0) to data (1).

    Args:
        steps: Number of grid points, at least 2. A solver with one evaluation per step needs steps - 1 evaluations.
        shift: Below 1 puts more points near noise; 0 (as published) and 1 space them evenly.
        end: Last point of the even grid, before the shift. RAE's 0.999 stops short of data.

    Returns:
        (steps,) float32 on the CPU, increasing from 0; bit for bit the published grid.

    Raises:
        UserError: There are fewer than two steps, the shift is negative or not finite, or the end is not in (0, 1].
    """
    if steps < 2:
        raise UserError(f"steps must be at least 2 grid points, got {steps}")
    if not 0 <= shift < math.inf:
        raise UserError(f"shift must be at least 0 and finite, got {shift}")
    if not 0 < end <= 1:
        raise UserError(f"end must be above 0 and at most 1, got {end}")
    even = torch.linspace(0, end, steps, dtype=torch.float32, device="cpu")
    if shift == 0:
        return even
    grid = shift_times(even, shift)
    if end == 1:
        grid[-1] = 1  # rounding makes it slightly different for some shifts
    return grid


def stochastic_times(steps: int, shift: float, end: float = 1.0) -> Tensor:
    """Return the time grid of the stochastic sampler (SiT, REPA).

    The points of `shifted_times` are scaled to end 0.04 earlier; a last step of that length, which adds no noise, leads
    to their end.

    Returns:
        (steps + 1,) float32 on the CPU, increasing from 0.

    Raises:
        UserError: As `shifted_times`.
    """
    grid = shifted_times(steps, shift, end)
    return torch.cat((grid * (1 - _LAST_STEP / grid[-1]), grid[-1:]))


@dataclass(frozen=True)
class TimeDistribution:
    """Distribution of training times.

    Times come from a base distribution and `shift_times`. A share of the samples is truncated to [low, high]. Each
    time is a function of one uniform number, by inverting the cumulative distribution.

    Attributes:
        kind: "logit_normal" (t = sigmoid of a normal; arXiv 2403.03206; `use_lognorm` in the published code) or
            "uniform".
        mean: Mean of the normal; above 0 favors data, below 0 noise.
        std: Standard deviation of the normal.
        shift: Shift of the base times (`shift_times`); 1 changes nothing. `dimension` is the shift for the number of
            values in a latent, 1 / sqrt(C·h·w / 4096) (RAE), which `shift_in_numbers` computes.
        low: Lower end of the truncated times.
        high: Upper end of the truncated times.
        partial_probability: Share of samples truncated to [low, high]; the others follow the whole distribution.
    """

    kind: TimeKind = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: Shift = 1.0
    low: float = 0.0
    high: float = 1.0
    partial_probability: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(TimeKind):
            raise UserError(f"kind must be one of {', '.join(get_args(TimeKind))}, got {self.kind!r}")
        if not math.isfinite(self.mean):
            raise UserError(f"mean must be finite, got {self.mean}")
        for name in ("std", "shift"):
            value = getattr(self, name)
            if (name, value) == ("shift", "dimension"):
                continue
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UserError(f"{name} must be above 0 and finite, got {value}")
        if not 0 <= self.low < self.high <= 1:
            raise UserError(f"low and high must be an interval inside [0, 1], got {self.low} and {self.high}")
        if not 0 <= self.partial_probability <= 1:
            raise UserError(f"partial_probability must be from 0 to 1, got {self.partial_probability}")

    def from_uniform(self, u: Tensor) -> Tensor:
        """Convert uniform numbers to times.

        Args:
            u: Numbers in [0, 1), any shape.

        Returns:
            Times in [0, 1], dtype and shape of u.
        """
        # Keep half a unit of the 24 random bits away from 0 and 1, where the normal is infinite.
        p = to_float64(u).clamp(2.0**-25, 1 - 2.0**-25)
        first, last = self._cdf(self.low), self._cdf(self.high)
        share = self.partial_probability
        # One number decides both: below `share` it covers the truncated range, above it the whole range.
        truncated = p < share
        inside = first + (last - first) * p / max(share, 1e-12)
        outside = (p - share) / max(1 - share, 1e-12)
        base = torch.where(truncated, inside, outside)
        if self.kind == "logit_normal":
            base = torch.sigmoid(self.mean + self.std * torch.special.ndtri(base))
        t = shift_times(base, self._shift)
        return torch.where(truncated, t.clamp(self.low, self.high), t).to(u)

    def sample(
        self, count: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Return (count,) float32 times from torch's random numbers."""
        return self.from_uniform(torch.rand(count, generator=generator, device=device))

    def at(
        self,
        seed: int,
        indices: Tensor | Sequence[int],
        *,
        stream: str = "flow.time",
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return (len(indices),) float32 times, each a function of (seed, stream, its index) only."""
        return self.from_uniform(rng.uniform(seed, stream, indices, device=device))

    @property
    def _shift(self) -> float:
        if isinstance(self.shift, str):
            raise UserError("shift must be a number where the latents are unknown, got dimension")
        return self.shift

    def _cdf(self, t: float) -> float:
        """Return the share of the whole distribution below t."""
        base = t / (self._shift - (self._shift - 1) * t)
        if self.kind == "uniform" or not 0 < base < 1:
            return min(max(base, 0.0), 1.0)
        logit = math.log(base / (1 - base))
        return 0.5 * math.erfc(-(logit - self.mean) / (self.std * math.sqrt(2)))
