"""Learning-rate factors as functions of images seen."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves over a run.

    Attributes:
        kind: Shape after the warm-up: constant, cosine to `final`, or linear to `final`.
        warmup_images: Images over which the rate rises linearly from 0.
        final: Factor at the end of the run, for cosine and linear.
    """

    kind: Literal["constant", "cosine", "linear"] = "constant"
    warmup_images: int = 0
    final: float = 0.0


def learning_rate_factor(schedule: ScheduleConfig, images: int, batch_size: int, total_images: int) -> float:
    """Factor in [0, 1] for the step that starts after `images` images of `total_images`.

    The warm-up counts the step's own batch, so that the first step already moves.
    """
    warm = 1.0
    if schedule.warmup_images > 0:
        warm = min(1.0, (images + batch_size) / schedule.warmup_images)
    span = max(total_images - schedule.warmup_images, 1)
    progress = min(max((images - schedule.warmup_images) / span, 0.0), 1.0)
    if schedule.kind == "cosine":
        shape = schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    elif schedule.kind == "linear":
        shape = 1.0 + (schedule.final - 1.0) * progress
    else:
        shape = 1.0
    return warm * shape
