"""Labels or counts -> PNGs, a grid, an npz."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vavae import counter
from vavae.config import to_plain
from vavae.data import to_uint8
from vavae.errors import UserError
from vavae.files import written_whole
from vavae.flow import SolverName
from vavae.pretrained import Generator, SamplingConfig
from vavae.progress import track
from vavae.report.images import image_grid
from vavae.stages.run_folder import exclusive
from vavae.training.precision import Precision, autocast, resolve_device, resolve_precision


@dataclass(frozen=True)
class Config:
    """Sample images from a generator.

    Attributes:
        generator: Folder of a generator, or its hub id; `demo` comes with the package (CIFAR-10's classes, 32 px).
        output: Folder for `000000.png`, `000001.png`, …, `grid.png` and `samples.json`. Images that are there
            already, drawn with the same settings, are not drawn again.
        labels: The class of each image; empty to draw `count` images with labels chosen by `label_protocol`.
        count: Number of images when `labels` is empty.
        label_protocol: `balanced` gives each class the same number; `random` draws labels, as published.
        seed: Seed of noise and random labels.
        batch_size: Images drawn at once; the images do not depend on it.
        size: Height and width of the images in pixels; null is the size the generator was trained on.
        npz: Also write `samples.npz` with `arr_0` (N, H, W, 3) uint8, for the ADM evaluator.
        grid_columns: Columns of `grid.png`; 0 writes none.
        solver: Integration method, euler_maruyama being stochastic; null is the generator's default, here and below.
        steps: Grid points of the solver.
        shift: Time shift.
        guidance_scale: Classifier-free guidance scale; 1 is off.
        guidance_start: Guidance acts from this time on (0 noise, 1 data).
        guidance_stop: Guidance acts up to this time.
        guidance_channels: Guide only this many leading channels, 0 guides all; the published FIDs use 3.
        device: auto, cpu, cuda, …
        precision: Compute precision of the transformer; the published samples are fp32.
    """

    generator: str = "demo"
    output: str = "runs/samples"
    labels: tuple[int, ...] = ()
    count: int = 16
    label_protocol: Literal["balanced", "random"] = "balanced"
    seed: int = 0
    batch_size: int = 64
    size: tuple[int, int] | None = None
    npz: bool = False
    grid_columns: int = 8
    solver: SolverName | None = None
    steps: int | None = None
    shift: float | None = None
    guidance_scale: float | None = None
    guidance_start: float | None = None
    guidance_stop: float | None = None
    guidance_channels: int | None = None
    device: str = "auto"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.count < 1:
            raise UserError(f"batch_size and count must be at least 1, not {self.batch_size} and {self.count}")
        if self.grid_columns < 0:
            raise UserError(f"grid_columns: {self.grid_columns} is negative; 0 writes no grid")

    def sampling(self, defaults: SamplingConfig) -> SamplingConfig:
        """The generator's defaults with this recipe's changes."""
        names = [f.name for f in dataclasses.fields(SamplingConfig)]
        return dataclasses.replace(defaults, **{n: getattr(self, n) for n in names if getattr(self, n) is not None})


def choose_labels(count: int, num_classes: int, protocol: str, seed: int) -> list[int]:
    """Labels of samples 0 … count − 1; each is a function of its index alone.

    Without classes every label is 0, which then means "no label".
    """
    if num_classes == 0:
        return [0] * count
    if protocol == "balanced":
        return [index % num_classes for index in range(count)]
    return counter.integers(seed, "label", range(count), num_classes).tolist()


def draw(
    generator: Generator,
    labels: Sequence[int],
    indices: Sequence[int],
    seed: int,
    sampling: SamplingConfig,
    precision: Precision = "fp32",
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Images of the given labels and sample numbers, (B, H, W, 3) uint8."""
    device = generator.tokenizer.device
    with autocast(resolve_precision(precision, device), device):
        latents = generator.latents(labels, seed, indices, sampling, size=size)
    return to_uint8(generator.tokenizer.decode(latents.float())).cpu().numpy()


def run(config: Config) -> Path:
    """Draw the images; returns the folder.

    Raises:
        UserError: No such generator, a label out of range, or a folder with samples of other settings.
    """
    folder = Path(config.output)
    generator = Generator.from_pretrained(config.generator, resolve_device(config.device))
    sampling = config.sampling(generator.sampling)
    labels = list(config.labels) or choose_labels(
        config.count, generator.num_classes, config.label_protocol, config.seed
    )
    protocol = {
        "generator": config.generator,
        "seed": config.seed,
        "label_protocol": "given" if config.labels else config.label_protocol,
        "sampling": to_plain(sampling),
        "precision": config.precision,
        "size": to_plain(config.size),
    }
    with exclusive(folder):
        _claim(folder, protocol, labels)
        waiting = [i for i in range(len(labels)) if not _file(folder, i).exists()]
        with track("sampling", len(labels), "images", start=len(labels) - len(waiting)) as bar:
            for start in range(0, len(waiting), config.batch_size):
                indices = waiting[start : start + config.batch_size]
                chosen = [labels[i] for i in indices]
                images = draw(generator, chosen, indices, config.seed, sampling, config.precision, config.size)
                for i, pixels in zip(indices, images, strict=True):
                    with written_whole(_file(folder, i)) as temporary:
                        Image.fromarray(pixels).save(temporary, format="PNG")
                bar.advance(len(indices))
        _collect(folder, config, len(labels))
    print(f"samples: {folder}")
    return folder


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _claim(folder: Path, protocol: dict[str, object], labels: list[int]) -> None:
    record = folder / "samples.json"
    if record.exists():
        former = json.loads(record.read_text())
        for key, value in protocol.items():
            if former.get(key) != value:
                raise UserError(f"{folder} holds samples with another {key}: choose another --output")
        shared = min(len(labels), len(former["labels"]))
        if former["labels"][:shared] != labels[:shared]:
            raise UserError(f"{folder} holds samples with other labels: choose another --output")
        labels = max(labels, former["labels"], key=len)
    record.write_text(json.dumps({**protocol, "labels": labels}) + "\n")


def _collect(folder: Path, config: Config, count: int) -> None:
    if config.grid_columns:
        shown = min(count, 16 * config.grid_columns)
        pictures = np.stack([np.asarray(Image.open(_file(folder, i))) for i in range(shown)])
        image_grid(pictures, columns=config.grid_columns).save(folder / "grid.png")
    if config.npz:
        everything = np.stack([np.asarray(Image.open(_file(folder, i))) for i in range(count)])
        with written_whole(folder / "samples.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, arr_0=everything)
