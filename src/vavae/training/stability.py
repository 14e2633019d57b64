"""Decide when a run has gone wrong: too many skipped steps, or a spike of loss or gradient norm."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from vavae.errors import UserError


@dataclass(frozen=True)
class StabilityConfig:
    """When to roll back to the last good checkpoint, and how often.

    Attributes:
        skipped: Share of the steps of a log interval, in (0, 1], that may be skipped because loss or gradient were not
            finite; an interval that reaches it is bad.
        spike: Distance of an interval's mean loss or gradient norm above the median of those before, in their robust
            standard deviations (1.4826 times the median absolute deviation), that counts as a spike; null never does.
        history: Number of intervals that a spike is measured against; the first quarter of them is never a spike.
        rollbacks: How often the run may roll back and take another data order before it stops.
    """

    skipped: float = 0.5
    spike: float | None = None
    history: int = 64
    rollbacks: int = 2

    def __post_init__(self) -> None:
        if not 0.0 < self.skipped <= 1.0:
            raise UserError(f"stability.skipped must be in (0, 1], got {self.skipped}")
        if self.spike is not None and not self.spike > 0:
            raise UserError(f"stability.spike must be positive, or null for no check, got {self.spike}")
        if self.history < 1:
            raise UserError(f"stability.history must be at least 1, got {self.history}")
        if self.rollbacks < 0:
            raise UserError(f"stability.rollbacks must be at least 0, got {self.rollbacks}")


@dataclass
class SpikeDetector:
    """Check the means of each log interval against those before."""

    config: StabilityConfig
    phase: int = 0  # which objective the last interval had; another one begins a new history
    # Term -> means of the last good intervals, oldest first, at most `config.history`.
    history: dict[str, list[float]] = field(default_factory=dict)

    def check(self, means: Mapping[str, float], phase: int) -> str | None:
        """Return what is wrong with an interval, or None; a good one joins the history."""
        for name, share in means.items():
            if name.startswith("skipped/") and share >= self.config.skipped:
                return f"{share:.0%} of the steps were skipped, as the loss or its gradient was not finite"
        if self.config.spike is None:
            return None
        if phase != self.phase:
            self.phase, self.history = phase, {}
        checked = {
            name: value
            for name, value in means.items()
            if (name == "total" or name.startswith("gradient_norm/")) and math.isfinite(value)
        }
        for name, value in checked.items():
            past = self.history.get(name, [])
            if len(past) * 4 >= self.config.history and _distance(value, past) > self.config.spike:
                return f"{name} jumped to {value:.4g}, from a median of {statistics.median(past):.4g}"
        for name, value in checked.items():
            self.history[name] = [*self.history.get(name, []), value][-self.config.history :]
        return None


def _distance(value: float, past: list[float]) -> float:
    """Distance of a value above the median of `past`, in robust standard deviations."""
    median = statistics.median(past)
    deviation = 1.4826 * statistics.median(abs(x - median) for x in past)
    # The lower bounds keep a loss that hardly moves from making any change a spike.
    return (value - median) / max(deviation, 1e-3 * abs(median), 1e-12)
