"""When a run has gone wrong: too many skipped steps, or a spike of loss or gradient."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from vavae.errors import UserError


@dataclass(frozen=True)
class StabilityConfig:
    """When to go back to the last good checkpoint, and how often.

    Attributes:
        skipped: Share of the steps of a log interval that may be skipped because loss or gradient were not finite.
        spike: Distance of an interval's mean loss or gradient norm above the median of those before, in their robust
            standard deviations (1.4826 times the median absolute deviation), that counts as a spike; null never does.
        history: Number of intervals that a spike is measured against; the first quarter of them is never a spike.
        rollbacks: How many times the run may go back and on with another data order before it stops.
    """

    skipped: float = 0.5
    spike: float | None = None
    history: int = 64
    rollbacks: int = 2

    def __post_init__(self) -> None:
        if not 0.0 < self.skipped <= 1.0:
            raise UserError(f"stability.skipped: {self.skipped} is not a share in (0, 1]")
        if self.spike is not None and not self.spike > 0:
            raise UserError(f"stability.spike: {self.spike} is not positive; null never sees one")
        if self.history < 1:
            raise UserError(f"stability.history: {self.history} is not positive")
        if self.rollbacks < 0:
            raise UserError(f"stability.rollbacks: {self.rollbacks} is negative")


@dataclass
class SpikeDetector:
    """Judges the means of each log interval against those before.

    Attributes:
        config: The limits.
        regime: What the objective consisted of last; another one begins a new history.
        history: Term -> means of former intervals, oldest first.
    """

    config: StabilityConfig
    regime: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)

    def judge(self, means: Mapping[str, float], regime: int) -> str | None:
        """What is wrong with an interval, or None; a good one joins the history."""
        for name, share in means.items():
            if name.startswith("skipped/") and share >= self.config.skipped:
                return f"{share:.0%} of the steps were skipped, as the loss or its gradient was not finite"
        if self.config.spike is None:
            return None
        if regime != self.regime:
            self.regime, self.history = regime, {}
        watched = {
            name: value
            for name, value in means.items()
            if (name == "total" or name.startswith("gradient_norm/")) and math.isfinite(value)
        }
        for name, value in watched.items():
            past = self.history.get(name, [])
            if len(past) * 4 >= self.config.history and _distance(value, past) > self.config.spike:
                return f"{name} jumped to {value:.4g}, from a median of {statistics.median(past):.4g}"
        for name, value in watched.items():
            self.history[name] = [*self.history.get(name, []), value][-self.config.history :]
        return None


def _distance(value: float, past: list[float]) -> float:
    median = statistics.median(past)
    deviation = 1.4826 * statistics.median(abs(x - median) for x in past)
    # A loss that hardly moves would make any change a spike.
    return (value - median) / max(deviation, 1e-3 * abs(median), 1e-12)
