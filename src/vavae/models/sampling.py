"""Sample from a generator: settings, labels, and uint8 images in a given precision."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vavae import rng
from vavae.checkpoints.registry import guidance_in_words
from vavae.config import from_plain
from vavae.config.image_size import Size, as_size, format_size, height_width, scale_size
from vavae.data import to_uint8
from vavae.device import InferencePrecision, autocast, resolve_precision
from vavae.errors import RunError, UserError, errors_name
from vavae.flow import Guidance, PathName, Prediction, SampleCallback, SolverName
from vavae.flow.guidance import GuidanceKind
from vavae.flow.times import Shift, shift_in_numbers
from vavae.progress import track
from vavae.transformer import TransformerShape

if TYPE_CHECKING:
    from vavae.models.generator import Generator

OutputType = Literal["pil", "np", "pt"]
Labels = int | str | Sequence[int | str] | np.ndarray | Tensor

_TIMES = ("guidance_start", "guidance_stop", "end")
# Larger values have no use, and would overflow or take all memory.
_MOST_STEPS = 100_000
_MOST_SCALE = 10_000
_MOST_SAMPLES = 10_000_000


@dataclass(frozen=True)
class SamplingConfig:
    """How noise becomes latents: all settings. `SamplingConfig(steps=5)` is without guidance.

    To change single settings of a generator, give them to its call.

    Attributes:
        solver: Method that integrates the flow's differential equation; `euler_maruyama` solves the stochastic one, as
            SiT and REPA do.
        steps: Grid points of the solver, as published: 250 points are 249 Euler evaluations, or 250 of
            `euler_maruyama`.
        shift: Time shift s: grid t' = s·t / (1 + (s − 1)·t); 0 or 1 leaves the grid even. `dimension` is
            s = 1 / sqrt(C·h·w / 4096) for latents of that size (RAE).
        end: Last point of the grid before the shift; 1 is data, RAE stops at 0.999.
        guidance_scale: Guidance scale; 1 turns guidance off.
        guidance_start: Guidance acts from this time on (0 is noise, 1 is data).
        guidance_stop: Guidance acts up to this time.
        guidance_channels: How many leading channels are guided; 0 guides all. The published FIDs use 3.
        guidance_kind: `cfg` (classifier-free), `zero_star` (CFG-Zero*), `path_drop` for a transformer trained with
            SPRINT's routing, or `internal` for a transformer with an auxiliary head.
        zero_init_steps: Steps at the start in which `zero_star` does not move.

    Raises:
        UserError: Names the number that is out of range.
    """

    solver: SolverName = "euler"
    steps: int = 250
    shift: Shift = 0.3
    guidance_scale: float = 1.0
    guidance_start: float = 0.125
    guidance_stop: float = 1.0
    guidance_channels: int | None = None
    end: float = 1.0
    guidance_kind: GuidanceKind = "cfg"
    zero_init_steps: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int):
            raise UserError(f"steps must be a whole number, got {self.steps!r}")
        if self.steps < 2:
            raise UserError(f"steps must be at least 2 grid points, got {self.steps}")
        if self.steps > _MOST_STEPS:
            raise UserError(f"steps must be at most {_MOST_STEPS:,} grid points, got {self.steps:,}")
        numbers = {name: getattr(self, name) for name in ("shift", "guidance_scale", *_TIMES)}
        if self.shift == "dimension":
            del numbers["shift"]
        for name, value in numbers.items():
            if not isinstance(value, int | float):
                raise UserError(f"{name} must be a number, got {value!r}")
            if name not in _TIMES and not 0 <= value <= _MOST_SCALE:
                raise UserError(f"{name} must be a number from 0 to {_MOST_SCALE:,}, got {value}")
        if not 0 < self.end <= 1:
            raise UserError(f"end must be above 0 and at most 1, got {self.end}")
        if not 0 <= self.guidance_start <= self.guidance_stop <= 1:
            raise UserError(
                f"guidance_start, guidance_stop must be an interval within 0 (noise) to 1 (data), got "
                f"{self.guidance_start} to {self.guidance_stop}"
            )
        if self.guidance_kind not in get_args(GuidanceKind):
            raise UserError(
                f"guidance_kind must be one of {', '.join(get_args(GuidanceKind))}, got {self.guidance_kind!r}"
            )
        if not isinstance(self.zero_init_steps, int) or self.zero_init_steps < 0:
            raise UserError(f"zero_init_steps must be a whole number from 0 on, got {self.zero_init_steps}")
        channels = self.guidance_channels
        if channels is not None and (type(channels) is not int or channels < 0):
            raise UserError(f"guidance_channels must be a whole number from 0 (all) on, got {channels!r}")
        if self.guidance_channels == 0:
            # Null means an option that is not given, so all channels have the number 0, which records keep as null.
            object.__setattr__(self, "guidance_channels", None)
        if self.guidance is not None:
            self.guidance.check_steps(self.solver_steps, self.steps)

    def changed(self, **settings: "Unpack[SamplingSettings]") -> "SamplingConfig":
        """Return these settings with the given ones; None keeps the value, and 0 guidance_channels guide all.

        Raises:
            UserError: A name or a value is not one of a setting.
        """
        names = [field.name for field in fields(self)]
        if unknown := [name for name in settings if name not in names]:
            raise UserError(f"a setting of sampling must be one of {', '.join(names)}, got {unknown[0]}")
        given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        return replace(self, **given)

    def changed_by(self, options: object) -> "SamplingConfig":
        """Return these settings with the attributes of `options` that have their names and are not None."""
        return self.changed(**{field.name: getattr(options, field.name, None) for field in fields(self)})

    def for_latents(self, shape: Sequence[int]) -> "SamplingConfig":
        """Return these settings for latents of a shape (C, h, w), with the shift as a number."""
        return replace(self, shift=shift_in_numbers(self.shift, shape))

    def check_for(self, network: TransformerShape, weak_model: bool = False) -> None:
        """Check that a transformer, with a weak model or alone, can be guided by these settings.

        Raises:
            UserError: Guidance needs "no label", which was not trained, an auxiliary head, which the transformer does
                not have, routed blocks that were not dropped in training, or more channels than latents have; or
                internal or path-drop guidance has a weak model.
        """
        if self.guidance is not None:
            kind, internal = self.guidance_kind, self.guidance_kind == "internal"
            if kind in ("internal", "path_drop") and weak_model:
                raise UserError(f"guidance_kind must be cfg or zero_star with a weak_model, got {kind}")
            if internal and network.auxiliary_block is None:
                raise UserError(
                    "guidance_kind must not be internal for a transformer without an auxiliary head (auxiliary_block)"
                )
            if kind == "path_drop" and not network.routing.drops_paths:
                raise UserError(
                    "guidance_kind must not be path_drop for a transformer trained without routing.kind sprint and "
                    "routing.path_drop"
                )
            if not internal and not weak_model and network.label_dropout == 0:
                raise UserError(
                    "guidance_scale must be 1 for a transformer trained without label_dropout, got "
                    f"{self.guidance_scale:g}"
                )
        if (self.guidance_channels or 0) > network.latent_channels:
            raise UserError(
                f"guidance_channels must be at most {network.latent_channels}, got {self.guidance_channels}"
            )

    @property
    def solver_steps(self) -> int:
        """Steps of a solver with fixed steps."""
        return self.steps if self.solver == "euler_maruyama" else self.steps - 1

    @property
    def guidance(self) -> Guidance | None:
        """The guidance of these settings; None if the scale is 1."""
        if self.guidance_scale == 1.0:
            return None
        return Guidance(
            self.guidance_scale,
            self.guidance_start,
            self.guidance_stop,
            self.guidance_channels,
            self.guidance_kind,
            self.zero_init_steps,
        )

    def in_words(self, weak_model: str | None = None) -> str:
        """Return solver, steps, shift and guidance in words, with the name of a weak model."""
        end = "" if self.end == 1 else f" up to {self.end:g}"
        grid = f"{self.steps} {self.solver} grid points{end}, time shift {self.shift}"
        return f"{grid}, {self.guidance_in_words(weak_model)}"

    def guidance_in_words(self, weak_model: str | None = None) -> str:
        """Return kind, scale, channels and times of the guidance in words, with the name of a weak model."""
        return guidance_in_words(vars(self), weak_model)


class SamplingSettings(TypedDict, total=False):
    """Single settings of a `SamplingConfig` as keywords; one that is left out, or None, keeps its value."""

    # Type checkers need the list; a test compares it with `SamplingConfig`.
    solver: SolverName | None
    steps: int | None
    shift: Shift | None
    guidance_scale: float | None
    guidance_start: float | None
    guidance_stop: float | None
    guidance_channels: int | None
    end: float | None
    guidance_kind: GuidanceKind | None
    zero_init_steps: int | None


_OWN_VALUE = "null is the generator's own value, here and below. "
if TYPE_CHECKING:

    @dataclass(frozen=True)
    class SamplingOptions:
        """Base of commands that sample: options for all settings of `SamplingConfig` but `guidance_scale`.

        None keeps the generator's own value. `guidance_scale` is not here, since `vavae evaluate` takes several.
        """

else:
    SamplingOptions = make_dataclass(
        "SamplingOptions",
        [(f.name, f.type | None, field(default=None)) for f in fields(SamplingConfig) if f.name != "guidance_scale"],
        namespace={"__doc__": str(SamplingConfig.__doc__).replace("solver: ", f"solver: {_OWN_VALUE}", 1)},
        frozen=True,
        kw_only=True,
    )


def check_flow(path: object, prediction: object) -> None:
    """Raise UserError for a path or a prediction that does not exist."""
    for key, value, known in (("path", path, get_args(PathName)), ("prediction", prediction, get_args(Prediction))):
        if value not in known:
            raise UserError(f"{key} must be one of {', '.join(known)}, got {str(value)[:60]}")


def read_sampling(settings: object, path: object, prediction: object, source: str | Path) -> SamplingConfig:
    """Return the sampling settings in a model's file, after checking its path and prediction.

    Raises:
        UserError: A value is out of range or unknown; the message names the file and the key.
    """
    with errors_name(source):
        check_flow(path, prediction)
    if not isinstance(settings, dict):
        raise UserError(f"{source}: sampling must be a set of keys, got {str(settings)[:60]}")
    with errors_name(f"{source}: sampling"):
        return from_plain(SamplingConfig, settings)


def check_drawn(values: Tensor, indices: Sequence[int], sampling: SamplingConfig) -> None:
    """Check that samples are finite.

    Args:
        values: (B, …) latents or images.
        indices: Number of each sample.
        sampling: The settings.

    Raises:
        RunError: One is not finite; the message names it.
    """
    good = values.flatten(1).isfinite().all(1).tolist()
    if not all(good):
        raise RunError(
            f"sample {indices[good.index(False)]} is not finite with guidance_scale {sampling.guidance_scale:g} and "
            f"{sampling.steps} steps of {sampling.solver}: take a smaller guidance_scale, or more steps"
        )


def check_count(count: int, least: int) -> None:
    """Check a number of samples.

    Raises:
        UserError: It is too small, or so large that the labels would not fit into memory.
    """
    if not least <= count <= _MOST_SAMPLES:
        raise UserError(f"count must be from {least} to {_MOST_SAMPLES:,} samples, got {count:,}")


def label_numbers(labels: Labels, class_names: Sequence[str]) -> list[int]:
    """Return labels as numbers; the number of a name is its position in `class_names`.

    Args:
        labels: Numbers and names in a sequence, a tensor or an array, or a single one.
        class_names: Names of the classes; empty if they are unknown.

    Raises:
        UserError: A label is neither a whole number nor a name; the message lists similar names.
    """
    if isinstance(labels, Tensor | np.ndarray):
        labels = labels.tolist()
    return [_number(label, class_names) for label in (labels if isinstance(labels, list | tuple | range) else [labels])]


def _number(label: Any, class_names: Sequence[str]) -> int:
    if isinstance(label, str):
        if label in class_names:
            return class_names.index(label)
        if not class_names:
            raise UserError(f"labels must be numbers, since this generator has no class names, got {label!r}")
        near = difflib.get_close_matches(label.lower(), [name.lower() for name in class_names], cutoff=0.5)
        near += [name.lower() for name in class_names if label.lower() in name.lower()]
        found = [name for name in class_names if name.lower() in near]
        names = ", ".join(map(repr, (found or class_names)[:5]))
        hint = f"near are {names}" if found else f"the first are {names}"
        raise UserError(f"labels must be numbers or names of classes, got {label!r}; {hint}")
    number = label.item() if getattr(label, "ndim", None) == 0 else label
    if isinstance(number, bool) or not isinstance(number, int):
        raise UserError(f"labels must be numbers or names of classes, got {str(number)[:40]} ({type(number).__name__})")
    return number


def seed_of(seed: int, generator: torch.Generator | None) -> int:
    """Return the seed, or one drawn from a `torch.Generator`.

    Raises:
        UserError: Both are given.
    """
    if generator is None:
        return seed
    if not isinstance(generator, torch.Generator):
        raise UserError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if seed != 0:
        raise UserError(f"seed must be left out with generator, which draws it, got {seed}")
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


@contextmanager
def step_bar(sampling: SamplingConfig, callback: SampleCallback | None) -> Iterator[SampleCallback]:
    """Show a bar of the solver's steps; yield a callback that advances it and calls `callback`.

    Raises:
        UserError: The solver chooses its own steps.
    """
    if sampling.solver == "dopri5":
        raise UserError("progress must be False with the solver dopri5, which chooses its number of steps")
    still = 0 if sampling.guidance is None else sampling.guidance.still_steps
    with track("sampling", sampling.solver_steps, start=still) as bar:

        def on_step(step: int, t: float, x: Tensor, data: Tensor) -> None:
            if callback is not None:
                callback(step, t, x, data)
            bar.advance()

        yield on_step


def as_output(images: Tensor, output_type: OutputType) -> Any:
    """Return images (B, 3, H, W) in [-1, 1] in another form; see `Generator.__call__`.

    Raises:
        RunError: They are not finite, as of a decoder in float16 that overflows.
    """
    if not bool(images.isfinite().all()):
        raise RunError("the decoder's images are not finite: convert the weights to bfloat16 or float32")
    if output_type == "pt":
        return images
    pixels = to_uint8(images).cpu().numpy()
    return pixels if output_type == "np" else [Image.fromarray(image) for image in pixels]


def sample_indices(indices: Sequence[int] | np.ndarray | Tensor | None, count: int, seed: int) -> list[int]:
    """Return the numbers of `count` samples, 0, 1, 2, … if none are given, and check them and the seed.

    Raises:
        UserError: Seed or numbers are not whole numbers, or there are more or fewer numbers than samples.
    """
    if isinstance(indices, Tensor | np.ndarray):
        indices = indices.tolist()
    numbers = range(count) if indices is None else indices
    if not isinstance(numbers, Sequence):
        raise UserError(f"indices must be a list of numbers, got {str(numbers)[:40]}")
    if len(numbers) != count:
        raise UserError(f"indices must be one per label, got {len(numbers)} for {count} labels")
    for name, values in (("seed", [seed]), ("indices", numbers)):
        wrong = [value for value in values if not isinstance(value, int | np.integer)]
        if wrong:
            raise UserError(f"{name} must be a whole number, got {str(wrong[0])[:40]} ({type(wrong[0]).__name__})")
    if any(not -(2**63) <= number < 2**63 for number in numbers):
        raise UserError("indices must fit in 64 bits")
    return [int(number) for number in numbers]


def choose_labels(count: int, num_classes: int, protocol: str, seed: int) -> list[int]:
    """Return the labels of samples 0 … count − 1, each a function of its index.

    Without classes every label is 0, which then means "no label".
    """
    if num_classes == 0:
        return [0] * count
    if protocol == "balanced":
        return [index % num_classes for index in range(count)]
    return rng.integers(seed, "label", range(count), num_classes).tolist()


def draw(
    generator: "Generator",
    labels: Sequence[int],
    indices: Sequence[int],
    seed: int,
    sampling: SamplingConfig,
    precision: InferencePrecision = "fp32",
    size: Size | None = None,
) -> np.ndarray:
    """Draw images of the given labels and sample numbers, (B, H, W, 3) uint8, with the generator's weak model.

    Raises:
        RunError: A sample is not finite.
    """
    device = generator.device
    mode = resolve_precision(precision, device)
    with autocast(mode, device):
        latents = generator.with_sampling(sampling).latents(labels, seed, indices, size=size)
    with autocast("fp32" if mode == "bf16" else mode, device):
        images = generator.tokenizer.decode(latents.float())
    check_drawn(images, indices, sampling)
    return to_uint8(images).cpu().numpy()


def latent_size(size: Size, factor: int, patch_size: int, only: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of the latents of images of a size in pixels.

    Args:
        size: One number or (height, width).
        factor: Pixels per latent pixel, of the tokenizer.
        patch_size: Side of the transformer's patches.
        only: The one size of latents that the tokenizer has; None if it takes any.

    Raises:
        UserError: The size is not a multiple of `factor` times `patch_size`, or not the tokenizer's one.
    """
    unit, (height, width) = factor * patch_size, height_width(as_size("size", size))
    if min(height, width) < 1 or height % unit or width % unit:
        raise UserError(f"size must be a height and a width in multiples of {unit}, got {height}x{width}")
    if only not in (None, (height // factor, width // factor)):
        needed, got = format_size(scale_size(only, factor)), format_size((height, width))
        raise UserError(f"size must be {needed}, the only one of the tokenizer, got {got}")
    return height // factor, width // factor
