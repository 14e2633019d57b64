"""Exponential moving averages of parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """A moving average of the floating-point entries of a module's state dict, kept in float32.

    After each step: average <- d · average + (1 - d) · value, with d = min(decay, (1 + n) / (10 + n)) for step
    number n when `warmup` is on, so that short runs are not averages of their beginning. Integer entries
    (BatchNorm's counters) are copied.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True) -> None:
        self.decay = decay
        self.warmup = warmup
        self._live = dict(module.state_dict(keep_vars=True))
        self.values = {name: value.detach().clone() for name, value in self._live.items()}
        self._floating = [name for name, value in self.values.items() if value.is_floating_point()]

    @torch.no_grad()
    def update(self, steps_done: int) -> None:
        """Take in the module's present values; `steps_done` counts from 0."""
        decay = min(self.decay, (1 + steps_done) / (10 + steps_done)) if self.warmup else self.decay
        averages = [self.values[name] for name in self._floating]
        live = [self._live[name].detach() for name in self._floating]
        torch._foreach_lerp_(averages, live, 1.0 - decay)
        for name, value in self._live.items():
            if not value.is_floating_point():
                self.values[name].copy_(value)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over saved averages; names must be those of the module."""
        for name, value in self.values.items():
            value.copy_(values[name])
