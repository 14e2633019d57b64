"""A small task with two optimizers, BatchNorm buffers, and data that are functions of the position."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vavae import rng
from vavae.training.optimizer import OptimizerConfig
from vavae.training.parallel import World
from vavae.training.schedule import ScheduleConfig
from vavae.training.task import TrainingTask
from vavae.training.trainer import Trainer, TrainingConfig

BATCH = 8
CONFIG = TrainingConfig(
    images=800, batch_size=8, device="cpu", ema_decay=0.9, log_images=40, checkpoint_images=200, tensorboard=False
)


class Regression(TrainingTask):
    """Two optimizers over two modules, one with BatchNorm buffers.

    Attributes:
        stop_at: Images at which the process sends itself SIGINT.
        bad_steps: (data order, images) of steps whose loss is not finite.
        fits: Images that fit into "memory" at once.
        lengths: Length of each part of a batch so far.
    """

    def __init__(self, width: int = 6, world: World | None = None, kind: str = "adamw") -> None:
        torch.manual_seed(0)
        self.world = world or World()
        self.kind = kind
        self.modules: dict[str, nn.Module] = {
            "body": nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.SiLU()),
            "head": nn.Linear(width, 1),
        }
        self.averaged = ("body", "head")
        self.stop_at: int | None = None
        self.bad_steps: set[tuple[int, int]] = set()
        self.fits = BATCH
        self.lengths: list[int] = []
        self.order = 0

    def optimizers(self) -> dict[str, tuple[OptimizerConfig, list[nn.Parameter]]]:
        cosine = ScheduleConfig("cosine", warmup_images=32)
        body = OptimizerConfig(self.kind, learning_rate=1e-2, gradient_clip=0.5, schedule=cosine)  # type: ignore[arg-type]
        return {
            "body": (body, list(self.modules["body"].parameters())),
            "head": (OptimizerConfig("adam", 1e-2), list(self.modules["head"].parameters())),
        }

    def batches(self, start: int, data_order: int) -> Iterator[tuple[int, Tensor]]:
        self.order = data_order
        share = BATCH // self.world.size
        while True:
            first = start + self.world.rank * share
            yield start, rng.normal(data_order, "x", range(first, first + share), (4,))
            start += BATCH

    def step(self, batch: Any, images_seen: int, scale: float) -> dict[str, Tensor]:
        position, x = batch
        assert position == images_seen
        self.lengths.append(len(x))
        if len(x) > self.fits:
            raise torch.OutOfMemoryError(f"{len(x)} images")
        if self.stop_at == images_seen:
            os.kill(os.getpid(), signal.SIGINT)
        loss = (self.modules["head"](self.modules["body"](x)) - x.sum(1, keepdim=True)).square().mean()
        (loss * scale).backward()
        total = loss.detach()
        if (self.order, images_seen) in self.bad_steps:
            total = total * torch.nan
        return {"total": total, "mse": loss.detach()}

    def model(self, states: Any, provenance: dict[str, Any], at_once: int, quick: bool) -> "SavedBody":
        return SavedBody(states["body"]["0.weight"], provenance)


class SavedBody:
    """A model whose folder has one number of it and the provenance."""

    def __init__(self, weight: Tensor, provenance: dict[str, Any]) -> None:
        self.config = {"weight": float(weight.sum()), "provenance": provenance}

    def save_pretrained(self, path: Path) -> None:
        path.mkdir()
        (path / "config.json").write_text(json.dumps(self.config))


class Unnormed(Regression):
    """Without BatchNorm, so that the gradients of micro-batches add up to the batch's."""

    def __init__(self, kind: str = "adamw") -> None:
        super().__init__(kind=kind)
        self.modules["body"] = nn.Sequential(nn.Linear(4, 6), nn.SiLU())


def weights(trainer: Trainer) -> list[Tensor]:
    """Return copies of all parameters."""
    return [p.detach().clone() for module in trainer.task.modules.values() for p in module.parameters()]


def run_until_killed(folder: str, threads: int) -> None:
    """Train, and send SIGKILL to this process at 512 images, when the last checkpoint is complete."""
    torch.set_num_threads(threads)
    task = Regression()
    original = task.step

    def step(batch: Any, images_seen: int, scale: float) -> dict[str, Tensor]:
        if images_seen == 512:
            trainer._checkpoints.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(batch, images_seen, scale)

    task.step = step  # type: ignore[method-assign]
    trainer = Trainer(task, CONFIG, Path(folder))
    trainer.run("killed")
