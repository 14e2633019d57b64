"""Optimizers from a recipe."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from vavae.training.schedule import ScheduleConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimizer and the schedule of its learning rate.

    Attributes:
        kind: `adam` (the published tokenizer's) or `adamw`.
        learning_rate: Peak learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled for `adamw`, an L2 term for `adam`.
        gradient_clip: Largest global norm of this optimizer's gradients; null does not clip.
        schedule: Learning rate over images seen.
    """

    kind: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """A fused Adam or AdamW over those of `parameters` that require gradients."""
    trained = [p for p in parameters if p.requires_grad]
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(
        trained,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
