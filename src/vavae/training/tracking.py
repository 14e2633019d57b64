"""What a run writes down: `metrics.jsonl`, TensorBoard events, the recipe and the versions used."""

import json
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vavae import __version__
from vavae.config import to_yaml

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
    (folder / "recipe.yaml").write_text(to_yaml(config))
    (folder / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n")


class Tracker:
    """Appends one line per log interval to `metrics.jsonl` and to TensorBoard.

    `metrics.jsonl` holds only what the recipe determines, so two equal runs write equal files; times and rates,
    which differ from machine to machine, go to `timing.jsonl`.

    Args:
        folder: The run folder.
        resumed_images: Lines beyond this count of images belong to work that is done again, and are cut.
        tensorboard: Whether to write TensorBoard events.
    """

    def __init__(self, folder: Path, resumed_images: int = 0, tensorboard: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: folder / f"{name}.jsonl" for name in ("metrics", "timing")}
        for path in self._files.values():
            _cut(path, resumed_images)
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_images or None)

    def log(self, images: int, metrics: dict[str, float], timing: dict[str, float]) -> None:
        """Write one line to each file."""
        for name, numbers in (("metrics", metrics), ("timing", timing)):
            # JSON has no NaN: a number that is not finite is written as null.
            line = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
            with self._files[name].open("a") as file:
                file.write(json.dumps({"images": images, **line}) + "\n")
            if self._writer is not None:
                for key, value in numbers.items():
                    self._writer.add_scalar(f"{name}/{key}", value, images)

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """Lines of a run's `metrics.jsonl`, oldest first; empty where there is none."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _cut(path: Path, images: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["images"] <= images:
                kept.append(line)
        except (ValueError, KeyError):  # a line that a kill left half-written
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(path)
