"""The logs of a run: `metrics.jsonl` and other loggers, the recipe and the versions used."""

import json
import math
import platform
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vavae.config import to_yaml
from vavae.io.files import naming, read_json_object, write_json, write_text, written_whole
from vavae.training.config import TrainingConfig
from vavae.training.loggers import TensorBoard, Tracked, check_installed
from vavae.version import __version__

_PACKAGES = ("torch", "numpy", "transformers", "safetensors", "torchdiffeq", "scikit-learn", "scipy", "pillow")

_LOGGERS = "loggers.json"


def versions() -> dict[str, str]:
    """Return the versions of vavae, Python, the libraries and the device, on which numbers depend."""
    found = {"vavae": __version__, "python": platform.python_version(), "machine": platform.machine()}
    found |= _libraries()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    return found


@cache
def _libraries() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def write_run_header(folder: Path, config: Any) -> None:
    """Write `recipe.yaml` (resolved) and `versions.json` into the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # The versions first: a recipe without versions counts as the user's own file.
    write_json(folder / "versions.json", versions(), indent=1)
    write_text(folder / "recipe.yaml", to_yaml(config))


class Tracker:
    """Append one line per log interval to `metrics.jsonl`, and log the same numbers to the other loggers.

    `metrics.jsonl` has only numbers that the recipe determines, so two equal runs write equal files. Times and rates
    go to `timing.jsonl`, rollbacks to `events.jsonl`.

    A resumed run computes again what came after its checkpoint. These lines, and TensorBoard's points, are removed
    first. The other loggers keep what they have, so points up to the furthest one are not logged to them again.

    Args:
        folder: The run folder.
        resumed_images: Lines beyond it are removed.
        config: Which other loggers to use.
        first: Whether this process writes; the others log nothing.

    Raises:
        UserError: A logger is not installed or does not start.
    """

    def __init__(self, folder: Path, resumed_images: int, config: TrainingConfig, first: bool = True) -> None:
        self._folder = folder
        self._config = config
        self._first = first
        self._tensorboard: TensorBoard | None = None
        self._others: dict[str, Tracked] = {}
        self._runs: dict[str, str] = {}  # their ids, also of loggers that an earlier start used
        self._furthest = 0  # images of the last point that the other loggers have
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            self._resume_at(resumed_images)
            self._start_others()

    def _resume_at(self, images: int) -> None:
        """Remove lines and points beyond `images`."""
        reached = max((int(line["images"] or 0) for line in read_metrics(self._folder)), default=0)
        self._furthest = max(self._furthest, reached)
        self._record()
        for name in ("metrics", "timing"):
            _truncate(self._folder / f"{name}.jsonl", images)
        if self._config.tensorboard:
            if self._tensorboard is not None:
                self._tensorboard.close()
            self._tensorboard = TensorBoard(self._folder, images)

    def _start_others(self) -> None:
        """Start the other loggers, or continue their runs."""
        if self._config.loggers:
            check_installed(self._config.loggers)
            path = self._folder / _LOGGERS
            if path.exists():
                state = read_json_object(path)
                self._runs, self._furthest = state["runs"], max(self._furthest, state["images"])
            for name in self._config.loggers:
                self._others[name] = Tracked(name, self._config.project, self._folder, self._runs.get(name))
                self._runs[name] = self._others[name].run_id
            self._record()

    def _record(self) -> None:
        """Write what the next start must know of the other loggers."""
        if self._others:
            write_json(self._folder / _LOGGERS, {"runs": self._runs, "images": self._furthest})

    def log(self, images: int, metrics: dict[str, float], timing: dict[str, float]) -> None:
        """Write one line to each file, and log the numbers."""
        if not self._first:
            return
        for name, numbers in (("metrics", metrics), ("timing", timing)):
            # JSON has no NaN: numbers that are not finite become null.
            line = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
            self._append(name, {"images": images, **line})
        values = {_series(key): value for key, value in metrics.items()}
        values |= {f"perf/{key}": value for key, value in timing.items()}
        for logger in self._loggers(images):
            logger.log(values, images)

    def picture(self, images: int, name: str, path: Path) -> None:
        """Log the picture in a file."""
        for logger in self._loggers(images):
            logger.picture(name, path, images)

    def _loggers(self, images: int) -> Iterator[TensorBoard | Tracked]:
        """Yield the loggers that do not have the point at `images` yet."""
        if self._tensorboard is not None:
            yield self._tensorboard
        if images > self._furthest:
            yield from self._others.values()

    def truncate(self, images: int, seen: int, event: str) -> None:
        """Remove the lines beyond `images`, where the run resumes, and log the reason as an event at `seen` images."""
        if self._first:
            self._resume_at(images)
            self._append("events", {"images": seen, "event": event})

    def _append(self, name: str, line: dict[str, Any]) -> None:
        path = self._folder / f"{name}.jsonl"
        with naming(path), path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Flush and close all logs."""
        for logger in (self._tensorboard, *self._others.values()):
            if logger is not None:
                logger.close()


def _series(key: str) -> str:
    """Return the name of a term in other loggers: `train/loss` for the total, `val/…` as it is."""
    if key.startswith("val/"):
        return key
    return "train/loss" if key == "total" else f"train/{key}"


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """Return the lines of a run's `metrics.jsonl`, oldest first; an empty list without the file."""
    return [values for _, values in _whole_lines(folder / "metrics.jsonl")]


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines of a log and their values, without lines that a kill or a full disk cut off."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            whole = isinstance(values["images"], int)
        except (ValueError, KeyError, TypeError):
            continue
        if whole:
            yield line, values


def _truncate(path: Path, images: int) -> None:
    if not path.exists():
        return
    kept = [line for line, values in _whole_lines(path) if values["images"] <= images]
    with written_whole(path) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
