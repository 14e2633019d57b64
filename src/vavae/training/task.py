"""What a stage hands to the engine."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vavae.training.optimizer import OptimizerConfig
from vavae.training.throughput import StepWork


class TrainingTask(ABC):
    """What is trained, and how a batch becomes gradients.

    Attributes:
        modules: Modules with trained parameters or buffers, by name: what a checkpoint holds.
        averaged: Names of those modules whose moving averages are kept.
    """

    modules: Mapping[str, nn.Module]
    averaged: Sequence[str]

    @abstractmethod
    def optimizers(self) -> Mapping[str, tuple[OptimizerConfig, Sequence[nn.Parameter]]]:
        """Name -> recipe and parameters of each optimizer."""

    @abstractmethod
    def batches(self, start: int, order: int) -> Iterator[Any]:
        """This process's part of each batch, from position `start` (in images) on, without end.

        Args:
            start: Images seen.
            order: Which order of the data; 0 but for a run that went back after a spike.
        """

    @abstractmethod
    def step(self, batch: Any, images_seen: int, scale: float) -> dict[str, Tensor]:
        """Add `scale` times the gradients of one batch, or a part of one, to `.grad`.

        Returns:
            0-dim terms for the log, unscaled; `total` must be among them.
        """

    def begin(self) -> str | None:
        """Load starting weights, and return what was taken from where; None where a run starts from random ones.

        The first process calls it, before the first step of a run that has no checkpoint; the others receive its
        parameters and buffers.
        """
        return None

    def preview(self, states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        """Write to `path` a picture of what the modules named in `averaged` do with these state dicts."""
        return

    def prepare_validation(self) -> None:
        """Open all that `validate` needs: called before the first step, so that what is missing is told at once."""
        return

    def validate(self, states: Mapping[str, Mapping[str, Tensor]], at_once: int | None = None) -> dict[str, Tensor]:
        """0-dim terms on validation data, of this process's share of it; empty without such data.

        Args:
            states: Averaged state dicts of the modules named in `averaged`, for what is measured on the average.
            at_once: Images that training works on at once in this process; null is its share of a batch.
        """
        return {}

    def units(self, name: str) -> Sequence[nn.Module]:
        """Parts of module `name` that are gathered one at a time when it is sharded; empty where it cannot be."""
        return ()

    def regime(self, images_seen: int) -> int:
        """Which objective is in force in the step that begins after `images_seen` images; a change is no spike."""
        return 0

    def work(self) -> StepWork:
        """What one image costs."""
        return StepWork()

    def step_bytes(self, images: int) -> int | None:
        """Estimated memory of one step of `images` images at once, beside parameters, averages and optimizer.

        Gradients, activations, and networks that are not trained, in a process that holds the whole of each. None
        where it is not known.
        """
        return None
