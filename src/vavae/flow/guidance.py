"""Guidance: move away from what a poorer prediction says.

Classifier-free guidance (arXiv 2207.12598) takes the network without the label as the poorer one;
autoguidance (arXiv 2406.02507) takes a weaker network with the label. Both act on an interval of time
(arXiv 2404.07724), and outside it the poorer prediction is not computed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vavae.errors import UserError


@dataclass(frozen=True)
class Guidance:
    """How strongly to guide, when, and which channels.

    Attributes:
        scale: guided = poorer + scale · (conditional - poorer). 1 is no guidance, 0 the poorer prediction.
        start: First time at which guidance acts (0 is noise, 1 is data).
        stop: Last time at which guidance acts.
        channels: Guide only the first so many channels; None guides all. The published FIDs use 3, with
            scales two to three times those that suit all channels.

    Raises:
        UserError: A scale below 0 or not finite, an interval that is none within 0..1, or no channels.
    """

    scale: float = 1.0
    start: float = 0.125
    stop: float = 1.0
    channels: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise UserError(f"scale: {self.scale} is not a number from 0 on")
        if not 0 <= self.start <= self.stop <= 1:
            raise UserError(f"start, stop: {self.start} to {self.stop} is no interval within 0 (noise) to 1 (data)")
        if self.channels is not None and self.channels < 1:
            raise UserError(f"channels: {self.channels} is not a positive number")

    def acts_at(self, t: float) -> bool:
        """Whether a poorer prediction is needed at time t; times are compared in float32, as grids hold them."""
        # 0.7 is larger than the grid point that stands for it, so in float64 a bound on the grid could be missed.
        start, now, stop = torch.tensor([self.start, t, self.stop], dtype=torch.float32).tolist()
        return self.scale != 1 and start <= now <= stop

    def combine(self, conditional: Tensor, poorer: Tensor) -> Tensor:
        """The guided prediction of two (B, C, ...) predictions at the same point."""
        guided = poorer + self.scale * (conditional - poorer)
        if self.channels is None:
            return guided
        return torch.cat((guided[:, : self.channels], conditional[:, self.channels :]), dim=1)


def guided_prediction(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    labels: Tensor,
    guidance: Guidance,
    *,
    null_label: int | None = None,
    weak_model: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Callable[[Tensor, float], Tensor]:
    """The model with its labels and guidance filled in.

    Args:
        model: (x, t, labels) -> prediction, with t (B,) float32, as published, whatever the dtype of x.
        labels: (B,) integers.
        guidance: How to guide.
        null_label: The label that means "no label"; needed for guidance without `weak_model`.
        weak_model: A weaker network for autoguidance, called with the labels.

    Returns:
        (x, t) -> prediction in the dtype of x, t being a number. Where guidance acts without a weak model, the
        model is called once with the batch doubled; where it does not, once with the batch as it is.
    """
    if weak_model is None and null_label is None and guidance.scale != 1:
        raise UserError("null_label: guidance needs the label that means 'no label', or a weak model")
    null = torch.full_like(labels, 0 if null_label is None else null_label)
    doubled = torch.cat((labels, null))

    def predict(x: Tensor, t: float) -> Tensor:
        time = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        if not guidance.acts_at(t):
            return model(x, time, labels).to(x.dtype)
        if weak_model is not None:
            strong = model(x, time, labels).to(x.dtype)
            return guidance.combine(strong, weak_model(x, time, labels).to(x.dtype))
        both = model(torch.cat((x, x)), torch.cat((time, time)), doubled).to(x.dtype)
        return guidance.combine(*both.chunk(2))

    return predict
