"""The training loop. Images are the clock: progress, schedules, logs and checkpoints count images seen.

A task tells the engine what to train and how one batch turns into gradients; the engine does the rest:
processes, optimizer steps, averages, logs, checkpoints, resume, going back, and a clean stop.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vavae.device import resolve_precision, to_float64
from vavae.errors import RunError, UserError, memory_ran_out, one_line
from vavae.io.files import naming
from vavae.progress import Bar, track
from vavae.training.batchnorm import synchronize_batch_norm
from vavae.training.checkpoint import Checkpoint, CheckpointFolder, copy_checkpoint
from vavae.training.config import TrainingConfig
from vavae.training.ema import build_averages
from vavae.training.memory import MicroBatch, batch_length, split_batch
from vavae.training.optimizer import Optimizer, linear_matrices
from vavae.training.parallel import World, full_tensor, is_sharded
from vavae.training.posthoc_ema import save_snapshot
from vavae.training.run_log import Tracker
from vavae.training.schedule import learning_rate_factor
from vavae.training.signals import StopRequest, stop_on_signal
from vavae.training.stability import SpikeDetector
from vavae.training.state import RunState
from vavae.training.task import TrainingTask
from vavae.training.throughput import estimate, rates

__all__ = ["Trainer", "TrainingConfig", "TrainingTask"]


class _WentWrong(Exception):
    """An interval that must be taken back.

    Args:
        what: What is wrong with it.
        began: Images seen when it began.
    """

    def __init__(self, what: str, began: int) -> None:
        super().__init__(what)
        self.began = began


class Trainer:
    """State of one run and its loop.

    Args:
        task: What to train.
        config: How long and how.
        folder: The run folder; its checkpoints are resumed from when there are any, else the task begins.
        world: The processes of the run.

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
        self.order = 0
        self._checkpoints = CheckpointFolder(folder / "checkpoints", config.keep_checkpoints, self.world)
        self._found = self._checkpoints.newest()
        if self._found is None:  # neither a folder of checkpoints nor a damaged one is a reason to begin elsewhere
            self.world.once(self._begin)
        _spread(task, config, self.world)
        matrices = linear_matrices(list(task.modules.values()))
        optimizers = {name: Optimizer(*recipe, matrices) for name, recipe in task.optimizers().items()}
        averages = build_averages(task.modules, task.averaged, config.ema_decay, config.averages, config.ema_warmup)
        self._state = RunState(task.modules, averages, optimizers)
        self._sums: dict[str, Tensor] = {}
        self._summed_steps = 0
        self._watch = SpikeDetector(config.stability)
        self._micro = self.world.once(lambda: MicroBatch(folder, config.micro_batch))

    def _begin(self) -> None:
        """Load the task's starting weights, and write what was taken into the run folder."""
        taken = self.task.begin()
        if taken is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "initial.txt").write_text(taken + "\n")

    def averaged_state(self, name: str, label: str | None = None) -> dict[str, Tensor]:
        """An averaged state dict of module `name`, whole; its present one where no average is kept.

        Args:
            name: One of the task's modules.
            label: Which average: a decay, or `width …`; null is the first.
        """
        averages = self._state.averages
        if averages:
            values: Mapping[str, Tensor] = averages[label or next(iter(averages))][name].values
        else:
            values = self.task.modules[name].state_dict()
        return {key: full_tensor(value.detach()) for key, value in values.items()}

    def run(self, description: str) -> None:
        """Train to the end, from the newest good checkpoint where there is one.

        Raises:
            KeyboardInterrupt: A stop was asked for; the state is saved and the message says how to go on.
            RunError: The run went wrong more often than the recipe allows.
            UserError: The checkpoint belongs to another model.
        """
        self._checkpoints.drop_partial()
        self._resume(self._found)
        if self._finished:
            return
        if self.world.first:
            print(f"{description}: {self._estimate()}", flush=True)
        if self.config.validation_images is not None:
            self.task.prepare_validation()
        tracker = Tracker(self.folder, self.images_seen, self.config, self.world.first)
        try:
            with stop_on_signal() as stop, _bar(description, self.config.images, self) as bar:
                while not self._finished:
                    try:
                        self._loop(tracker, bar, stop)
                    except _WentWrong as wrong:
                        self._go_back(wrong, tracker, bar)
                self._checkpoints.wait()
        finally:
            tracker.close()

    @property
    def at_once(self) -> int:
        """Images that one process works on at once: the recipe's micro-batch, or what was found to fit."""
        return min(self._micro.size or self.config.batch_size, self.config.batch_size // self.world.size)

    @property
    def _finished(self) -> bool:
        return self.images_seen >= self.config.images

    def _estimate(self) -> str:
        tensors = self._state.tensors({}).values()
        parameters = {p for o in self._state.optimizers.values() for p in o.parameters}
        slots = 2 * sum(p.numel() * p.element_size() for p in parameters) if self.steps_done == 0 else 0
        return estimate(
            steps=self.config.steps,
            batch_size=self.config.batch_size,
            state_bytes=sum(t.numel() * t.element_size() for t in tensors) + slots,
            checkpoints=self.config.keep_checkpoints,
            step_bytes=self.task.step_bytes(self.at_once),
            at_once=self.at_once,
            work=self.task.work(),
            device=self._device,
            dtype=torch.bfloat16 if resolve_precision(self.config.precision, self._device) == "bf16" else torch.float32,
            processes=self.world.size,
            folder=self.folder,
        )

    @property
    def _device(self) -> torch.device:
        return next(next(iter(self.task.modules.values())).parameters()).device

    def _loop(self, tracker: Tracker, bar: Bar | None, stop: StopRequest) -> None:
        config = self.config
        began = time.perf_counter()
        window = (began, self.images_seen)
        shown: dict[str, float] = {}
        with closing(self.task.batches(self.images_seen, self.order)) as batches:  # type: ignore[type-var]
            for batch in batches:
                self._apply(self._gradients(batch))
                before, self.images_seen = self.images_seen, self.images_seen + config.batch_size
                self.steps_done += 1
                if self._finished or self._crosses(before, config.log_images):
                    now = time.perf_counter()
                    shown = self._log(tracker, (self.images_seen - window[1]) / (now - window[0]))
                    window = (now, self.images_seen)
                if bar is not None:
                    bar.advance(min(config.batch_size, config.images - before), **shown)
                if self._crosses(before, config.preview_images):
                    self._preview()
                if self._crosses(before, config.averages.snapshot_images):
                    self._snapshot()
                stopping = self.world.any(bool(stop))
                milestone = self._crosses(before, config.milestone_images)
                if self._finished or stopping or milestone or self._crosses(before, config.checkpoint_images):
                    self.seconds += time.perf_counter() - began
                    began = time.perf_counter()
                    self.save(milestone)
                if self._finished:
                    return
                if stopping:
                    self._checkpoints.wait()
                    raise KeyboardInterrupt(
                        f"stopped after {self.images_seen:,} of {config.images:,} images, saved in {self.folder}; "
                        "the same command goes on from there"
                    )

    def _crosses(self, before: int, interval: int | None) -> bool:
        return interval is not None and before // interval != self.images_seen // interval

    def _gradients(self, batch: Any) -> dict[str, Tensor]:
        """Fill the gradients of this process's part of the batch, in parts that fit; mean terms of it."""
        length = batch_length(batch)
        while True:
            try:
                terms: dict[str, Tensor] = {}
                for part in split_batch(batch, self._micro.size or length):
                    share = batch_length(part) / length
                    for name, value in self.task.step(part, self.images_seen, share).items():
                        terms[name] = terms[name] + share * value if name in terms else share * value
                return terms
            except (RuntimeError, MemoryError) as error:
                if not memory_ran_out(error):
                    raise
                self._shrink(length, error)

    def _shrink(self, length: int, error: Exception) -> None:
        """Halve the micro-batch; several processes must start anew for that, since the others wait for this one."""
        for optimizer in self._state.optimizers.values():
            for parameter in optimizer.parameters:
                parameter.grad = None
        if self.config.micro_batch is not None or not self._micro.halve(length):
            raise RunError(f"out of memory with {self._micro.size or length} images at once: {error}") from error
        if self.world.size > 1:
            raise RunError(
                f"out of memory; the next start works on {self._micro.size} images at once "
                "(torchrun --max-restarts starts by itself)"
            ) from error

    def _apply(self, terms: dict[str, Tensor]) -> None:
        numbers = dict(terms)
        optimizers = self._state.optimizers
        grads = [g for o in optimizers.values() for g in o.gradients() if not is_sharded(g)]
        numbers = {name: value.detach().float() for name, value in numbers.items()}
        self.world.average_([*grads, *numbers.values()])
        total = numbers["total"]
        for name, optimizer in optimizers.items():
            norm = optimizer.clip()
            bad = ~(torch.isfinite(norm) & torch.isfinite(total))
            schedule = optimizer.config.schedule
            optimizer.step(
                learning_rate_factor(schedule, self.images_seen, self.config.batch_size, self.config.images), bad
            )
            numbers[f"gradient_norm/{name}"] = norm
            numbers[f"skipped/{name}"] = bad.float()
        for averages in self._state.averages.values():
            for average in averages.values():
                average.update(self.steps_done)
        self._add(numbers)

    def _add(self, numbers: Mapping[str, Tensor]) -> None:
        """Sum of each number over the steps in which it was finite, and their count: a skipped step hides no other."""
        values = to_float64(torch.stack(list(numbers.values())))
        finite = torch.isfinite(values)
        rows = torch.stack((values.where(finite, 0.0), finite), dim=1)
        for name, row in zip(numbers, rows, strict=True):
            self._sums[name] = self._sums[name] + row if name in self._sums else row
        self._summed_steps += 1

    def _log(self, tracker: Tracker, rate: float) -> dict[str, float]:
        count = self._summed_steps
        # Sorted, as a resumed run has the names in the order of its checkpoint. One transfer for all.
        names = sorted(self._sums)
        values = torch.stack([self._sums[name] for name in names]).tolist()
        means = {n: total / finite if finite else math.nan for n, (total, finite) in zip(names, values, strict=True)}
        self._sums, self._summed_steps = {}, 0
        before = self.images_seen - count * self.config.batch_size
        numbers = {"step": float(self.steps_done), **means}
        if self._crosses(before, self.config.validation_images):
            numbers |= self._validate()
        tracker.log(self.images_seen, numbers, rates(rate, self.task.work(), self._device, self.world.size))
        # One judge: processes that disagreed would wait for each other for ever.
        wrong, self._watch.regime, self._watch.history = self.world.once(lambda: self._judge(means))
        if wrong is not None:
            raise _WentWrong(f"{wrong}, in the {count} steps before {self.images_seen:,} images", before)
        return {"loss": means["total"]}

    def _judge(self, means: Mapping[str, float]) -> tuple[str | None, int, dict[str, list[float]]]:
        wrong = self._watch.judge(means, self.task.regime(self.images_seen - self.config.batch_size))
        return wrong, self._watch.regime, self._watch.history

    def _validate(self) -> dict[str, float]:
        states = {name: self.averaged_state(name) for name in self.task.averaged}
        terms = {name: value.detach().float() for name, value in self.task.validate(states, self.at_once).items()}
        self.world.average_(list(terms.values()))
        return {f"validation/{name}": float(value) for name, value in terms.items()}

    def _preview(self) -> None:
        states = {name: self.averaged_state(name) for name in self.task.averaged}
        if self.world.first:
            folder = self.folder / "previews"
            folder.mkdir(exist_ok=True)
            self.task.preview(states, folder / f"images-{self.images_seen:012d}.png")

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
        """Begin to write a checkpoint of everything that the rest of the run depends on."""
        numbers = {
            "images_seen": self.images_seen,
            "steps_done": self.steps_done,
            "summed_steps": self._summed_steps,
            "seconds": self.seconds,
            "order": self.order,
            "regime": self._watch.regime,
            "history": self._watch.history,
        }
        judged = self.images_seen - self._summed_steps * self.config.batch_size
        self._checkpoints.save(self.images_seen, self._state.tensors(self._sums), numbers, milestone, judged)

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        try:
            self._sums = self._state.restore(checkpoint)
            self._take(checkpoint.numbers)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = one_line(error)[:300]
            raise UserError(
                f"{self.folder}: its checkpoint does not fit this recipe; use another output folder ({reason})"
            ) from error

    def _take(self, numbers: Mapping[str, Any]) -> None:
        self.images_seen, self.steps_done = numbers["images_seen"], numbers["steps_done"]
        self._summed_steps, self.seconds, self.order = numbers["summed_steps"], numbers["seconds"], numbers["order"]
        self._watch.regime, self._watch.history = numbers["regime"], numbers["history"]

    def _go_back(self, interval: _WentWrong, tracker: Tracker, bar: Bar | None) -> None:
        """Go on from the last checkpoint before the interval that went wrong, with the next order of the data.

        Raises:
            RunError: There is none, or the run has gone back often enough. `failure/` then holds a run folder
                that goes from the last good checkpoint to the same step.
        """
        wrong, seen, order = str(interval), self.images_seen, self.order
        # A checkpoint within the interval may hold the damage already.
        good = self._checkpoints.newest(upto=interval.began)
        if good is None:
            raise RunError(f"{wrong}; there is no checkpoint to go back to. See {self.folder / 'metrics.jsonl'}")
        if order >= self.config.stability.rollbacks:
            self.world.once(lambda: self._keep_failure(good, wrong))
            raise RunError(f"{wrong}, for the {order + 1}. time; {self.folder / 'failure'} reproduces it")
        self._resume(good)
        self.order = order + 1
        self._checkpoints.drop_after(self.images_seen)
        tracker.take_back(self.images_seen, seen, f"{wrong}: back to {self.images_seen:,}, data order {self.order}")
        if bar is not None:
            bar.advance(min(self.images_seen - seen, 0))

    def _keep_failure(self, good: Checkpoint, wrong: str) -> None:
        folder = self.folder / "failure"
        with naming(folder):
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            copy_checkpoint(good.path, folder / "checkpoints", order=self.order)
            for name in ("recipe.yaml", "versions.json", "data.json", "micro_batch.json"):
                if (self.folder / name).exists():
                    shutil.copyfile(self.folder / name, folder / name)
            what = {"what": wrong, "images": self.images_seen}
            (folder / "failure.json").write_text(json.dumps(what, indent=1) + "\n")


def _bar(description: str, total: int, engine: Trainer) -> Any:
    """The progress bar of the first process; nothing in the others."""
    return track(description, total, "images", engine.images_seen) if engine.world.first else nullcontext()


def _spread(task: TrainingTask, config: TrainingConfig, world: World) -> None:
    """Give all processes the same parameters, then replicate or shard them."""
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
