"""The command `vavae frontier`: train and measure a grid of tokenizers and generators, and write the page."""

import math
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vavae.data.images import check_same_classes, note_source, printed_once
from vavae.device import resolve_device
from vavae.errors import RunError, UserError
from vavae.extras import require_extra
from vavae.frontier.cells import (
    CellContext,
    delete_intermediates,
    main_values,
    run_job,
    trained_generator,
    trained_tokenizer,
)
from vavae.frontier.config import KINDS, Config
from vavae.frontier.grid import GeneratorCell, Grid, Job, TokenizerCell
from vavae.frontier.page import State, States, print_states, write_everything
from vavae.frontier.results import Failures, Locks, Results
from vavae.frontier.workers import call_folder, failures_of_call, work_together
from vavae.io.files import OccupiedError, chosen, drop_drafts
from vavae.report.numbers import duration
from vavae.training.signals import interrupted_by_signals

__all__ = ["Config", "run"]

_WAIT = 2.0  # seconds between two checks of what other processes do
_PATIENCE = 20.0  # seconds in which another process may start the training that this one waits for
_STARTING = "starting-"  # prefix of the locks of processes that load the networks of the measurements


@contextmanager
def _limited(minutes: float | None, over: threading.Event) -> Iterator[None]:
    """Interrupt the block after `minutes`, by SIGTERM, and set `over` then."""

    def reach() -> None:
        over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    with interrupted_by_signals():
        timer = threading.Timer(min(threading.TIMEOUT_MAX, math.inf if minutes is None else minutes * 60), reach)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class _Runner:
    """Runs the jobs of a grid that no other process runs, one after the other."""

    def __init__(self, config: Config, grid: Grid, failures: Failures) -> None:
        self.grid = grid
        self.kinds = config.kinds or KINDS
        self.results = Results(grid.folder / "results")
        self.locks = Locks(grid.folder / "locks")
        self.context = CellContext(config, grid, self.results)
        self.failures = failures
        self.running: str | None = None
        self._printed: list[State] = []
        self._occupied = False

    def missing(self) -> list[Job]:
        """Return the jobs without a result, and the tokenizers that such a job needs and that have been deleted."""
        without = [job for job in self.grid.jobs if self.results.read(job.result) is None]
        needed = {job.needs for job in without if job.kind == "uniformity"}
        needed |= {
            self.grid.name(job.cell.tokenizer)
            for job in without
            if isinstance(job.cell, GeneratorCell) and not trained_generator(self.grid, job.cell, job.kind == "curve")
        }
        return [
            job
            for job in self.grid.jobs
            if job in without
            or (job.kind == "tokenizer" and job.name in needed and not trained_tokenizer(self.grid, job.cell))  # type: ignore[arg-type]
        ]

    def ready(self, job: Job) -> bool:
        """Return whether the models that a job needs have been trained."""
        cell = job.cell
        if job.kind == "tokenizer":
            return True
        if isinstance(cell, TokenizerCell):
            return trained_tokenizer(self.grid, cell)
        if job.kind != "generator" and not self.context.done("generator", cell):
            return False  # the generator's job trains it and keeps the averages that a curve measures
        trained = trained_generator(self.grid, cell, with_averages=job.kind == "curve")
        return trained or trained_tokenizer(self.grid, cell.tokenizer)

    def states(self) -> States:
        """Return every job with its state, and its main numbers or the reason why it failed."""
        failed = self.failures.read()

        def state(job: Job) -> tuple[State, str]:
            content = self.results.read(job.result)
            if content is not None:
                return State.DONE, main_values(job.kind, content)
            if job.result == self.running:
                return State.RUNNING, ""
            if job.result in failed:
                return State.FAILED, failed[job.result]
            return (State.ELSEWHERE if self.locks.held(_lock(job)) else State.WAITING), ""

        return [(job, *state(job)) for job in self.grid.jobs]

    def todo(self) -> list[Job]:
        """Return the jobs that are missing, of the kinds in the recipe, without those that failed."""
        failed = self.failures.read()
        return [job for job in self.missing() if job.kind in self.kinds and job.result not in failed]

    def report(self) -> None:
        """Print the states if they changed, while other processes do the work."""
        rows = self.states()
        states = [state for _, state, _ in rows]
        if states != self._printed:
            self._printed = states
            print_states(rows, None)

    def load(self) -> None:
        """Load the networks of the measurements, so that a wrong name is reported before hours of training.

        Raises:
            UserError: The feature network or the teacher of the measurements cannot be loaded.
        """
        kinds = {job.kind for job in self.missing()} & set(self.kinds)
        # Processes that wait for models see by the lock that this one will train soon.
        with self.locks.holding(f"{_STARTING}{socket.gethostname()}-{os.getpid()}"):
            if kinds & {"tokenizer", "generator", "curve"}:
                _ = self.context.network
            if "hidden" in kinds:
                _ = self.context.aligning_network
            if "tokenizer" in kinds:
                _ = self.context.teacher

    def work(self) -> None:
        """Run jobs until this process can do no more."""
        idle = 0.0
        while todo := self.todo():
            self._occupied = False
            if any(self.attempt(job) for job in todo if self.ready(job)):
                idle = 0.0
                continue
            elsewhere = self._occupied or self.locks.any_held(_STARTING)
            elsewhere = elsewhere or any(self.locks.held(_lock(job)) for job in self.missing())
            if self.failures.read() and not elsewhere:
                return  # the remaining jobs need models that failed
            # Between two jobs another process has no lock for a moment.
            idle = 0.0 if elsewhere else idle + _WAIT
            if idle > _PATIENCE:
                print(_waiting(todo), flush=True)
                return
            time.sleep(_PATIENCE if self._occupied else _WAIT)

    def attempt(self, job: Job) -> bool:
        """Run a job unless another process runs it or has done it; return whether it ran."""
        with self.locks.holding(_lock(job)) as ours:
            if not ours or job not in self.missing():
                return False
            self.running = job.result
            print_states(self.states(), job)
            try:
                content = run_job(self.context, job, self.results.read(job.result))
                if self.results.read(job.result) is None:
                    self.results.write(job.result, content)
            except OSError:
                raise  # a full disk, for example, stops all jobs
            except OccupiedError as error:
                self._occupied = True
                print(f"waiting: {job.label}: {error}", flush=True)
                return False
            except Exception as error:
                # The other jobs go on.
                if not isinstance(error, (RunError, UserError)):
                    traceback.print_exc()
                reason = f"{error}" or type(error).__name__
                self.failures.add(job.result, reason)
                print(f"failed: {job.label}: {reason}", flush=True)
                return True
            finally:
                self.running = None
            delete_intermediates(self.grid, job)
            print(f"done: {job.label} in {duration(content['seconds'])}: {main_values(job.kind, content)}", flush=True)
            return True


def _waiting(todo: Sequence[Job]) -> str:
    return (
        f"{len(todo)} jobs need models that have not been trained, first {todo[0].label}; run again without --kinds to "
        "train them"
    )


def _lock(job: Job) -> str:
    """Return the name of a job's lock. Jobs on a generator work in one folder and share a lock."""
    kind = "generator" if isinstance(job.cell, GeneratorCell) else job.kind
    return f"{kind}-{job.name}"


@printed_once()
def run(config: Config) -> Path:
    """Run the missing jobs of the grid, write tables, figures and page, and return the path of the page.

    Raises:
        UserError: The images, a size, a teacher or an experiment is wrong.
        RunError: A job or a process failed; the others were done.
        KeyboardInterrupt: The call was stopped by a signal. The page shows what is finished.
    """
    folder = Path(config.output)
    require_extra("report", "vavae frontier")
    if not config.page_only:
        if "uniformity" in (config.kinds or KINDS):
            require_extra("metrics", "the uniformity of latents")
        resolve_device(config.device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("torchrun cannot start this command; start plain processes on one --output, one per GPU")
    with chosen("output", folder):
        folder.mkdir(parents=True, exist_ok=True)
    train, test = config.data.open("train", folder), config.data.open("test", what="test images")
    check_same_classes(train, test)
    note_source(folder, train)
    note_source(folder, test, "test images")
    grid = Grid(config, (train.fingerprint(), test.fingerprint()))
    if not grid.jobs:
        raise UserError("experiments: at least one must have seeds")
    print(f"{len(grid.tokenizers)} tokenizers, {len(grid.generators)} generators, {len(grid.jobs)} jobs", flush=True)
    if config.workers == 1 or config.page_only:
        return _run(config, grid, None)
    with call_folder(folder, Locks(folder / "locks")) as call:
        return _run(config, grid, call)


def _run(config: Config, grid: Grid, call: Path | None) -> Path:
    """Do `run` on a grid; `call` is the folder of a call with several processes."""
    runner, over = _Runner(config, grid, failures_of_call(call)), threading.Event()
    stopped = False
    died: list[str] = []
    if not config.page_only:
        try:
            with _limited(config.time_limit, over):
                if call is None:
                    runner.load()
                    runner.work()
                elif runner.todo():
                    died = work_together(config, call, runner.report)
        except KeyboardInterrupt:
            stopped = True
        runner.locks.sweep()
    states = runner.states()
    print_states(states, None)
    with runner.locks.holding("page", timeout=60) as alone:
        if alone:
            drop_drafts(grid.folder)
        page = write_everything(config, grid, runner.results, states)
    finished = sum(state is State.DONE for _, state, _ in states)
    summary = f"{finished} of {len(states)} done; page: {page}"
    if stopped and not over.is_set():
        raise KeyboardInterrupt(f"stopped; {summary}; the same command resumes")
    if over.is_set() and finished < len(states):
        print(f"time limit reached; {summary}; the same command resumes")
        return page
    if failed := runner.failures.read():
        raise RunError(f"{len(failed)} failed, first {next(iter(failed.values()))}; {summary}")
    left = runner.todo() if call is not None else []
    if left and died:
        raise RunError(f"{len(died)} of {config.workers} processes failed, {died[0]}; {summary}")
    if left:
        print(_waiting(left))
    print(summary)
    return page
