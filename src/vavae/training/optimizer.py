"""Optimizers from a recipe. A step whose gradient is not finite is skipped on the device, without waiting for it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.training.parallel import full_tensor
from vavae.training.schedule import ScheduleConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimizer and the schedule of its learning rate.

    Attributes:
        kind: `adam` (used for the published tokenizer), `adamw`, or `muon`: Muon for the matrices of linear layers,
            AdamW for everything else.
        learning_rate: Peak learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled for `adamw` and `muon`, an L2 term for `adam`.
        gradient_clip: Largest global norm of this optimizer's gradients; null does not clip.
        schedule: Learning rate over images seen.
        momentum: Momentum of Muon.
    """

    kind: Literal["adam", "adamw", "muon"] = "adamw"
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    gradient_clip: float | None = None
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    momentum: float = 0.95

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise UserError(f"{name} must be a finite number >= 0, got {value}")
        if any(not 0.0 <= beta < 1.0 for beta in self.betas):
            raise UserError(f"betas must be in [0, 1), got {list(self.betas)}")
        if not 0.0 <= self.momentum < 1.0:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise UserError(f"gradient_clip must be positive, or null for no clipping, got {self.gradient_clip}")


def build_optimizer(config: OptimizerConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return a fused Adam or AdamW over `parameters`."""
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    return kind(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def linear_matrices(modules: Sequence[nn.Module]) -> set[Tensor]:
    """Return the weights of all linear layers, which Muon may take; embedding tables and convolutions are left out."""
    return {part.weight for module in modules for part in module.modules() if isinstance(part, nn.Linear)}


def slot_bytes(config: OptimizerConfig, parameters: Sequence[nn.Parameter], matrices: set[Tensor]) -> int:
    """Return the memory of an optimizer's state: two moments per trained parameter, one for Muon's matrices."""
    moments = {p: 1 if config.kind == "muon" and p in matrices else 2 for p in parameters if p.requires_grad}
    return sum(p.nbytes * count for p, count in moments.items())


class Optimizer:
    """The optimizers of one recipe over one set of parameters.

    Muon's learning rate is scaled to the size of AdamW's updates (0.2 · sqrt(longer side), arXiv 2502.16982), so that
    one learning rate and one weight decay serve both. Parameters that do not require gradients are left out. Of the
    others, Muon may take those in `matrices`, which must not be sharded.
    """

    def __init__(self, config: OptimizerConfig, parameters: Sequence[nn.Parameter], matrices: set[Tensor]) -> None:
        self.config = config
        self.parameters = [p for p in parameters if p.requires_grad]
        for_muon = [p for p in self.parameters if config.kind == "muon" and p in matrices]
        rest = [p for p in self.parameters if config.kind != "muon" or p not in matrices]
        self._muon: torch.optim.Optimizer | None = None
        self._adam: torch.optim.Optimizer | None = build_optimizer(config, rest) if rest else None
        if for_muon:
            self._muon = torch.optim.Muon(
                for_muon,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )

    def _parts(self) -> Iterator[torch.optim.Optimizer]:
        return (part for part in (self._adam, self._muon) if part is not None)

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the parameters that have one."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self) -> Tensor:
        """Clip the gradients; return their global norm before clipping, 0-dim, or 0 if there are none."""
        grads = self.gradients()
        if not grads:
            return torch.zeros((), device=self.parameters[0].device)
        norm = full_tensor(torch.nn.utils.get_total_norm(grads))
        if self.config.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.gradient_clip, norm)
        return norm

    def step(self, factor: float, bad: Tensor) -> None:
        """Take one step at `factor` times the learning rate; if `bad` (0-dim bool), change nothing.

        Nothing here waits for the device, which evaluates `bad` itself.
        """
        for part in self._parts():
            for group in part.param_groups:
                group["lr"] = self.config.learning_rate * factor
        if self._adam is not None:
            self._adam.found_inf = bad.float()  # type: ignore[attr-defined]
            self._adam.step()
        if self._muon is not None:
            self._step_muon(self._muon, bad)
        self.zero_grad()

    @torch.no_grad()
    def _step_muon(self, muon: torch.optim.Optimizer, bad: Tensor) -> None:
        """Step Muon; if the step is bad, restore parameters and slots, since torch's Muon does not read `found_inf`."""
        changed = [p for p in muon.param_groups[0]["params"] if p.grad is not None]
        kept = [(p, p.detach().clone()) for p in changed]
        kept += [(slot, slot.clone()) for p in changed for slot in muon.state.get(p, {}).values()]
        fresh = [p for p in changed if p not in muon.state]
        muon.step()
        for tensor, before in kept:
            tensor.copy_(torch.where(bad, before, tensor))
        for parameter in fresh:
            for slot in muon.state[parameter].values():
                slot.copy_(torch.where(bad, torch.zeros_like(slot), slot))

    def slots(self) -> Iterator[tuple[Tensor, str, Tensor]]:
        """Yield (parameter, name, value) of the optimizer's state."""
        for part in self._parts():
            for parameter, slots in part.state.items():
                for name, value in slots.items():
                    yield parameter, name, value

    def restore(self, slots: Sequence[tuple[Tensor, str, Tensor]]) -> None:
        """Replace the optimizer's state with `slots` of another one."""
        for part in self._parts():
            own = set(part.param_groups[0]["params"])
            part.state.clear()
            for parameter, name, value in slots:
                if parameter in own:
                    part.state[parameter][name] = value
