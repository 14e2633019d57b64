"""Learning-rate factors as functions of images seen."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from vavae.errors import UserError


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves over a run.

    Attributes:
        kind: Shape after the warm-up: constant, cosine to `final`, linear to `final`, or staged.
        warmup_images: Images over which the rate rises linearly from 0.
        final: Factor at the end of the run, for cosine and linear.
        decay_images: For cosine and linear: the images at the end of the run over which the rate falls; before them
            it is constant. Null falls over the whole run.
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
            raise UserError(f"schedule.warmup_images: {self.warmup_images} is negative")
        if self.decay_images is not None and self.decay_images < 1:
            raise UserError(f"schedule.decay_images: {self.decay_images} is neither positive nor null")
        if not 0.0 <= self.final < math.inf:
            raise UserError(f"schedule.final: {self.final} is negative or no number")
        if any(not 0.0 <= factor < math.inf for factor in self.factors):
            raise UserError(f"schedule.factors: {list(self.factors)} must all be numbers from 0 on")
        if any(boundary < 0 for boundary in self.boundaries):
            raise UserError(f"schedule.boundaries: {list(self.boundaries)} must not be negative")
        if self.kind == "staged" and len(self.factors) != len(self.boundaries) + 1:
            raise UserError(
                f"schedule.factors: {len(self.boundaries)} boundaries need {len(self.boundaries) + 1} factors, "
                f"not {len(self.factors)}"
            )
        if self.kind != "staged" and (self.boundaries or self.factors):
            raise UserError(f"schedule.boundaries: kind {self.kind} has no stages")
        if any(a >= b for a, b in pairwise(self.boundaries)):
            raise UserError("schedule.boundaries: must rise")


def learning_rate_factor(schedule: ScheduleConfig, images: int, batch_size: int, total_images: int) -> float:
    """Factor in [0, 1] (or one of `factors`) for the step that starts after `images` images of `total_images`.

    The warm-up counts the step's own batch, so that the first step already moves.
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
