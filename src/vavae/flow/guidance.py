"""Guidance: extrapolate from a poorer prediction to the conditional one.

The poorer prediction of classifier-free guidance (arXiv 2207.12598) comes from the network without the label, the one
of autoguidance (arXiv 2406.02507) from a weaker network with the label, the one of internal guidance (arXiv 2605.18324)
from a head on an early block of the network itself, the one of path-drop guidance (SPRINT, arXiv 2510.21986) from the
network without the label and without its routed blocks. All act on an interval of time (arXiv 2404.07724); outside it
the poorer prediction is not computed.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vavae.errors import UserError

GuidanceKind = Literal["cfg", "zero_star", "internal", "path_drop"]


@dataclass(frozen=True)
class Guidance:
    """Scale, interval and channels of guidance.

    Attributes:
        scale: guided = poorer + scale · (conditional - poorer). 1 turns guidance off, 0 gives the poorer
            prediction (`cfg_scale` in the published code).
        start: First time at which guidance acts; 0 is noise, 1 is data (`cfg_interval_start`).
        stop: Last time at which guidance acts.
        channels: Number of leading channels to guide; None guides all. The published FIDs use 3, with scales two to
            three times as large as for all channels.
        kind: "cfg"; "zero_star" (CFG-Zero*, arXiv 2503.18886): the poorer prediction is first scaled, for each
            sample, to the least distance from the conditional one, and the first steps stand still; "internal": the
            poorer prediction is the one of the network's auxiliary head; or "path_drop", for networks with SPRINT's
            routing.
        zero_init_steps: Steps of the solver at the start in which "zero_star" does not move; the paper takes 4 % of
            them. Only undertrained networks gain by it.

    Raises:
        UserError: A value is out of range.
    """

    scale: float = 1.0
    start: float = 0.125
    stop: float = 1.0
    channels: int | None = None
    kind: GuidanceKind = "cfg"
    zero_init_steps: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise UserError(f"scale must be at least 0 and finite, got {self.scale}")
        if not 0 <= self.start <= self.stop <= 1:
            raise UserError(
                f"start and stop must be an interval within 0 (noise) to 1 (data), got {self.start} to {self.stop}"
            )
        if self.channels is not None and self.channels < 1:
            raise UserError(f"channels must be at least 1, or None for all, got {self.channels}")
        if self.kind not in get_args(GuidanceKind):
            raise UserError(f"kind must be one of {', '.join(get_args(GuidanceKind))}, got {self.kind!r}")
        if self.zero_init_steps < 0:
            raise UserError(f"zero_init_steps must be at least 0, got {self.zero_init_steps}")

    @property
    def still_steps(self) -> int:
        """Steps at the start in which the state does not move."""
        return self.zero_init_steps if self.kind == "zero_star" and self.scale != 1 else 0

    def check_steps(self, moves: int, steps: int) -> None:
        """Raise UserError unless some of the solver's `moves`, at a setting of `steps`, follow the still ones."""
        if self.still_steps >= moves:
            raise UserError(f"zero_init_steps must be at most {moves - 1} with {steps} steps, got {self.still_steps}")

    def acts_at(self, t: float) -> bool:
        """Return whether a poorer prediction is needed at time t."""
        # Grids are float32. In float64 the bound 0.7 would be larger than the grid point 0.7.
        start, now, stop = torch.tensor([self.start, t, self.stop], dtype=torch.float32).tolist()
        return self.scale != 1 and start <= now <= stop

    def combine(self, conditional: Tensor, poorer: Tensor) -> Tensor:
        """Return the guided velocity (B, C, ...) of two velocities (B, C, ...) at the same point.

        Raises:
            UserError: More channels are to be guided than there are.
        """
        if self.channels is not None and self.channels > conditional.shape[1]:
            raise UserError(f"channels must be at most {conditional.shape[1]}, got {self.channels}")
        if self.kind == "zero_star":
            # The factor s of each sample that makes |conditional − s·poorer| least: (B, C, ...) -> (B, 1, ...)
            first, second = conditional.flatten(1).float(), poorer.flatten(1).float()
            factor = (first * second).sum(1) / (second.square().sum(1) + 1e-8)
            poorer = poorer * factor.to(poorer).view(-1, *[1] * (poorer.ndim - 1))
        guided = poorer + self.scale * (conditional - poorer)
        if self.channels is None:
            return guided
        return torch.cat((guided[:, : self.channels], conditional[:, self.channels :]), dim=1)


def guided_prediction(
    model: Callable[..., Any],
    labels: Tensor,
    guidance: Guidance,
    *,
    null_label: int | None = None,
    weak_model: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    velocity: Callable[[Tensor, Tensor, float], Tensor] | None = None,
) -> Callable[[Tensor, float], Tensor]:
    """Return the velocity as a function of point and time, with labels and guidance applied.

    Args:
        model: (x, t, labels) -> prediction, with t (B,) float32, as published, for every dtype of x. For internal
            guidance called with auxiliary=True; then it returns a `TransformerOutput`.
        labels: (B,) integers.
        guidance: Scale, interval and channels.
        null_label: Label that means "no label"; needed for guidance that is not internal and without `weak_model`.
        weak_model: Weaker network for autoguidance, called with the labels.
        velocity: (prediction, x, t) -> velocity, for each prediction before they are combined; None for networks that
            predict velocities.

    Returns:
        (x, t) -> velocity in the dtype of x, for a number t. Where guidance acts with the null label, the model is
        called once with a doubled batch; elsewhere once with the batch. Path-drop guidance calls it twice.

    Raises:
        UserError: Guidance lacks both `null_label` and `weak_model`, internal guidance has a weak model, or the model
            has no paths to drop.
    """
    internal = guidance.kind == "internal"
    if internal and weak_model is not None:
        raise UserError("kind must be cfg or zero_star with a weak_model, got internal")
    if weak_model is None and null_label is None and guidance.scale != 1 and not internal:
        raise UserError("null_label or weak_model must be given for guidance, got None for both")
    null = torch.full_like(labels, 0 if null_label is None else null_label)
    doubled = torch.cat((labels, null))  # two of (B,) -> (2B,)
    if guidance.kind == "path_drop" and guidance.scale != 1:
        routing = getattr(getattr(model, "config", None), "routing", None)
        if weak_model is not None or routing is None or not routing.drops_paths:
            raise UserError(
                "kind of guidance must be cfg or zero_star, except for a network trained with routing.kind sprint and "
                "routing.path_drop, and without a weak model, got path_drop"
            )
        weak_model = functools.partial(_without_paths, model, null)

    def made(prediction: Tensor, x: Tensor, t: float) -> Tensor:
        return prediction.to(x.dtype) if velocity is None else velocity(prediction.to(x.dtype), x, t)

    def predict(x: Tensor, t: float) -> Tensor:
        time = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        if not guidance.acts_at(t):
            return made(model(x, time, labels), x, t)
        if internal:
            output = model(x, time, labels, auxiliary=True)
            return guidance.combine(made(output.prediction, x, t), made(output.auxiliary, x, t))
        if weak_model is not None:
            strong = made(model(x, time, labels), x, t)
            return guidance.combine(strong, made(weak_model(x, time, labels), x, t))
        # One call for both: (2B, C, ...) -> two of (B, C, ...)
        strong, poorer = model(torch.cat((x, x)), torch.cat((time, time)), doubled).chunk(2)
        return guidance.combine(made(strong, x, t), made(poorer, x, t))

    return predict


def _without_paths(model: Callable[..., Tensor], null: Tensor, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Return the prediction of a routed network without labels and without its routed blocks."""
    return model(x, t, null, path_drop=True)
