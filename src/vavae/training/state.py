"""Everything that the rest of a run depends on, as the named tensors of a checkpoint.

Names are `model/<module>/<key>`, `average/<label>/<module>/<key>`, `optimizer/<name>/<module>/<key>/<slot>` and
`sum/<term>`. The position in the run is saved as numbers, not tensors. Random numbers are functions of the position,
so random generators have no state to save.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vavae.device import float64_device
from vavae.training.checkpoint import Checkpoint
from vavae.training.ema import MovingAverage
from vavae.training.optimizer import Optimizer, OptimizerConfig, linear_matrices, slot_bytes


def state_bytes(
    modules: Mapping[str, nn.Module],
    averaged: Sequence[str],
    averages: int,
    optimizers: Mapping[str, tuple[OptimizerConfig, Sequence[nn.Parameter]]],
) -> dict[str, int]:
    """Return the memory of a run's state by part: `weights`, `optimizer`, `averages`.

    Args:
        modules: Parameters and buffers; their values are not needed.
        averaged: Names of the modules whose averages are kept.
        averages: How many of each.
        optimizers: As `TrainingTask.optimizers` returns them.
    """
    sizes = {name: sum(value.nbytes for value in module.state_dict().values()) for name, module in modules.items()}
    matrices = linear_matrices(list(modules.values()))
    return {
        "weights": sum(sizes.values()),
        "optimizer": sum(slot_bytes(config, parameters, matrices) for config, parameters in optimizers.values()),
        "averages": averages * sum(sizes[name] for name in averaged),
    }


@dataclass(frozen=True)
class RunState:
    """The tensors of a run, on their devices."""

    modules: Mapping[str, nn.Module]  # parameters and buffers
    averages: Mapping[str, Mapping[str, MovingAverage]]  # label -> module name -> average
    optimizers: Mapping[str, Optimizer]  # by name of their recipe

    def _fixed(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that exist before the first step."""
        for name, module in self.modules.items():
            yield from ((f"model/{name}/{key}", value.detach()) for key, value in module.state_dict().items())
        for label, averages in self.averages.items():
            for name, average in averages.items():
                yield from ((f"average/{label}/{name}/{key}", value) for key, value in average.values.items())

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}/{key}": parameter
            for name, module in self.modules.items()
            for key, parameter in module.named_parameters()
        }

    def tensors(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all tensors by name, without the slots of optimizers that have not stepped yet."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._parameters().items()}
        found = dict(self._fixed())
        for recipe, optimizer in self.optimizers.items():
            for parameter, slot, value in optimizer.slots():
                found[f"optimizer/{recipe}/{names[parameter]}/{slot}"] = value
        return found | {f"sum/{term}": value for term, value in sums.items()}

    def restore(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """Load a checkpoint in place and return its sums.

        Raises:
            ValueError: The checkpoint belongs to other modules; the message names the first difference.
        """
        # Where each tensor of the checkpoint goes
        shapes = checkpoint.shapes
        targets = dict(self._fixed())
        device = float64_device(next(iter(targets.values())).device)
        slots: dict[str, list[tuple[Tensor, str, Tensor]]] = {name: [] for name in self.optimizers}
        sums = {}
        parameters = self._parameters()
        for full in shapes:
            kind, _, rest = full.partition("/")
            if kind == "sum":
                sums[rest] = targets[full] = torch.zeros(shapes[full], dtype=torch.float64, device=device)
            elif kind == "optimizer":
                recipe, _, rest = rest.partition("/")
                key, _, slot = rest.rpartition("/")
                if recipe not in slots or key not in parameters:
                    raise ValueError(f"it has {full}, which this recipe does not have")
                parameter = parameters[key]
                targets[full] = _like(parameter, shapes[full])
                slots[recipe].append((parameter, slot, targets[full]))

        # The names and shapes must be the same
        differing = next((name for name in sorted(targets) if tuple(targets[name].shape) != shapes.get(name)), None)
        unknown = next((name for name in sorted(shapes) if name not in targets), None)
        if differing is not None:
            found = shapes.get(differing, "missing")
            raise ValueError(f"{differing} must be {tuple(targets[differing].shape)}, got {found}")
        if unknown is not None:
            raise ValueError(f"it has {unknown}, which this recipe does not have")

        checkpoint.read_into(targets)
        for name, optimizer in self.optimizers.items():
            optimizer.restore(slots[name])
        return sums


def _like(parameter: nn.Parameter, shape: tuple[int, ...]) -> Tensor:
    """Return an empty slot: sharded like its parameter if it has the same shape, else a count on the same device."""
    if tuple(parameter.shape) == shape and shape != ():
        return torch.zeros_like(parameter.detach())
    return torch.zeros(shape, dtype=torch.float32, device=parameter.device)
