"""The logs of a run: `metrics.jsonl`, TensorBoard and Weights & Biases, the recipe and the versions used."""

import json
import math
import platform
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vavae.config import to_plain, to_yaml
from vavae.errors import UserError
from vavae.io.files import naming, write_json, write_text, written_whole
from vavae.training.config import TrainingConfig
from vavae.version import __version__

_PACKAGES = ("torch", "numpy", "transformers", "safetensors", "torchdiffeq", "scikit-learn", "scipy", "pillow")


def versions() -> dict[str, str]:
    """Return the versions of vavae, Python, the libraries and the device, on which numbers depend."""
    found = {"vavae": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    return found


def write_run_header(folder: Path, config: Any) -> None:
    """Write `recipe.yaml` (resolved) and `versions.json` into the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # The versions first: a recipe without versions counts as the user's own file.
    write_json(folder / "versions.json", versions(), indent=1)
    write_text(folder / "recipe.yaml", to_yaml(config))


class Tracker:
    """Append one line per log interval to `metrics.jsonl`, to TensorBoard and to Weights & Biases.

    `metrics.jsonl` has only numbers that the recipe determines, so two equal runs write equal files. Times and rates go
    to `timing.jsonl`, rollbacks to `events.jsonl`. Lines beyond `resumed_images` are removed, since the run computes
    them again. Only the `first` process writes.

    Raises:
        UserError: The config wants wandb, which is not installed.
    """

    def __init__(self, folder: Path, resumed_images: int, config: TrainingConfig, first: bool = True) -> None:
        self._folder = folder
        self._config = config
        self._first = first
        self._tensorboard: Any = None
        self._wandb: Any = None
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            self._resume_at(resumed_images)
            if config.wandb is not None:
                self._wandb = _start_wandb(config, folder)

    def _resume_at(self, images: int) -> None:
        """Remove lines and points beyond `images`."""
        for name in ("metrics", "timing"):
            _truncate(self._folder / f"{name}.jsonl", images)
        if self._config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            if self._tensorboard is not None:
                self._tensorboard.close()
            self._tensorboard = SummaryWriter(str(self._folder / "tensorboard"), purge_step=images + 1)

    def log(self, images: int, metrics: dict[str, float], timing: dict[str, float]) -> None:
        """Write one line to each file."""
        if not self._first:
            return
        for name, numbers in (("metrics", metrics), ("timing", timing)):
            # JSON has no NaN: numbers that are not finite become null.
            line = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
            self._append(name, {"images": images, **line})
            if self._tensorboard is not None:
                for key, value in numbers.items():
                    self._tensorboard.add_scalar(f"{name}/{key}", value, images)
        if self._wandb is not None:
            self._wandb.log({"images": images, **metrics, **timing})

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
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_loggers(config: TrainingConfig) -> None:
    """Raise UserError, before any work, if the recipe wants wandb and it is not installed."""
    if config.wandb is not None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError("training.wandb needs the extra: pip install 'vavae[wandb]'") from error


def _start_wandb(config: TrainingConfig, folder: Path) -> Any:
    check_loggers(config)
    import wandb

    run = wandb.init(
        project=config.wandb,
        name=folder.name,
        id=_wandb_id(folder),
        resume="allow",
        dir=str(folder),
        config=to_plain(config),
    )
    run.define_metric("*", step_metric="images")
    return run


def _wandb_id(folder: Path) -> str:
    """Return the run's id, drawn once and saved in its folder, since two folders may have the same name."""
    path = folder / "wandb_id.txt"
    if not path.exists():
        write_text(path, f"{uuid.uuid4().hex[:12]}\n")
    return path.read_text().strip()


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
