"""The paper's tables as one run: a grid of tokenizers and generators, trained, measured and written up."""

import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vavae.data.images import check_same_classes, printed_once
from vavae.device import resolve_device
from vavae.errors import RunError, UserError
from vavae.frontier.cells import (
    CellContext,
    delete_intermediates,
    main_values,
    run_unit,
    trained_generator,
    trained_tokenizer,
)
from vavae.frontier.config import KINDS, Config
from vavae.frontier.grid import GeneratorCell, Grid, TokenizerCell, Unit
from vavae.frontier.page import write_everything
from vavae.frontier.results import Claims, Failures, Owner, Results
from vavae.frontier.status import State, show
from vavae.frontier.workers import call_folder, failures_of_call, work_together
from vavae.io.files import chosen
from vavae.progress import format_duration
from vavae.stages.run_folder import OccupiedError
from vavae.training.signals import interrupted_by_signals

__all__ = ["Config", "run"]

_WAIT = 2.0  # seconds between two looks at what other processes do
_PATIENCE = 20.0  # seconds in which another process may begin what this one waits for
_STARTING = "starting-"  # begins the names of claims of processes that load what they need


class _Limit:
    """The end of this call's time: the process interrupts itself, as SIGTERM would."""

    def __init__(self, minutes: float | None) -> None:
        self.reached = False
        self._deadline = time.monotonic() + minutes * 60 if minutes is not None else math.inf
        self._over = False
        self._timer = threading.Timer(minutes * 60, self._reach) if minutes is not None else None

    @property
    def passed(self) -> bool:
        """Whether so many minutes have passed; each of several processes keeps the limit itself, a little later."""
        return time.monotonic() > self._deadline

    def _reach(self) -> None:
        if not self._over:
            self.reached = True
            os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with interrupted_by_signals():
            if self._timer is not None:
                self._timer.daemon = True
                self._timer.start()
            try:
                yield
            finally:
                self._over = True
                if self._timer is not None:
                    self._timer.cancel()


class _Runner:
    """Takes one unit after the other that nobody else has, until there is none."""

    def __init__(self, config: Config, grid: Grid, failures: Failures) -> None:
        self.grid = grid
        self.kinds = config.kinds or KINDS
        self.results = Results(grid.folder / "results")
        self.claims = Claims(grid.folder / "claims")
        self.bench = CellContext(config, grid, self.results)
        self.failures = failures
        self.running: str | None = None
        self._seen: list[State] = []
        self._occupied: set[str] = set()

    def has_result(self, unit: Unit) -> bool:
        """Whether a unit is measured."""
        return self.results.read(unit.result) is not None

    def missing(self) -> list[Unit]:
        """Units without a result, and tokenizers that a unit without a result needs."""
        without = [unit for unit in self.grid.units if not self.has_result(unit)]
        needed = {unit.needs for unit in without if unit.kind == "uniformity"}
        needed |= {
            self.grid.tokenizer_name(unit.cell.tokenizer)
            for unit in without
            if isinstance(unit.cell, GeneratorCell) and self._will_train(unit)
        }
        return [
            unit
            for unit in self.grid.units
            if unit in without
            or (unit.kind == "tokenizer" and unit.name in needed and not trained_tokenizer(self.grid, unit.cell))  # type: ignore[arg-type]
        ]

    def _will_train(self, unit: Unit) -> bool:
        if not isinstance(unit.cell, GeneratorCell):
            return False
        return not trained_generator(self.grid, unit.cell, with_averages=unit.kind == "curve")

    def ready(self, unit: Unit) -> bool:
        """Whether the models that a unit uses are there."""
        cell = unit.cell
        if unit.kind == "tokenizer":
            return True
        if isinstance(cell, TokenizerCell):
            return trained_tokenizer(self.grid, cell)
        if unit.kind == "curve":
            # The generator's unit trains it, with the averages that this one measures.
            return self.results.read(self.grid.unit("generator", cell).result) is not None and (
                not self._will_train(unit) or trained_tokenizer(self.grid, cell.tokenizer)
            )
        return not self._will_train(unit) or trained_tokenizer(self.grid, cell.tokenizer)

    def states(self) -> list[tuple[Unit, State, str]]:
        """Every unit with its state and its main numbers."""
        rows = []
        failed = self.failures.read()
        for unit in self.grid.units:
            content = self.results.read(unit.result)
            if content is not None:
                said = ", ".join(f"{name} {value:.4g}" for name, value in main_values(unit.kind, content))
                rows.append((unit, State.DONE, said))
            elif unit.result == self.running:
                rows.append((unit, State.RUNNING, ""))
            elif unit.result in failed:
                rows.append((unit, State.FAILED, failed[unit.result]))
            elif (owner := self.claims.owner(_claim(unit))) not in (None, Owner.this()):
                assert owner is not None
                rows.append((unit, State.ELSEWHERE, f"process {owner.pid} on {owner.host}"))
            else:
                rows.append((unit, State.WAITING, ""))
        return rows

    def todo(self) -> list[Unit]:
        """What is left of the kinds asked for, without what failed."""
        failed = self.failures.read()
        return [unit for unit in self.missing() if unit.kind in self.kinds and unit.result not in failed]

    def look(self) -> bool:
        """Show the states where they changed, since other processes do the work; whether one has a unit now."""
        rows = self.states()
        states = [state for _, state, _ in rows]
        if states != self._seen:
            self._seen = states
            show(rows, None)
        return State.ELSEWHERE in states

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Let others know that this process is about to begin, so that they wait for what it may make."""
        with self.claims.holding(f"{_STARTING}{Owner.this().name}"):
            yield

    def check(self) -> None:
        """Load what the measurements need, so that a wrong name is told before hours of training.

        Raises:
            UserError: The feature network or the teacher of the measurements cannot be had.
        """
        kinds = {unit.kind for unit in self.missing()} & set(self.kinds)
        if kinds & {"tokenizer", "generator", "curve"}:
            _ = self.bench.network
        if "tokenizer" in kinds:
            _ = self.bench.teacher

    def work(self) -> None:
        """Until nothing is left that this process can do."""
        idle = 0.0
        while todo := self.todo():
            self._occupied.clear()
            if any(self.attempt(unit) for unit in todo if self.ready(unit)):
                idle = 0.0
                continue
            elsewhere = any(self.claims.owner(_claim(unit)) for unit in self.missing())
            elsewhere = elsewhere or bool(self._occupied) or self.claims.others(_STARTING)
            if self.failures.read() and not elsewhere:
                return  # what is left needs what failed
            # Between two cells of another process nobody holds a claim for a moment.
            idle = 0.0 if elsewhere else idle + _WAIT
            if idle > _PATIENCE:
                print(_waiting(todo), flush=True)
                return
            time.sleep(_PATIENCE if self._occupied else _WAIT)

    def attempt(self, unit: Unit) -> bool:
        """Do a unit unless somebody else does, or has; whether it was done."""
        with self.claims.holding(_claim(unit)) as mine:
            if not mine or unit not in self.missing():
                return False
            self.running = unit.result
            show(self.states(), unit)
            try:
                content = run_unit(self.bench, unit, self.results.read(unit.result))
                if not self.has_result(unit):
                    self.results.write(unit.result, content)
            except OSError:
                raise  # a full disk, say, which is no fault of this unit
            except OccupiedError as error:
                self._occupied.add(unit.result)
                print(f"waiting: {unit.label}: {error}", flush=True)
                return False
            except Exception as error:
                # One cell that cannot be trained or measured must not cost the others.
                if not isinstance(error, (RunError, UserError)):
                    traceback.print_exc()
                said = f"{error}" or type(error).__name__
                self.failures.add(unit.result, said)
                print(f"failed: {unit.label}: {said}", flush=True)
                return True
            finally:
                self.running = None
            delete_intermediates(self.grid, unit)
            said = ", ".join(f"{name} {value:.4g}" for name, value in main_values(unit.kind, content))
            print(f"done: {unit.label} in {format_duration(content['seconds'])}: {said}", flush=True)
            return True


def _waiting(todo: Sequence[Unit]) -> str:
    return (
        f"{len(todo)} pieces of work wait for models that nobody is making, first {todo[0].label}: "
        "the same command without --kinds makes them"
    )


def _claim(unit: Unit) -> str:
    """Units that work in one folder exclude each other."""
    kind = "generator" if unit.kind == "curve" else unit.kind
    return f"{kind}-{unit.name}"


@printed_once()
def run(config: Config) -> Path:
    """Do what is missing of the grid, and write tables, figures and page; returns the page.

    Raises:
        UserError: Images, a size, a teacher or an experiment is wrong.
        RunError: A cell or a process failed; the others were done.
        KeyboardInterrupt: A stop was asked for; what is finished is kept, and the page shows it.
    """
    folder = Path(config.output)
    if not config.page_only:
        resolve_device(config.device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("torchrun: start plain processes on one --output instead, one per GPU; they share the cells")
    with chosen("output", folder):
        folder.mkdir(parents=True, exist_ok=True)
    train, test = config.data.open("train", folder), config.data.open("test", folder, "test images")
    check_same_classes(train, test)
    grid = Grid(config, (train.fingerprint(), test.fingerprint()))
    if not grid.units:
        raise UserError("experiments: none has seeds, so there is nothing to do")
    print(
        f"{len(grid.tokenizers)} tokenizers, {len(grid.generators)} generators, {len(grid.units)} units of work",
        flush=True,
    )
    if config.workers == 1 or config.page_only:
        return _run(config, grid, None)
    with call_folder(folder, Claims(folder / "claims")) as called:
        return _run(config, grid, called)


def _run(config: Config, grid: Grid, called: Path | None) -> Path:
    """`run` of a grid; `called` is the folder of a call with several processes."""
    runner, limit = _Runner(config, grid, failures_of_call(called)), _Limit(config.time_limit)
    stopped: KeyboardInterrupt | None = None
    complaints: list[str] = []
    if not config.page_only:
        try:
            if called is None:
                with limit():
                    with runner.starting():
                        runner.check()
                    runner.work()
            elif runner.todo():
                complaints = _work_together(config, called, runner)
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
        runner.claims.sweep()
    states = runner.states()
    show(states, None)
    page = write_everything(config, grid, runner.results, states)
    finished = sum(state is State.DONE for _, state, _ in states)
    summary = f"{finished} of {len(states)} done; page: {page}"
    if stopped is not None and not limit.reached:
        raise KeyboardInterrupt(f"stopped; {summary}; the same command goes on")
    left = runner.todo() if called is not None else []
    if (limit.reached or (left and limit.passed and not complaints)) and finished < len(states):
        print(f"time limit reached; {summary}; the same command goes on")
        return page
    if failed := runner.failures.read():
        raise RunError(f"{len(failed)} failed, first {next(iter(failed.values()))}; {summary}")
    if left and complaints:
        raise RunError(f"{len(complaints)} of {config.workers} processes failed, {complaints[0]}; {summary}")
    if left:
        print(_waiting(left))
    print(summary)
    return page


def _work_together(config: Config, called: Path, runner: _Runner) -> list[str]:
    """`work_together`; until its processes have cells, others who wait for their models see that they begin."""
    with ExitStack() as starting:
        starting.enter_context(runner.starting())

        def look() -> None:
            if runner.look():
                starting.close()

        return work_together(config, called, look)
