"""Labels or counts -> PNGs, a grid, an npz."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vavae.config import to_plain
from vavae.config.image_size import Size, as_size, height_width
from vavae.data.readable import find_unreadable, image_error, read_rgb
from vavae.device import InferencePrecision, resolve_device
from vavae.errors import UserError
from vavae.flow import SolverName
from vavae.io.files import check_not_foreign, read_json_object, written_whole
from vavae.models import Generator, SamplingConfig
from vavae.models.sampling import check_count, choose_labels, draw, label_numbers
from vavae.progress import track
from vavae.report.images import image_grid
from vavae.stages.run_folder import exclusive
from vavae.training.parallel import sharing_processes

_RECORD = "samples.json"


@dataclass(frozen=True)
class Config:
    """Sample images from a generator. Under torchrun several processes share the images.

    Attributes:
        generator: Folder of a generator, or its hub id; `demo` comes with the package (CIFAR-10's classes, 32 px).
        output: Folder for `000000.png`, `000001.png`, …, `grid.png` and `samples.json`. Images that are there
            already, drawn by the same weights with the same settings, are not drawn again.
        labels: The class of each image, its number or its name, as in `--labels cat,3`; a name that holds a comma
            needs quotes and brackets. Empty to draw `count` images with labels chosen by `label_protocol`.
        count: Number of images when `labels` is empty.
        label_protocol: `balanced` gives each class the same number; `random` draws labels, as published.
        seed: Seed of noise and random labels.
        batch_size: Images drawn at once. Only dopri5, which chooses its steps for all of them together, makes images
            depend on it, in the last digits.
        size: Of the images in pixels, one number or [height, width]; null is that the generator was trained on.
        npz: Also write `samples.npz` with `arr_0` (N, H, W, 3) uint8, for the ADM evaluator.
        grid_columns: Columns of `grid.png`; 0 writes none.
        solver: Integration method, euler_maruyama being stochastic; null is the generator's default, here and below.
        steps: Grid points of the solver.
        shift: Time shift.
        guidance_scale: Classifier-free guidance scale; 1 is off.
        guidance_start: Guidance acts from this time on (0 noise, 1 data).
        guidance_stop: Guidance acts up to this time.
        guidance_channels: Guide only this many leading channels, 0 guides all; the published FIDs use 3.
        device: auto, cpu, cuda, mps, …
        precision: Compute precision of the transformer: auto, fp32, bf16, or tf32, which is float32 with TF32 products
            on GPUs, as the published samples; the decoder then has them too.
    """

    generator: str = "demo"
    output: str = "runs/samples"
    labels: tuple[int | str, ...] = ()
    count: int = 16
    label_protocol: Literal["balanced", "random"] = "balanced"
    seed: int = 0
    batch_size: int = 64
    size: Size | None = None
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
    precision: InferencePrecision = "fp32"

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", as_size("size", self.size))
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        check_count(self.count, 1)
        if self.grid_columns < 0:
            raise UserError(f"grid_columns: {self.grid_columns} is negative; 0 writes no grid")

    def sampling(self, defaults: SamplingConfig) -> SamplingConfig:
        """The generator's defaults with this recipe's changes."""
        names = [f.name for f in dataclasses.fields(SamplingConfig)]
        return dataclasses.replace(defaults, **{n: getattr(self, n) for n in names if getattr(self, n) is not None})


def _note_numbers(labels: Sequence[int | str], class_names: Sequence[str]) -> None:
    """Print which numbers are also the name of another class: the command line does not tell 10 from "10"."""
    for label in dict.fromkeys(labels):
        if isinstance(label, int) and str(label) in class_names and class_names.index(str(label)) != label:
            print(f"labels: {label} is taken as a number; the class named '{label}' has another")


def run(config: Config) -> Path:
    """Draw the images; returns the folder.

    Raises:
        UserError: No such generator, a label or size it cannot draw, or a folder with samples of another generator
            or of other settings, or with files of somebody else.
    """
    folder = Path(config.output)
    with sharing_processes() as together, ExitStack() as held:
        generator = Generator.from_pretrained(config.generator, resolve_device(config.device))
        sampling = config.sampling(generator.sampling)
        _note_numbers(config.labels, generator.class_names)
        labels = label_numbers(config.labels, generator.class_names) or choose_labels(
            config.count, generator.num_classes, config.label_protocol, config.seed
        )
        generator.check(labels, config.size, sampling)  # before the folder is claimed: a mistake must not cost it
        protocol = {
            "generator": config.generator,
            "fingerprint": generator.fingerprint(),
            "seed": config.seed,
            "label_protocol": "given" if config.labels else config.label_protocol,
            "sampling": to_plain(sampling),
            "precision": config.precision,
            "size": None if config.size is None else list(height_width(config.size)),
        }

        def claim() -> list[int]:
            check_not_foreign(folder, _has_record, f"{_RECORD} that says whose")
            held.enter_context(exclusive(folder))
            return _claim(folder, protocol, labels)

        waiting = together.once(claim)
        mine = waiting[together.rank :: together.size]
        done = (len(labels) - len(waiting)) // together.size
        stream = None if together.first else io.StringIO()
        with track("sampling", done + len(mine), "images", start=done, stream=stream) as bar:
            for start in range(0, len(mine), config.batch_size):
                indices = mine[start : start + config.batch_size]
                chosen = [labels[i] for i in indices]
                images = draw(generator, chosen, indices, config.seed, sampling, config.precision, config.size)
                for i, pixels in zip(indices, images, strict=True):
                    with written_whole(_file(folder, i)) as temporary:
                        Image.fromarray(pixels).save(temporary, format="PNG")
                bar.advance(len(indices))
        together.wait()  # now all images are there
        if together.first:
            _collect(folder, config, len(labels))
            print(f"samples: {folder}")
    return folder


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _claim(folder: Path, protocol: dict[str, Any], labels: list[int]) -> list[int]:
    """Make `folder` that of these samples; returns the numbers of those that are not there yet, or damaged.

    A record without images counts for nothing, so that a first call that failed does not cost the folder.

    Raises:
        UserError: It holds other images, or its record cannot be read.
    """
    record = folder / _RECORD
    present = {path.name for path in folder.glob("[0-9]*.png")}  # what evaluation takes for samples
    if present:
        former = _read_record(record)
        _check_same(folder, former, protocol)
        told = former["labels"]
        strangers = present - {_file(folder, i).name for i in range(len(told))}
        if strangers:
            raise UserError(
                f"{folder / min(strangers)}: no sample that {record.name} tells of; choose another --output"
            )
        shared = min(len(labels), len(told))
        if told[:shared] != labels[:shared]:
            raise UserError(f"{folder} holds samples with other labels: choose another --output")
        told = max(labels, told, key=len)
    else:
        told = labels
    with written_whole(record) as temporary:
        temporary.write_text(json.dumps({**protocol, "labels": told}) + "\n")
    files = [_file(folder, i) for i in range(len(labels))]
    there = [file for file in files if file.name in present]
    kept = set(there) - _damaged(there)
    return [i for i, file in enumerate(files) if file not in kept]


def _damaged(files: Sequence[Path]) -> set[Path]:
    """Those of the images that cannot be read, by a fault of the disk, say; told of, as they are drawn again."""
    states = [(str(file), (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    reasons = find_unreadable(len(files), lambda n: image_error(files[n]), lambda n: files[n], ("samples", states))
    for number, reason in reasons.items():
        print(f"{files[number]}: damaged, so it is drawn again ({reason})")
    return {files[number] for number in reasons}


def _has_record(folder: Path) -> bool:
    """Whether a call wrote its record there, which it does first; refuses somebody else's of that name."""
    record = folder / _RECORD
    return record.exists() and bool(_read_record(record))


def _read_record(record: Path) -> dict[str, Any]:
    """What `samples.json` says of the images beside it."""
    try:
        former = read_json_object(record)
    except UserError as error:
        raise UserError(f"{error}; choose another --output") from error
    if not isinstance(former.get("labels"), list) or "generator" not in former:
        raise UserError(f"{record}: is no record of samples; choose another --output")
    return former


def _check_same(folder: Path, former: dict[str, Any], protocol: dict[str, Any]) -> None:
    # Not by name: training again leaves other weights under the same name, and a folder that was moved holds the same.
    if "fingerprint" not in former:
        # Nothing tells whether its generator is this one, and a set drawn by two is no one's.
        raise UserError(
            f"{folder} holds samples of a former version, which did not record the generator's fingerprint: "
            "choose another --output"
        )
    if former["fingerprint"] != protocol["fingerprint"]:
        raise UserError(
            f"{folder} holds samples of another generator ({former.get('generator')} as it was then, by its weights): "
            "choose another --output"
        )
    before, now = (_settings(values) for values in (former, protocol))
    for key, value in now.items():
        if key not in before or before[key] != value:
            raise UserError(
                f"{folder} holds samples with another {key} ({before.get(key)}, not {value}): choose another --output"
            )


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings in a record, those of sampling by their own names."""
    sampling = values.get("sampling")
    rest = {
        key: value for key, value in values.items() if key not in ("generator", "fingerprint", "labels", "sampling")
    }
    return {**rest, **(sampling if isinstance(sampling, dict) else {})}


def _collect(folder: Path, config: Config, count: int) -> None:
    if config.grid_columns:
        shown = min(count, 16 * config.grid_columns)
        pictures = np.stack([np.asarray(read_rgb(_file(folder, i))) for i in range(shown)])
        with written_whole(folder / "grid.png") as temporary:
            image_grid(pictures, columns=config.grid_columns).save(temporary, format="PNG")
    if config.npz:
        _write_npz(folder, count)


def _write_npz(folder: Path, count: int) -> None:
    """The images as `np.savez(arr_0=...)` writes them, one after the other: 50,000 of 256 px are 10 GB."""
    shape = np.asarray(read_rgb(_file(folder, 0))).shape
    with (
        written_whole(folder / "samples.npz") as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(member, header)
        for i in range(count):
            pixels = np.asarray(read_rgb(_file(folder, i)))
            if pixels.shape != shape:
                raise UserError(f"{_file(folder, i)}: is of another size than the samples before it")
            member.write(pixels.tobytes())
