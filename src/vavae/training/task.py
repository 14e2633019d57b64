"""What a stage gives to the trainer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vavae.training.optimizer import OptimizerConfig
from vavae.training.throughput import StepWork


class TrainingTask(ABC):
    """Define what is trained, and how a batch becomes gradients.

    Attributes:
        modules: Modules with trained parameters or buffers, by name: what a checkpoint holds.
        averaged: Names of the modules whose moving averages are kept.
        pictures: Name of its previews in the logs.
    """

    modules: Mapping[str, nn.Module]
    averaged: Sequence[str]
    pictures: str = "samples"

    @abstractmethod
    def optimizers(self) -> Mapping[str, tuple[OptimizerConfig, Sequence[nn.Parameter]]]:
        """Return name -> recipe and parameters of each optimizer."""

    @abstractmethod
    def batches(self, start: int, data_order: int) -> Iterator[Any]:
        """Yield this process's part of each batch, from position `start` (in images), without end.

        Args:
            start: Images seen.
            data_order: Which order of the data: 0, and one more after each rollback.
        """

    @abstractmethod
    def step(self, batch: Any, images_seen: int, scale: float) -> dict[str, Tensor]:
        """Add `scale` times the gradients of a batch, or of a part of one, to `.grad`.

        Args:
            batch: One of `batches`, or a part of it.
            images_seen: Images seen before this step.
            scale: Share of the batch that this part has.

        Returns:
            0-dim terms for the log, unscaled, with `total` among them.
        """

    def begin(self) -> str | None:
        """Load starting weights and return a description of their source; None if the run starts from random ones.

        Only the first process calls it, before the first step of a run without a checkpoint; the others receive its
        parameters and buffers.
        """
        return None

    @abstractmethod
    def model(
        self, states: Mapping[str, Mapping[str, Tensor]], provenance: dict[str, Any], at_once: int, quick: bool
    ) -> Any:
        """Return the trained model, which `save_pretrained` writes as a folder. All processes call it.

        Args:
            states: Averaged state dicts of the modules named in `averaged`.
            provenance: Facts about the training, for the model card.
            at_once: Images that training works on at once in this process.
            quick: Whether training continues afterwards, so that work over all data is done on a part.
        """

    def preview(self, states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        """Write a picture of what the modules named in `averaged` produce with these state dicts."""
        return

    def prepare(self) -> None:
        """Compute what every step needs, such as a teacher's features, once the starting weights have been read.

        All processes call it.
        """
        return

    def prepare_validation(self) -> None:
        """Open what `validate` needs; called before the first step, so that missing files are reported early."""
        return

    def validate(self, states: Mapping[str, Mapping[str, Tensor]], at_once: int | None = None) -> dict[str, Tensor]:
        """Return 0-dim terms of this process's share of the validation data; empty without such data.

        Args:
            states: Averaged state dicts of the modules named in `averaged`.
            at_once: Images that training works on at once in this process; None is its share of a batch.
        """
        return {}

    def units(self, name: str) -> Sequence[nn.Module]:
        """Return the parts of module `name` that FSDP gathers one at a time; empty if it cannot be sharded."""
        return ()

    def phase(self, images_seen: int) -> int:
        """Return the index of the objective after `images_seen` images, so that a switch is not taken for a spike."""
        return 0

    def work(self, images_seen: int | None = None) -> StepWork:
        """Return the cost of one image in a step after `images_seen` images; None is the mean over the run."""
        return StepWork()

    def step_bytes(self, images: int) -> int | None:
        """Estimate the memory of one step of `images` images at once, without parameters, averages and optimizer.

        It covers gradients, activations and frozen networks, in a process that keeps all of each. None is unknown.
        """
        return None
