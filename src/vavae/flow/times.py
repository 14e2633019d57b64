"""Which times training sees, and on which times sampling steps."""

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


def shift_times(t: Tensor, shift: float) -> Tensor:
    """shift·t / (1 + (shift - 1)·t): below 1 moves times towards noise, 1 leaves them; the ends stay.

    The shift of Stable Diffusion 3 (arXiv 2403.03206) counts time from data to noise; its alpha is 1/shift.
    """
    return shift * t / (1 + (shift - 1) * t)


def shifted_times(steps: int, shift: float) -> Tensor:
    """The grid on which sampling steps, from noise (0) to data (1).

    Args:
        steps: Number of grid points, at least 2; a one-evaluation solver evaluates one time fewer.
        shift: Below 1 puts more points near noise; 0 (as published) and 1 space them evenly.

    Returns:
        (steps,) float32 (as published, to the bit) on the CPU, rising from 0 to 1.

    Raises:
        UserError: Fewer than two steps, or a shift that is negative or no finite number.
    """
    if steps < 2:
        raise UserError(f"steps: {steps} grid points are too few; there must be at least 2")
    if not 0 <= shift < math.inf:
        raise UserError(f"shift: {shift} is not a number from 0 on")
    even = torch.linspace(0, 1, steps, dtype=torch.float32, device="cpu")
    if shift == 0:
        return even
    grid = shift_times(even, shift)
    grid[-1] = 1  # for some shifts, rounding leaves it a little beside
    return grid


@dataclass(frozen=True)
class TimeDistribution:
    """How training draws times.

    A base distribution, then `shift_times`, then, for a share of the samples, truncation to [low, high].
    Every draw is a function of one uniform number, by inverting the cumulative distribution.

    Attributes:
        kind: "logit_normal" (t = sigmoid of a normal; arXiv 2403.03206) or "uniform".
        mean: Mean of the normal; above 0 favours data, below 0 noise.
        std: Standard deviation of the normal.
        shift: `shift_times` applied to the base times; 1 leaves them.
        low: Lower end of the truncated times.
        high: Upper end of the truncated times.
        partial_probability: Share of samples truncated to [low, high]; the others follow the whole
            distribution.
    """

    kind: TimeKind = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    low: float = 0.0
    high: float = 1.0
    partial_probability: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(TimeKind):
            raise UserError(f"kind: {self.kind!r} is not one of {', '.join(get_args(TimeKind))}")
        if self.std <= 0:
            raise UserError(f"std: {self.std} is not positive")
        if self.shift <= 0:
            raise UserError(f"shift: {self.shift} is not positive")
        if not 0 <= self.low < self.high <= 1:
            raise UserError(f"low, high: {self.low}, {self.high} are not an interval inside [0, 1]")
        if not 0 <= self.partial_probability <= 1:
            raise UserError(f"partial_probability: {self.partial_probability} is not a probability")

    def from_uniform(self, u: Tensor) -> Tensor:
        """Times from uniform numbers.

        Args:
            u: Numbers in [0, 1), any shape.

        Returns:
            Times in [0, 1], dtype and shape of u.
        """
        # Half a unit of the 24 random bits away from 0 and 1, which a normal cannot reach.
        p = to_float64(u).clamp(2.0**-25, 1 - 2.0**-25)
        first, last = self._cdf(self.low), self._cdf(self.high)
        share = self.partial_probability
        # One number decides both: below `share` it is spread over the truncated range, above it over all.
        truncated = p < share
        inside = first + (last - first) * p / max(share, 1e-12)
        outside = (p - share) / max(1 - share, 1e-12)
        base = torch.where(truncated, inside, outside)
        if self.kind == "logit_normal":
            base = torch.sigmoid(self.mean + self.std * torch.special.ndtri(base))
        t = shift_times(base, self.shift)
        return torch.where(truncated, t.clamp(self.low, self.high), t).to(u)

    def sample(
        self,
        count: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """(count,) float32 times from torch's random numbers."""
        return self.from_uniform(torch.rand(count, generator=generator, device=device))

    def at(
        self,
        seed: int,
        indices: Tensor | Sequence[int],
        *,
        stream: str = "flow.time",
        device: torch.device | str | None = None,
    ) -> Tensor:
        """(len(indices),) float32 times, each a function of (seed, stream, its index) only."""
        return self.from_uniform(rng.uniform(seed, stream, indices, device=device))

    def _cdf(self, t: float) -> float:
        """The share of the whole distribution below t."""
        base = t / (self.shift - (self.shift - 1) * t)
        if self.kind == "uniform" or not 0 < base < 1:
            return min(max(base, 0.0), 1.0)
        logit = math.log(base / (1 - base))
        return 0.5 * math.erfc(-(logit - self.mean) / (self.std * math.sqrt(2)))
