"""The training loop. Images are the clock: progress, schedules, logs and checkpoints count images seen.

A task defines what is trained and how one batch turns into gradients. The trainer does the rest: processes, optimizer
steps, averages, logs, checkpoints, resume, rollback, and a clean stop.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vavae.device import to_float64
from vavae.errors import RunError, UserError, memory_ran_out, one_line
from vavae.io.files import naming
from vavae.progress import Bar, track
from vavae.training.batchnorm import synchronize_batch_norm
from vavae.training.best import BestModel
from vavae.training.checkpoint import Checkpoint, CheckpointFolder, copy_checkpoint
from vavae.training.config import TrainingConfig
from vavae.training.ema import build_averages
from vavae.training.gradients import GradientAverager
from vavae.training.memory import MicroBatch, batch_length
from vavae.training.optimizer import Optimizer, linear_matrices
from vavae.training.parallel import World, full_tensor, is_sharded
from vavae.training.posthoc_ema import save_snapshot
from vavae.training.run_log import Tracker
from vavae.training.schedule import learning_rate_factor
from vavae.training.signals import StopRequest, stop_on_signal
from vavae.training.stability import SpikeDetector
from vavae.training.state import RunState, state_bytes
from vavae.training.task import TrainingTask
from vavae.training.throughput import estimate, rates


class _BadInterval(Exception):
    """Raised for a log interval that must be rolled back, and that began after `start` images."""

    def __init__(self, reason: str, start: int) -> None:
        super().__init__(reason)
        self.start = start


class Trainer:
    """State of one run and its loop.

    Args:
        task: What to train.
        config: How long and how.
        folder: The run folder. `run` resumes from its newest good checkpoint; without one, the task loads its starting
            weights first.
        world: The processes of the run.

    Attributes:
        images_seen: Images of all steps so far.
        steps_done: Optimizer steps so far, skipped ones included.
        seconds: Time spent training, over all starts of the run.
        data_order: Which order of the data is in use; each rollback takes the next.

    Raises:
        UserError: The task cannot be sharded, or the run folder is damaged.
    """

    def __init__(self, task: TrainingTask, config: TrainingConfig, folder: Path, world: World | None = None) -> None:
        self.task = task
        self.config = config
        self.folder = folder
        self.world = world or World()
        self.images_seen = 0
        self.steps_done = 0
        self.seconds = 0.0
        self.data_order = 0
        self._checkpoints = CheckpointFolder(folder / "checkpoints", config.keep_checkpoints, self.world)
        self._found = self._checkpoints.newest()
        if self._found is None:
            self.world.once(self._begin)
        _distribute(task, config, self.world)
        matrices = linear_matrices(list(task.modules.values()))
        optimizers = {name: Optimizer(*recipe, matrices) for name, recipe in task.optimizers().items()}
        trained = [[p for p in optimizer.parameters if not is_sharded(p)] for optimizer in optimizers.values()]
        self._gradient_averager = GradientAverager(self.world, trained)
        averages = build_averages(task.modules, task.averaged, config.ema_decay, config.averages, config.ema_warmup)
        self._state = RunState(task.modules, averages, optimizers)
        # Statistics of BatchNorm, which a forward pass changes before its step is known to be good
        buffers = [found for module in task.modules.values() for found in module.named_buffers()]
        self._statistics = [buffer for name, buffer in buffers if name.endswith(("running_mean", "running_var"))]
        self._former_statistics = [statistic.clone() for statistic in self._statistics]
        self._sums: dict[str, Tensor] = {}
        self._summed_steps = 0
        self._detector = SpikeDetector(config.stability)
        self._micro = self.world.once(lambda: MicroBatch(folder, config.micro_batch))
        self._best = None if config.best is None else BestModel(folder, config.best)

    def _begin(self) -> None:
        """Load the task's starting weights, and record their source in the run folder."""
        source = self.task.begin()
        if source is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "initial.txt").write_text(source + "\n")

    def averaged_state(self, name: str, label: str | None = None) -> dict[str, Tensor]:
        """Return the averaged state dict of module `name`, unsharded; the live one if the run keeps no average.

        All processes must call it.

        Args:
            name: One of the task's modules.
            label: Which average: a decay, or `width …`; None is the first.
        """
        averages = self._state.averages
        if averages:
            values: Mapping[str, Tensor] = averages[label or next(iter(averages))][name].values
        else:
            values = self.task.modules[name].state_dict()
        return {key: full_tensor(value.detach()) for key, value in values.items()}

    def _states(self) -> dict[str, dict[str, Tensor]]:
        return {name: self.averaged_state(name) for name in self.task.averaged}

    def model(self, best: Mapping[str, float] | None = None) -> Any:
        """Return the averaged model, with the number by which it is the best, if training continues afterwards.

        All processes must call it.
        """
        facts = {"images_seen": self.images_seen, "seed": self.config.seed, "hours": round(self.seconds / 3600, 3)}
        return self.task.model(self._states(), {**facts, **(best or {})}, self.at_once, quick=best is not None)

    def run(self, description: str) -> None:
        """Train to the end, from the newest good checkpoint if there is one.

        Raises:
            KeyboardInterrupt: A stop was requested; the state is saved and the message says how to resume.
            RunError: The run went wrong more often than the recipe allows.
            UserError: The checkpoint belongs to another model.
        """
        # Resume
        self._resume(self._found)
        self._checkpoints.tidy(self._checked)
        self.task.prepare()
        if self._finished:
            return

        # Open what the run needs, and report its cost, before the first step
        if self.config.validation_images is not None:
            self.task.prepare_validation()
        if self.world.first:
            print(f"{description}: {self._estimate()}", flush=True)
        tracker = Tracker(self.folder, self.images_seen, self.config, self.world.first)

        # Train; after each rollback the loop starts again with the next order of the data
        progress: AbstractContextManager[Bar | None] = nullcontext()
        if self.world.first:
            progress = track(description, self.config.images, "images", self.images_seen)
        try:
            with stop_on_signal() as stop, progress as bar:
                while not self._finished:
                    try:
                        self._loop(tracker, bar, stop)
                    except _BadInterval as interval:
                        self._rollback(interval, tracker, bar)
                self._checkpoints.wait()
        finally:
            self._checkpoints.settle()  # after an error too, since the next call removes half-written files
            tracker.close()

    @property
    def at_once(self) -> int:
        """Images that one process works on at once: the recipe's micro-batch, or the size found to fit."""
        return min(self._micro.size or self.config.batch_size, self.config.batch_size // self.world.size)

    @property
    def _finished(self) -> bool:
        return self.images_seen >= self.config.images

    @property
    def _checked(self) -> int:
        """Images at the start of the current log interval, up to which the run is known to be good."""
        return self.images_seen - self._summed_steps * self.config.batch_size

    def _estimate(self) -> str:
        task, averages = self.task, self.config.num_averages
        return estimate(
            self.config,
            state_bytes=sum(state_bytes(task.modules, task.averaged, averages, task.optimizers()).values()),
            step_bytes=task.step_bytes(self.at_once),
            at_once=self.at_once,
            work=task.work(),
            device=self._device,
            processes=self.world.size,
            folder=self.folder,
        )

    @property
    def _device(self) -> torch.device:
        return next(next(iter(self.task.modules.values())).parameters()).device

    def _loop(self, tracker: Tracker, bar: Bar | None, stop: StopRequest) -> None:
        """Train until the run ends, a stop is requested, or an interval must be rolled back."""
        config = self.config
        began = time.perf_counter()
        window = (began, self.images_seen)  # start of the interval whose rate is logged
        shown: dict[str, float] = {}
        with closing(self.task.batches(self.images_seen, self.data_order)) as batches:  # type: ignore[type-var]
            for batch in batches:
                # One optimizer step
                self._apply(self._gradients(batch))
                before, self.images_seen = self.images_seen, self.images_seen + config.batch_size
                self.steps_done += 1

                # Log; a bad interval ends the loop here, before it is saved
                if self._finished or self._crosses(before, config.log_images):
                    now = time.perf_counter()
                    shown = self._log(tracker, (self.images_seen - window[1]) / (now - window[0]))
                    window = (now, self.images_seen)
                if bar is not None:
                    bar.advance(min(config.batch_size, config.images - before), **shown)

                # Pictures and averages
                if self._crosses(before, config.preview_images):
                    self._preview(tracker)
                if self._crosses(before, config.averages.snapshot_images):
                    self._snapshot()

                # Save
                stopping = self.world.any(bool(stop))
                milestone = self._crosses(before, config.milestone_images)
                if self._finished or stopping or milestone or self._crosses(before, config.checkpoint_images):
                    self.seconds += time.perf_counter() - began
                    began = time.perf_counter()
                    self.save(milestone)

                # Stop
                if self._finished:
                    return
                if stopping:
                    self._checkpoints.wait()
                    raise KeyboardInterrupt(
                        f"stopped after {self.images_seen:,} of {config.images:,} images, saved in {self.folder}; "
                        "run the same command to resume"
                    )

    def _crosses(self, before: int, interval: int | None) -> bool:
        """Whether a multiple of `interval` is in (before, images_seen]."""
        return interval is not None and before // interval != self.images_seen // interval

    def _gradients(self, batch: Any) -> dict[str, Tensor]:
        """Compute the batch's gradients, in micro-batches that fit; return the mean terms of this process's part."""
        self._former_statistics = [statistic.clone() for statistic in self._statistics]
        while True:
            try:
                terms: dict[str, Tensor] = {}
                parts = list(self._micro.split(batch))
                for number, (part, share) in enumerate(parts, 1):
                    # Gradients are averaged over processes while the last part's backward pass runs.
                    with self._gradient_averager.averaging() if number == len(parts) else nullcontext():
                        values = self.task.step(part, self.images_seen, share)
                    for name, value in values.items():
                        terms[name] = terms[name] + share * value if name in terms else share * value
                return terms
            except (RuntimeError, MemoryError) as error:
                if not memory_ran_out(error):
                    raise
                self._halve_micro_batch(batch_length(batch), error)
                for statistic, former in zip(self._statistics, self._former_statistics, strict=True):
                    statistic.copy_(former)

    def _halve_micro_batch(self, length: int, error: Exception) -> None:
        """Drop the gradients and halve the micro-batch.

        Raises:
            RunError: It cannot be halved, or the run has several processes: the others wait for this one, so the run
                must start again with the new size.
        """
        for optimizer in self._state.optimizers.values():
            optimizer.zero_grad()
        if not self._micro.halve(length):
            raise RunError(f"out of memory with {self._micro.size or length} images at once: {error}") from error
        if self.world.size > 1:
            raise RunError(
                f"out of memory; the next start works on {self._micro.size} images at once "
                "(torchrun --max-restarts starts by itself)"
            ) from error

    def _apply(self, terms: dict[str, Tensor]) -> None:
        """Average the terms over processes, step the optimizers and averages, and add up the log's sums.

        If an optimizer skips its step, the statistics of BatchNorm become the former ones.
        """
        optimizers = self._state.optimizers
        numbers = {name: value.detach().float() for name, value in terms.items()}
        self.world.average_(list(numbers.values()))

        # Optimizer steps, skipped on the device if loss or gradient is not finite
        total = numbers["total"]
        skipped = torch.zeros_like(total, dtype=torch.bool)
        for name, optimizer in optimizers.items():
            norm = optimizer.clip()
            bad = ~(torch.isfinite(norm) & torch.isfinite(total))
            schedule, config = optimizer.config.schedule, self.config
            optimizer.step(learning_rate_factor(schedule, self.images_seen, config.batch_size, config.images), bad)
            numbers[f"gradient_norm/{name}"] = norm
            numbers[f"skipped/{name}"] = bad.float()
            skipped = skipped | bad
        for statistic, former in zip(self._statistics, self._former_statistics, strict=True):
            statistic.copy_(torch.where(skipped, former, statistic))

        # Averages of the weights, and sums for the log
        for averages in self._state.averages.values():
            for average in averages.values():
                average.update(self.steps_done)
        self._add(numbers)

    def _add(self, numbers: Mapping[str, Tensor]) -> None:
        """Add each number to its sum over the steps in which it was finite, and count those steps.

        So one skipped step does not make the interval's mean NaN, which would hide a spike.
        """
        values = to_float64(torch.stack(list(numbers.values())))
        finite = torch.isfinite(values)
        rows = torch.stack((values.where(finite, 0.0), finite), dim=1)  # (numbers, 2): value and count
        for name, row in zip(numbers, rows, strict=True):
            self._sums[name] = self._sums[name] + row if name in self._sums else row
        self._summed_steps += 1

    def _log(self, tracker: Tracker, rate: float) -> dict[str, float]:
        """Log the means of the interval, raise _BadInterval if they are bad, and return what the progress bar shows."""
        # Means of the interval, in one transfer. Sorted, since a resumed run has its checkpoint's order of names.
        steps = self._summed_steps
        before = self._checked
        names = sorted(self._sums)
        rows = torch.stack([self._sums[name] for name in names]).tolist()
        means = {n: total / finite if finite else math.nan for n, (total, finite) in zip(names, rows, strict=True)}
        self._sums, self._summed_steps = {}, 0

        # One line of the log
        numbers = {"step": float(self.steps_done), **means, **self._learning_rates()}
        if self._crosses(before, self.config.validation_images):
            numbers |= self._validate()
        tracker.log(self.images_seen, numbers, rates(rate, self.task.work(before), self._device, self.world.size))

        # The first process decides for all: processes that disagreed would wait for each other forever.
        problem, self._detector.phase, self._detector.history = self.world.once(lambda: self._check(means))
        if problem is not None:
            raise _BadInterval(f"{problem}, in the {steps} steps before {self.images_seen:,} images", before)
        self._keep_best(numbers)
        return {"loss": means["total"]}

    def _learning_rates(self) -> dict[str, float]:
        """Return the rates of the last step: `lr` of the first optimizer, `lr/NAME` of others."""
        config, seen = self.config, self.images_seen - self.config.batch_size
        rates: dict[str, float] = {}
        for name, optimizer in self._state.optimizers.items():
            factor = learning_rate_factor(optimizer.config.schedule, seen, config.batch_size, config.images)
            rates[f"lr/{name}" if rates else "lr"] = optimizer.config.learning_rate * factor
        return rates

    def _check(self, means: Mapping[str, float]) -> tuple[str | None, int, dict[str, list[float]]]:
        problem = self._detector.check(means, self.task.phase(self.images_seen - self.config.batch_size))
        return problem, self._detector.phase, self._detector.history

    def _validate(self) -> dict[str, float]:
        states = self._states()
        terms = {name: value.detach().float() for name, value in self.task.validate(states, self.at_once).items()}
        self.world.average_(list(terms.values()))
        return {f"val/{'loss' if name == 'total' else name}": float(value) for name, value in terms.items()}

    def _keep_best(self, numbers: Mapping[str, float]) -> None:
        """Write the averaged model to `best` if its validation number is the best so far."""
        best, name = self._best, self.config.best
        if best is None or name is None or name not in numbers:
            return
        if self.world.once(lambda: best.improves(numbers[name], self.images_seen)):
            model = self.model({name: numbers[name]})
            self.world.once(lambda: best.replace(self.images_seen, model.save_pretrained))

    def _preview(self, tracker: Tracker) -> None:
        states = self._states()
        if self.world.first:
            path = self.folder / "previews" / f"images-{self.images_seen:012d}.png"
            path.parent.mkdir(exist_ok=True)
            self.task.preview(states, path)
            tracker.picture(self.images_seen, self.task.pictures, path)

    def _snapshot(self) -> None:
        for width in self.config.averages.widths:
            for name in self.task.averaged:
                values = self.averaged_state(name, f"width {width}")
                if self.world.first:
                    save_snapshot(
                        self.folder / "averages",
                        name,
                        values,
                        steps=self.steps_done,
                        images=self.images_seen,
                        width=width,
                    )

    def save(self, milestone: bool = False) -> None:
        """Start to write a checkpoint of everything that the rest of the run depends on."""
        numbers = {
            "images_seen": self.images_seen,
            "steps_done": self.steps_done,
            "summed_steps": self._summed_steps,
            "seconds": self.seconds,
            "order": self.data_order,
            "regime": self._detector.phase,
            "history": self._detector.history,
        }
        self._checkpoints.save(self.images_seen, self._state.tensors(self._sums), numbers, milestone, self._checked)

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        numbers = checkpoint.numbers
        try:
            self._sums = self._state.restore(checkpoint)
            self.images_seen, self.steps_done = numbers["images_seen"], numbers["steps_done"]
            self._summed_steps, self.seconds = numbers["summed_steps"], numbers["seconds"]
            self.data_order = numbers["order"]
            self._detector.phase, self._detector.history = numbers["regime"], numbers["history"]
        except (RuntimeError, KeyError, ValueError) as error:
            reason = one_line(error)[:300]
            raise UserError(
                f"{self.folder}: its checkpoint does not fit this recipe ({reason}); use another output folder"
            ) from error

    def _rollback(self, interval: _BadInterval, tracker: Tracker, bar: Bar | None) -> None:
        """Return to the last checkpoint before the bad interval, and take the next order of the data.

        Raises:
            RunError: The run has no such checkpoint, or has rolled back as often as the recipe allows. In the second
                case `failure/` is a run folder that leads from the last good checkpoint to the same step.
        """
        reason, seen, order = str(interval), self.images_seen, self.data_order
        # A checkpoint within the interval may contain the damage.
        good = self._checkpoints.newest(upto=interval.start)
        if good is None:
            raise RunError(f"{reason}; no checkpoint to go back to; see {self.folder / 'metrics.jsonl'}")
        if order >= self.config.stability.rollbacks:
            self.world.once(lambda: self._keep_failure(good, reason))
            rollbacks = "1 rollback" if order == 1 else f"{order} rollbacks"
            raise RunError(f"{reason}, after {rollbacks}; {self.folder / 'failure'} reproduces it")
        self._resume(good)
        self.data_order = order + 1
        self._checkpoints.drop_after(self.images_seen)
        event = f"{reason}: back to {self.images_seen:,}, data order {self.data_order}"
        tracker.truncate(self.images_seen, seen, event)
        if bar is not None:
            bar.advance(min(self.images_seen - seen, 0))

    def _keep_failure(self, good: Checkpoint, reason: str) -> None:
        """Write `failure/`: the checkpoint, the data order that failed, and the files that a resume needs."""
        folder = self.folder / "failure"
        with naming(folder):
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            copy_checkpoint(good.path, folder / "checkpoints", order=self.data_order)
            for name in ("recipe.yaml", "versions.json", "data.json", "micro_batch.json"):
                if (self.folder / name).exists():
                    shutil.copyfile(self.folder / name, folder / name)
            failure = {"what": reason, "images": self.images_seen}
            (folder / "failure.json").write_text(json.dumps(failure, indent=1) + "\n")


def _distribute(task: TrainingTask, config: TrainingConfig, world: World) -> None:
    """Give all processes the first one's parameters, then replicate or shard them."""
    if world.size == 1:
        return
    for module in task.modules.values():
        world.broadcast_([*module.parameters(), *module.buffers()])
        synchronize_batch_norm(module)
    if config.parallel == "shard":
        for name, module in task.modules.items():
            _shard(module, task.units(name))


def _shard(module: nn.Module, units: Sequence[nn.Module]) -> None:
    from torch.distributed.fsdp import fully_shard

    if not units:
        raise UserError("training.parallel: this stage cannot be sharded; use replicate")
    for unit in units:
        fully_shard(unit)
    fully_shard(module)
