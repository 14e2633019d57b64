"""The part of a recipe that is the same for every training stage."""

from dataclasses import dataclass, field
from typing import Literal

from vavae.device import Precision
from vavae.errors import UserError
from vavae.training.ema import AveragesConfig
from vavae.training.loggers import LoggerName
from vavae.training.stability import StabilityConfig


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how to train.

    Attributes:
        images: Images of the whole run.
        batch_size: Images per optimizer step, over all processes.
        seed: All randomness of the run is a function of this seed and the position in the run.
        device: auto (an NVIDIA GPU where there is one), cpu, cuda, cuda:1, mps, …
        precision: Compute precision; parameters and optimizers stay float32. auto is bf16 where the CPU or NVIDIA's GPU
            has it.
        parallel: What several processes (torchrun) do: `replicate` keeps everything in each, `shard` (FSDP2) divides
            parameters, averages and optimizer among them.
        micro_batch: Images that a process works on at once; gradients add up over the batch. Null takes the whole
            batch, and halves it whenever memory runs out.
        ema_decay: Decay per step of the averaged weights; null keeps none.
        ema_warmup: Let this decay, and those of `averages`, be smaller at first: min(ema_decay, (1 + n) / (10 + n)) at
            step n, below 0.9999 up to step 89,990. The published averages have the same decay from the first step.
        averages: Further averages.
        stability: When a run has gone wrong, and what it does then.
        log_images: Write one log line per this many images.
        checkpoint_images: Save the state every this many images, and at the end; null only at the end.
        keep_checkpoints: How many of the newest checkpoints to keep.
        milestone_images: Keep a checkpoint forever every this many images; null never.
        preview_images: Write a picture of the averaged model's results this often; null never.
        validation_images: Measure the validation loss this often, where the stage has validation data; null never.
        best: Keep the averaged model with the best value of this validation number, such as `val/loss`, in `best/` of
            the run folder; null keeps none.
        tensorboard: Write TensorBoard events.
        loggers: Further loggers, by name (`wandb,mlflow`); each needs its package and accelerate.
        project: Name of the project in those loggers.
    """

    images: int = 1_000_000
    batch_size: int = 256
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    parallel: Literal["replicate", "shard"] = "replicate"
    micro_batch: int | None = None
    ema_decay: float | None = None
    ema_warmup: bool = True
    averages: AveragesConfig = field(default_factory=AveragesConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    log_images: int = 25_600
    checkpoint_images: int | None = 500_000
    keep_checkpoints: int = 2
    milestone_images: int | None = None
    preview_images: int | None = None
    validation_images: int | None = None
    best: str | None = None
    tensorboard: bool = True
    loggers: tuple[LoggerName, ...] = ()
    project: str = "vavae"

    def __post_init__(self) -> None:
        for name in ("images", "batch_size", "log_images", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("micro_batch", "checkpoint_images", "milestone_images", "preview_images", "validation_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"training.{name} must be at least 1 or null, got {value}")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise UserError(f"training.ema_decay must be in [0, 1), or null for no average, got {self.ema_decay}")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-self.images // self.batch_size)

    @property
    def num_averages(self) -> int:
        """Moving averages of each averaged module."""
        return (self.ema_decay is not None) + len(self.averages.decays) + len(self.averages.widths)
