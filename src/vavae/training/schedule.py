"""Learning-rate factors as functions of images seen."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from vavae.errors import UserError


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes over a run.

    Attributes:
        kind: Shape after the warm-up: constant, cosine to `final`, linear to `final`, or staged.
        warmup_images: Images over which the rate rises linearly from 0.
        final: Factor at the end of the run, for cosine and linear.
        decay_images: For cosine and linear: images at the end of the run over which the rate falls; until then it is
            constant. Null lets it fall over the whole run.
        boundaries: For staged: image counts at which the next of `factors` begins.
        factors: For staged: factors of the learning rate, one more than `boundaries`.
    """

    kind: Literal["constant", "cosine", "linear", "staged"] = "constant"
    warmup_images: int = 0
    final: float = 0.0
    decay_images: int | None = None
    boundaries: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.warmup_images < 0:
            raise UserError(f"schedule.warmup_images must be at least 0, got {self.warmup_images}")
        if self.decay_images is not None and self.decay_images < 1:
            raise UserError(f"schedule.decay_images must be at least 1 or null, got {self.decay_images}")
        if not 0.0 <= self.final < math.inf:
            raise UserError(f"schedule.final must be a finite number >= 0, got {self.final}")
        if any(not 0.0 <= factor < math.inf for factor in self.factors):
            raise UserError(f"schedule.factors must be finite numbers >= 0, got {list(self.factors)}")
        if any(boundary < 0 for boundary in self.boundaries):
            raise UserError(f"schedule.boundaries must be at least 0, got {list(self.boundaries)}")
        if self.kind == "staged" and len(self.factors) != len(self.boundaries) + 1:
            raise UserError(
                f"schedule.factors: {len(self.boundaries)} boundaries need {len(self.boundaries) + 1} factors, "
                f"got {len(self.factors)}"
            )
        if self.kind != "staged" and (self.boundaries or self.factors):
            raise UserError(f"schedule.boundaries and factors need schedule.kind staged, got {self.kind}")
        if any(a >= b for a, b in pairwise(self.boundaries)):
            raise UserError(f"schedule.boundaries must rise, got {list(self.boundaries)}")


def learning_rate_factor(schedule: ScheduleConfig, images: int, batch_size: int, total_images: int) -> float:
    """Return the factor of the learning rate in the step that starts after `images` images of `total_images`.

    The warm-up counts the step's own batch, so that the first step is not lost.
    """
    warm = 1.0
    if schedule.warmup_images > 0:
        warm = min(1.0, (images + batch_size) / schedule.warmup_images)
    begin = schedule.warmup_images
    if schedule.decay_images is not None:
        begin = max(begin, total_images - schedule.decay_images)
    progress = min(max((images - begin) / max(total_images - begin, 1), 0.0), 1.0)
    if schedule.kind == "cosine":
        shape = schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    elif schedule.kind == "linear":
        shape = 1.0 + (schedule.final - 1.0) * progress
    elif schedule.kind == "staged":
        shape = schedule.factors[sum(images >= boundary for boundary in schedule.boundaries)]
    else:
        shape = 1.0
    return warm * shape
