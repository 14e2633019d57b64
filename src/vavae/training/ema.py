"""Moving averages of parameters: several decays at once, and power functions for averages chosen afterwards.

A power-function average (arXiv 2312.02696, section 3) weighs the parameters of step τ by τ^γ, so its length is a
share of the run. From snapshots of two of them, `posthoc_ema` computes the average of any other length.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vavae.errors import UserError
from vavae.training.parallel import to_local

Rate = Callable[[int], float]


@dataclass(frozen=True)
class AveragesConfig:
    """Averages in addition to the one of `ema_decay`.

    Attributes:
        decays: Further decays per step.
        widths: Lengths of power-function averages, as the relative standard deviation of their weights over the run;
            from 0.05 and 0.10 any other can be computed.
        snapshot_images: Write the power-function averages this often, to `averages/` in the run folder.
    """

    decays: tuple[float, ...] = ()
    widths: tuple[float, ...] = ()
    snapshot_images: int | None = None

    def __post_init__(self) -> None:
        if any(not 0.0 <= decay < 1.0 for decay in self.decays):
            raise UserError(f"averages.decays must be in [0, 1), got {list(self.decays)}")
        if any(not 0.0 < width < 0.288 for width in self.widths):
            raise UserError(f"averages.widths must be in (0, 0.288), got {list(self.widths)}")
        if self.snapshot_images is not None and self.snapshot_images < 1:
            raise UserError(f"averages.snapshot_images must be at least 1 or null, got {self.snapshot_images}")
        if bool(self.widths) != bool(self.snapshot_images):
            raise UserError("averages.widths and averages.snapshot_images must be given together")


def exponential(decay: float, warmup: bool = True) -> Rate:
    """Return the weight of the new value at step n: 1 - min(decay, (1 + n) / (10 + n)), or 1 - decay without `warmup`.

    The second term keeps the average of a short run from being dominated by its start; the published averages do not
    use it.
    """
    if not warmup:
        return lambda _: 1.0 - decay
    return lambda steps_done: 1.0 - min(decay, (1 + steps_done) / (10 + steps_done))


def power_exponent(width: float) -> float:
    """Return γ of the power function whose relative standard deviation is `width`, by bisection of equation 126.

    width² = (γ + 1) / ((γ + 2)² (γ + 3)) decreases in γ, from 0.289² at γ = 0.
    """
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        too_wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if too_wide else (low, middle)
    return (low + high) / 2


def power(width: float) -> Rate:
    """Return the weight of the new value at step n: 1 - (1 - 1/(n + 1))^(γ + 1), equation 127."""
    gamma = power_exponent(width)
    return lambda steps_done: -math.expm1((gamma + 1) * math.log1p(-1 / (steps_done + 1))) if steps_done else 1.0


class MovingAverage:
    """Average of the floating-point entries of a module's state dict, in their dtype, from their present values on.

    After each step: average <- (1 - r) · average + r · value with r = rate(steps done before). Integer entries
    (BatchNorm's counters) are copied. Sharded parameters have sharded averages.

    Attributes:
        values: The averaged state dict.
    """

    def __init__(self, module: nn.Module, rate: Rate) -> None:
        self._rate = rate
        live = dict(module.state_dict(keep_vars=True))
        self.values = {name: value.detach().clone() for name, value in live.items()}
        floating = [name for name, value in live.items() if value.is_floating_point()]
        self._averages = [to_local(self.values[name]) for name in floating]
        self._live = [to_local(live[name].detach()) for name in floating]
        self._copied = [(self.values[name], live[name]) for name in live if name not in set(floating)]

    @torch.no_grad()
    def update(self, steps_done: int) -> None:
        """Add the module's present values to the average; `steps_done` counts from 0."""
        torch._foreach_lerp_(self._averages, self._live, self._rate(steps_done))
        for average, live in self._copied:
            average.copy_(live)


def build_averages(
    modules: Mapping[str, nn.Module],
    names: Sequence[str],
    decay: float | None,
    config: AveragesConfig,
    warmup: bool = True,
) -> dict[str, dict[str, MovingAverage]]:
    """Return label -> module name -> average. An exponential average is labeled by its decay, a power one `width …`."""
    rates = {str(d): exponential(d, warmup) for d in ((decay,) if decay is not None else ()) + config.decays}
    rates |= {f"width {width}": power(width) for width in config.widths}
    return {label: {n: MovingAverage(modules[n], rate) for n in names} for label, rate in rates.items()}
