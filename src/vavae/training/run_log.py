"""What a run writes down: `metrics.jsonl`, TensorBoard events, the recipe and the versions used."""

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
from vavae.io.files import naming, written_whole
from vavae.training.config import TrainingConfig
from vavae.version import __version__

_PACKAGES = ("torch", "numpy", "transformers", "safetensors", "torchdiffeq", "scikit-learn", "scipy", "pillow")


def versions() -> dict[str, str]:
    """Versions of vavae, Python, the libraries and the device: what a number depends on beside the recipe."""
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
    # The versions first: a recipe without them counts as the user's own.
    with written_whole(folder / "versions.json") as temporary:
        temporary.write_text(json.dumps(versions(), indent=1) + "\n")
    with written_whole(folder / "recipe.yaml") as temporary:
        temporary.write_text(to_yaml(config))


class Tracker:
    """Appends one line per log interval to `metrics.jsonl`, to TensorBoard and to Weights & Biases.

    `metrics.jsonl` holds only what the recipe determines, so two equal runs write equal files; times and rates,
    which differ from machine to machine, go to `timing.jsonl`, and what happened beside the plan to `events.jsonl`.

    Args:
        folder: The run folder.
        resumed_images: Lines beyond this count of images belong to work that is done again, and are cut.
        config: Says which of the other loggers are asked for.
        first: Whether this process writes; in the others nothing happens.

    Raises:
        UserError: wandb is asked for and not installed.
    """

    def __init__(self, folder: Path, resumed_images: int, config: TrainingConfig, first: bool = True) -> None:
        self._folder = folder
        self._first = first
        self._tensorboard: Any = None
        self._wandb: Any = None
        if not first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._cut(resumed_images)
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_images + 1)
        if config.wandb is not None:
            self._wandb = _start_wandb(config, folder)

    def _cut(self, images: int) -> None:
        for name in ("metrics", "timing"):
            _cut(self._folder / f"{name}.jsonl", images)

    def log(self, images: int, metrics: dict[str, float], timing: dict[str, float]) -> None:
        """Write one line to each file."""
        if not self._first:
            return
        for name, numbers in (("metrics", metrics), ("timing", timing)):
            # JSON has no NaN: a number that is not finite is written as null.
            line = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
            self._append(name, {"images": images, **line})
            if self._tensorboard is not None:
                for key, value in numbers.items():
                    self._tensorboard.add_scalar(f"{name}/{key}", value, images)
        if self._wandb is not None:
            self._wandb.log({"images": images, **metrics, **timing})

    def take_back(self, images: int, seen: int, event: str) -> None:
        """Cut the lines beyond `images`, as the run goes on from there, and note why, at `seen` images."""
        if self._first:
            self._cut(images)
            self._append("events", {"images": seen, "event": event})

    def _append(self, name: str, line: dict[str, Any]) -> None:
        path = self._folder / f"{name}.jsonl"
        with naming(path), path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Flush and close what is open."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_loggers(config: TrainingConfig) -> None:
    """Check that the loggers a recipe asks for are there, before any work is done.

    Raises:
        UserError: wandb is asked for and not installed.
    """
    if config.wandb is None:
        return
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UserError("training.wandb: needs the extra: pip install 'vavae[wandb]'") from error


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
    """The run's id: drawn once and kept in its folder, since two folders may have the same name."""
    path = folder / "wandb_id.txt"
    if not path.exists():
        with written_whole(path) as temporary:
            temporary.write_text(f"{uuid.uuid4().hex[:12]}\n")
    return path.read_text().strip()


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """Lines of a run's `metrics.jsonl`, oldest first; empty where there is none."""
    return [values for _, values in _whole_lines(folder / "metrics.jsonl")]


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Lines of a log, and what they say, without what a kill or a fault of the disk left of others."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            whole = isinstance(values["images"], int)
        except (ValueError, KeyError, TypeError):
            continue
        if whole:
            yield line, values


def _cut(path: Path, images: int) -> None:
    if not path.exists():
        return
    kept = [line for line, values in _whole_lines(path) if values["images"] <= images]
    with written_whole(path) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
