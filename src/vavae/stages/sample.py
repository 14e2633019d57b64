"""Sample images from a generator: PNGs, a grid, an npz."""

import io
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vavae.config import flat, to_plain
from vavae.config.image_size import Size, as_size, height_width
from vavae.data.readable import find_unreadable, image_error, read_rgb
from vavae.device import InferencePrecision, resolve_device
from vavae.errors import UserError
from vavae.io.files import check_not_foreign, read_json_object, written_whole
from vavae.models.compilation import compile_while_sampling
from vavae.models.sampling import SamplingOptions, check_count, choose_labels, draw, label_numbers
from vavae.models.weak_model import check_weak_model, open_generator
from vavae.progress import track
from vavae.report.images import image_grid
from vavae.training.compile import CompileOption
from vavae.training.parallel import held_folder, sharing_processes

_RECORD = "samples.json"
_REMEDY = "choose another --output"


@dataclass(frozen=True)
class Config(SamplingOptions):
    """Sample images from a generator. Under torchrun several processes share the images.

    Attributes:
        generator: Folder of a generator, its hub id, or a short name of `vavae models`; `demo` comes with the package
            (CIFAR-10's classes, 32 px).
        output: Folder for `000000.png`, `000001.png`, …, `grid.png` and `samples.json`. Images that it has already,
            drawn by the same weights with the same settings, are not drawn again.
        labels: The class of each image by number or name, as in `--labels cat,3`; a name with a comma needs quotes and
            brackets. If empty, `count` images are drawn with labels chosen by `label_protocol`.
        count: Number of images when `labels` is empty.
        label_protocol: `balanced` gives each class the same number; `random` draws labels, as published.
        seed: Seed of noise and random labels.
        batch_size: Images drawn at once. Images depend on it only with dopri5, which chooses its steps for all images
            together, and then in the last digits.
        size: Size of the images in pixels, one number or [height, width]; null is the size of the training images.
        npz: Also write `samples.npz` with `arr_0` (N, H, W, 3) uint8, for the ADM evaluator.
        grid_columns: Columns of `grid.png`; 0 writes none.
        guidance_scale: Guidance scale; 1 turns guidance off.
        weak_model: Folder, hub id or short name of a weaker generator on the same latents, for autoguidance.
        device: auto, cpu, cuda, mps, …
        precision: Compute precision of the transformer: auto, fp32, bf16, or tf32, which is float32 with TF32 products
            on GPUs, like the published samples, in the decoder too.
        compile: Compile the transformer's blocks with torch.compile: `true`, `false`, or `auto` if the work takes more
            than about five minutes on a CPU or one on an NVIDIA GPU. A line says what it brought.
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
    guidance_scale: float | None = None
    weak_model: str | None = None
    device: str = "auto"
    precision: InferencePrecision = "fp32"
    compile: CompileOption = "auto"

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", as_size("size", self.size))
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        check_count(self.count, 1)
        for key in ("count", "label_protocol"):
            if self.labels and getattr(self, key) != getattr(Config, key):
                raise UserError(
                    f"{key} must be left out with labels, which give one image each, got {getattr(self, key)}: repeat "
                    "a label for more images of it"
                )
        if self.grid_columns < 0:
            raise UserError(f"grid_columns must be at least 0, which writes no grid, got {self.grid_columns}")


def _note_numbers(labels: Sequence[int | str], class_names: Sequence[str]) -> None:
    """Print which numbers are also the name of another class: the command line does not tell 10 from "10"."""
    for label in dict.fromkeys(labels):
        if isinstance(label, int) and str(label) in class_names and class_names.index(str(label)) != label:
            print(f"labels: {label} is read as a number; the class named '{label}' has another number")


def run(config: Config) -> Path:
    """Draw the images and return their folder.

    Raises:
        UserError: The generator does not exist, cannot draw a label or size, or the folder has other files or samples
            of another generator or of other settings.
    """
    folder = Path(config.output)
    with sharing_processes() as world:
        generator = open_generator(config.generator, config.weak_model, resolve_device(config.device))
        sampling = generator.sampling.changed_by(config).for_latents(generator.shape_for(config.size))
        check_weak_model(config.weak_model, [sampling])
        _note_numbers(config.labels, generator.class_names)
        labels = label_numbers(config.labels, generator.class_names) or choose_labels(
            config.count, generator.num_classes, config.label_protocol, config.seed
        )
        generator.check(labels, config.size, sampling)  # before the folder is made: a mistake must not cost it
        settings = {
            "generator": config.generator,
            "fingerprint": generator.fingerprint(),
            "seed": config.seed,
            "label_protocol": "given" if config.labels else config.label_protocol,
            "sampling": to_plain(sampling),
            "weak_model": config.weak_model,
            "weak_model_fingerprint": generator.weak_model and generator.weak_model.fingerprint(),
            "precision": config.precision,
            "size": None if config.size is None else list(height_width(config.size)),
        }
        with held_folder(folder, world, lambda: check_not_foreign(folder, _has_record, f"{_RECORD} that lists it")):
            missing = world.once(lambda: _take_up(folder, settings, labels))

            # Each process draws every n-th missing image.
            mine = missing[world.rank :: world.size]
            evaluations = math.ceil(len(mine) / config.batch_size) * sampling.solver_steps
            compile_while_sampling(generator, config.compile, evaluations, world.say)
            done = (len(labels) - len(missing)) // world.size
            with track("sampling", done + len(mine), "images", done, None if world.first else io.StringIO()) as bar:
                for start in range(0, len(mine), config.batch_size):
                    indices = mine[start : start + config.batch_size]
                    chosen = [labels[i] for i in indices]
                    images = draw(generator, chosen, indices, config.seed, sampling, config.precision, config.size)
                    for i, pixels in zip(indices, images, strict=True):
                        with written_whole(_file(folder, i)) as temporary:
                            Image.fromarray(pixels).save(temporary, format="PNG")
                    bar.advance(len(indices))
            world.wait()
            if world.first:
                if config.grid_columns:
                    _write_grid(folder, len(labels), config.grid_columns)
                if config.npz:
                    _write_npz(folder, len(labels))
                else:  # one of an earlier call may have other samples
                    (folder / "samples.npz").unlink(missing_ok=True)
                print(f"samples: {folder}")
    return folder


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def _pixels(folder: Path, index: int) -> np.ndarray:
    return np.asarray(read_rgb(_file(folder, index)))


def _take_up(folder: Path, settings: dict[str, Any], labels: list[int]) -> list[int]:
    """Record settings and labels in the folder; return the numbers of the images that are missing or damaged.

    A record without images does not count, so that a first call that failed does not cost the folder.
    """
    present = {path.name for path in folder.glob("[0-9]*.png")}  # the images that evaluation takes for samples
    listed = labels
    if present:
        former = _read_record(folder / _RECORD)
        _check_settings(folder, former, settings)
        listed = max(labels, former["labels"], key=len)
        foreign = present - {_file(folder, i).name for i in range(len(former["labels"]))}
        if foreign:
            raise UserError(f"{folder / min(foreign)} is not listed in {_RECORD}; {_REMEDY}")
        if any(a != b for a, b in zip(labels, former["labels"], strict=False)):
            raise UserError(f"{folder} has samples with other labels; {_REMEDY}")
    with written_whole(folder / _RECORD) as temporary:
        temporary.write_text(json.dumps({**settings, "labels": listed}) + "\n")

    files = [_file(folder, i) for i in range(len(labels))]
    there = [file for file in files if file.name in present]
    states = [(str(file), (state := file.stat()).st_size, state.st_mtime_ns) for file in there]
    damaged = find_unreadable(len(there), lambda n: image_error(there[n]), lambda n: there[n], ("samples", states))
    for number, reason in damaged.items():
        print(f"{there[number]} is damaged, so it is drawn again ({reason})")
        present.remove(there[number].name)
    return [i for i, file in enumerate(files) if file.name not in present]


def _has_record(folder: Path) -> bool:
    """Return whether the folder has a record, which every call writes first; raise UserError for another file."""
    record = folder / _RECORD
    return record.exists() and bool(_read_record(record))


def _read_record(record: Path) -> dict[str, Any]:
    """Read `samples.json`."""
    try:
        former = read_json_object(record)
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from error
    if not isinstance(former.get("labels"), list) or "generator" not in former:
        raise UserError(f"{record} is not a record of samples; {_REMEDY}")
    return former


def _check_settings(folder: Path, former: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise UserError if the samples in a folder were drawn by other weights or with other settings."""
    # Weights, not names: training again leaves other weights under the same name, and a moved folder has the same ones.
    if former.get("fingerprint") != settings["fingerprint"]:
        raise UserError(
            f"{folder} has samples of another generator ({former['generator']}, which had other weights); {_REMEDY}"
        )
    before = flat(former)
    for key, value in flat(settings).items():
        if key not in ("generator", "weak_model") and before.get(key) != value:
            name = key.removeprefix("sampling.")
            raise UserError(f"{folder} has samples with another {name} ({before.get(key)}, not {value}); {_REMEDY}")


def _write_grid(folder: Path, count: int, columns: int) -> None:
    pictures = np.stack([_pixels(folder, i) for i in range(min(count, 16 * columns))])
    with written_whole(folder / "grid.png") as temporary:
        image_grid(pictures, columns=columns).save(temporary, format="PNG")


def _write_npz(folder: Path, count: int) -> None:
    """Write the images as `np.savez(arr_0=...)` does, one at a time: 50,000 images of 256 px are 10 GB."""
    shape = _pixels(folder, 0).shape
    with (
        written_whole(folder / "samples.npz") as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(member, header)
        for i in range(count):
            pixels = _pixels(folder, i)
            if pixels.shape != shape:
                raise UserError(f"{_file(folder, i)} has another size than the samples before it")
            member.write(pixels.tobytes())
