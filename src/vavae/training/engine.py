"""The training loop. Images are the clock: progress, schedules, logs and checkpoints count images seen.

A task tells the engine what to train and how one batch turns into gradients; the engine does the rest:
optimizer steps, averages, logs, checkpoints, resume, and a clean stop.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vavae.errors import RunError, UserError
from vavae.progress import track
from vavae.training.checkpoint import CheckpointFolder
from vavae.training.ema import ExponentialMovingAverage
from vavae.training.interrupt import stop_on_signal
from vavae.training.optimizer import OptimizerConfig, build_optimizer
from vavae.training.precision import Precision
from vavae.training.schedule import learning_rate_factor
from vavae.training.tracking import Tracker


@dataclass(frozen=True)
class EngineConfig:
    """How long and how to train.

    Attributes:
        images: Images to see in all.
        batch_size: Images per optimizer step.
        seed: All randomness of the run is a function of this seed and the position in the run.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1, …
        precision: Compute precision; parameters and optimizers stay float32. auto is bf16 where the hardware has it.
        ema_decay: Decay per step of the averaged weights; null keeps none.
        log_images: Write one log line per this many images.
        checkpoint_images: Save the state every this many images, and at the end; null only at the end.
        keep_checkpoints: How many of the newest checkpoints stay on the disk.
        preview_images: Write a picture of the averaged model's work this often; null never.
        tensorboard: Write TensorBoard events.
    """

    images: int = 1_000_000
    batch_size: int = 256
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    ema_decay: float | None = None
    log_images: int = 25_600
    checkpoint_images: int | None = 500_000
    keep_checkpoints: int = 2
    preview_images: int | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("images", "batch_size", "log_images", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-self.images // self.batch_size)


class Task(Protocol):
    """What a stage hands to the engine."""

    modules: Mapping[str, nn.Module]
    """Modules with trained parameters or buffers, by name: what a checkpoint holds."""
    averaged: Sequence[str]
    """Names of those modules whose moving average is kept."""

    def optimizers(self) -> Mapping[str, tuple[OptimizerConfig, Sequence[nn.Parameter]]]:
        """Name -> recipe and parameters of each optimizer."""

    def batches(self, start: int) -> Iterator[Any]:
        """Batches of the run from position `start` (in images) on, without end."""

    def step(self, batch: Any, images_seen: int) -> dict[str, Tensor]:
        """Fill the gradients for one batch and return 0-dim terms for the log; `total` must be among them."""

    def preview(self, states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        """Write to `path` a picture of what the modules named in `averaged` do with these state dicts."""


class Engine:
    """State of one run and its loop.

    Args:
        task: What to train.
        config: How long and how.
        folder: The run folder; its checkpoints are resumed from when there are any.
    """

    def __init__(self, task: Task, config: EngineConfig, folder: Path) -> None:
        self.task = task
        self.config = config
        self.folder = folder
        self.images_seen = 0
        self.steps_done = 0
        self.seconds = 0.0
        recipes = task.optimizers()
        self._recipes = {name: recipe for name, (recipe, _) in recipes.items()}
        self._optimizers = {name: build_optimizer(recipe, params) for name, (recipe, params) in recipes.items()}
        self._averages: dict[str, ExponentialMovingAverage] = {}
        if config.ema_decay is not None:
            decay = config.ema_decay
            self._averages = {n: ExponentialMovingAverage(task.modules[n], decay) for n in task.averaged}
        self._sums: dict[str, Tensor] = {}
        self._summed_steps = 0
        self._checkpoints = CheckpointFolder(folder / "checkpoints", config.keep_checkpoints)

    def averaged_state(self, name: str) -> dict[str, Tensor]:
        """The averaged state dict of module `name`, or its present one where no average is kept."""
        if name in self._averages:
            return dict(self._averages[name].values)
        return {key: value.detach() for key, value in self.task.modules[name].state_dict().items()}

    def run(self, description: str) -> None:
        """Train to the end, from the newest good checkpoint where there is one.

        Raises:
            KeyboardInterrupt: A stop was asked for; the state is saved and the message says how to go on.
            RunError: The loss stayed non-finite over a whole log interval.
            UserError: The checkpoint belongs to another model.
        """
        self._resume()
        if self.images_seen >= self.config.images:
            return
        tracker = Tracker(self.folder, self.images_seen, self.config.tensorboard)
        try:
            with stop_on_signal() as stop, track(description, self.config.images, "images", self.images_seen) as bar:
                self._loop(tracker, bar, stop)
        finally:
            tracker.close()

    def _loop(self, tracker: Tracker, bar: Any, stop: Any) -> None:
        config = self.config
        began = time.perf_counter()
        window = (began, self.images_seen)
        shown: dict[str, float] = {}
        for batch in self.task.batches(self.images_seen):
            terms = self.task.step(batch, self.images_seen)
            self._apply(terms)
            before, self.images_seen = self.images_seen, self.images_seen + config.batch_size
            self.steps_done += 1
            finished = self.images_seen >= config.images
            if finished or _crossed(before, self.images_seen, config.log_images):
                now = time.perf_counter()
                rate = (self.images_seen - window[1]) / (now - window[0])
                shown = self._log(tracker, rate)
                window = (now, self.images_seen)
            bar.advance(min(config.batch_size, config.images - before), **shown)
            due = config.checkpoint_images and _crossed(before, self.images_seen, config.checkpoint_images)
            if config.preview_images and _crossed(before, self.images_seen, config.preview_images):
                self._preview()
            if finished or due or stop:
                self.seconds += time.perf_counter() - began
                began = time.perf_counter()
                self.save()
            if finished:
                return
            if stop:
                raise KeyboardInterrupt(
                    f"stopped after {self.images_seen:,} of {config.images:,} images, saved in {self.folder}; "
                    "the same command goes on from there"
                )

    def _preview(self) -> None:
        pictures = self.folder / "previews"
        pictures.mkdir(exist_ok=True)
        states = {name: self.averaged_state(name) for name in self.task.averaged}
        self.task.preview(states, pictures / f"images-{self.images_seen:012d}.png")

    def _apply(self, terms: Mapping[str, Tensor]) -> None:
        """Clip, step, average; a step with a non-finite gradient changes nothing and is counted."""
        total = terms["total"].detach()
        numbers = dict(terms)
        for name, optimizer in self._optimizers.items():
            recipe = self._recipes[name]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            grads = [p.grad for p in parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads) if grads else total.new_zeros(())
            if recipe.gradient_clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, recipe.gradient_clip, norm)
            bad = ~(torch.isfinite(norm) & torch.isfinite(total))
            # Fused optimizers look at this flag on the device, so that nothing waits for it here.
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            factor = learning_rate_factor(recipe.schedule, self.images_seen, self.config.batch_size, self.config.images)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            numbers[f"gradient_norm/{name}"] = norm
            numbers[f"skipped/{name}"] = bad.float()
        for average in self._averages.values():
            average.update(self.steps_done)
        for name, value in numbers.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._summed_steps += 1

    def _log(self, tracker: Tracker, rate: float) -> dict[str, float]:
        count = self._summed_steps
        # Sorted, as a resumed run has the names in the order of its checkpoint.
        means = {name: float(self._sums[name]) / count for name in sorted(self._sums)}
        self._sums, self._summed_steps = {}, 0
        skipped = [name for name, share in means.items() if name.startswith("skipped/") and share == 1.0]
        tracker.log(self.images_seen, {"step": self.steps_done, **means}, {"images_per_second": rate})
        if skipped:
            raise RunError(
                f"the loss or its gradient was not finite over all of the last {count} steps "
                f"({self.images_seen:,} images seen); see {self.folder / 'metrics.jsonl'}"
            )
        return {"loss": means["total"]}

    def save(self) -> None:
        """Write a checkpoint of everything that the rest of the run depends on."""
        tensors: dict[str, Tensor] = {}
        for name, module in self.task.modules.items():
            tensors |= {f"model/{name}/{key}": value for key, value in module.state_dict().items()}
        for name, average in self._averages.items():
            tensors |= {f"average/{name}/{key}": value for key, value in average.values.items()}
        for name, optimizer in self._optimizers.items():
            for index, slots in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{name}/{index}/{slot}": value for slot, value in slots.items()}
        tensors |= {f"sum/{name}": value for name, value in self._sums.items()}
        numbers = {
            "images_seen": self.images_seen,
            "steps_done": self.steps_done,
            "summed_steps": self._summed_steps,
            "seconds": self.seconds,
        }
        self._checkpoints.save(self.images_seen, tensors, numbers)

    def _resume(self) -> None:
        found = self._checkpoints.load_newest()
        if found is None:
            return
        tensors, numbers = found
        parts = _by_prefix(tensors)
        try:
            for name, module in self.task.modules.items():
                module.load_state_dict(parts.get(f"model/{name}", {}))
            for name, average in self._averages.items():
                average.load(parts[f"average/{name}"])
            for name, optimizer in self._optimizers.items():
                state = optimizer.state_dict()
                slots = parts.get(f"optimizer/{name}", {})
                restored: dict[int, dict[str, Tensor]] = {}
                for key, value in slots.items():
                    index, slot = key.split("/")
                    restored.setdefault(int(index), {})[slot] = value
                optimizer.load_state_dict({"state": restored, "param_groups": state["param_groups"]})
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self.folder}: its checkpoint does not fit this recipe; use another output folder ({reason})"
            ) from error
        device = next(iter(next(iter(self.task.modules.values())).parameters())).device
        self._sums = {name: value.to(device) for name, value in parts.get("sum", {}).items()}
        self._summed_steps = numbers["summed_steps"]
        self.images_seen, self.steps_done = numbers["images_seen"], numbers["steps_done"]
        self.seconds = numbers["seconds"]


def _crossed(before: int, after: int, interval: int) -> bool:
    return before // interval != after // interval


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`model/name/key` -> {"model/name": {"key": …}}; `sum/term` -> {"sum": {"term": …}}."""
    parts: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        kind, _, rest = full.partition("/")
        if kind == "sum":
            parts.setdefault("sum", {})[rest] = value
        else:
            name, _, key = rest.partition("/")
            parts.setdefault(f"{kind}/{name}", {})[key] = value
    return parts
