"""Headline, findings and notes of the demo, in words."""

import math
import platform
from collections.abc import Sequence

import torch

from vavae.config.image_size import Size, format_size
from vavae.data import ImageSource
from vavae.demo.contents import RunResult, StepTiming
from vavae.demo.plan import Config
from vavae.device import device_name, resolve_device, resolve_precision
from vavae.metrics import MetricRecord
from vavae.report.numbers import duration
from vavae.teachers.registry import TEACHERS

# Label, name of the record, unit, digits after the point, explanation.
_HEADLINE = (
    ("PSNR of reconstructions", "PSNR", "dB", 2, "On test images; higher is better."),
    ("Linear probe on latents", "linear probe", "", 3, "Accuracy on test images; higher is better."),
    (
        *("Alignment with the teacher", "alignment: cosine after the best linear map", "", 3),
        "Cosine after the best linear map; higher is better.",
    ),
    ("LPIPS of reconstructions", "LPIPS", "", 3, "Perceptual difference; lower is better."),
    (
        *("Fréchet distance of samples", "Fréchet distance of samples", "(real: {real})", 0),
        "Lower is better; as many real images as samples.",
    ),
)
Headline = tuple[str, dict[str, str], str, str]  # label, text of the number by run, unit, explanation


def headline(runs: Sequence[RunResult], reference: Sequence[MetricRecord]) -> list[Headline]:
    """Return the five most important numbers of the runs, as far as the first one has them.

    The Fréchet distance of real images, the last number of `reference`, is next to that of samples.
    """
    real = f"{reference[-1].value:.0f}"
    values = {run.name: {record.name: record.value for record in run.records} for run in runs}
    return [
        (
            label,
            {run: _text(found.get(name), digits) for run, found in values.items()},
            unit.format(real=real),
            explanation,
        )
        for label, name, unit, digits, explanation in _HEADLINE
        if name in values[runs[0].name]
    ]


def _text(value: float | None, digits: int) -> str:
    return "not measured" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def findings(config: Config, first: RunResult, floor: MetricRecord, steps: Sequence[StepTiming] = ()) -> list[str]:
    """Return sentences that help to read the numbers.

    Args:
        config: Options of the demo.
        first: The aligned run.
        floor: Fréchet distance of real images.
        steps: Steps with their times.
    """
    trained = [step.seconds for step in steps if step.name == f"train the transformer on {first.name} latents"]
    took = f" in {duration(trained[0])}" if trained else ""
    return [
        f"The Fréchet distance between real training images, as many as samples, and the test images is "
        f"{floor.value:.0f}. A generator cannot be expected to reach a lower one.",
        f"The transformer saw {config.budget.generator_images:,} latents{took}; published models see eighty million "
        "and more. The Fréchet distance uses few samples and the network with which the aligned tokenizer was trained. "
        "It compares the runs roughly and cannot be compared with published FIDs.",
        f"To take minutes on a CPU, the tokenizer saw only {config.budget.tokenizer_images:,} images, without a "
        "discriminator, and its perceptual loss uses AlexNet, not VGG-16 as published. LPIPS is measured with VGG-16.",
    ]


def images_note(config: Config, train: ImageSource, test: ImageSource) -> str:
    """Return origin, license and number of the images."""
    size = f"{len(train):,} images to train on and {len(test):,} to test on, {config.size} px."
    if config.images in ("demo", "cifar10"):
        part = "A class-balanced part of CIFAR-10" if config.images == "demo" else "CIFAR-10"
        return f"{part} (A. Krizhevsky, 2009; the data set states no license): {size}"
    return f"{train.name}: {size}"


def teacher_note(config: Config, input_size: Size) -> str:
    """Return name, origin and license of the teacher."""
    note = f"{config.teacher} at {format_size(input_size)} px"
    for spec in TEACHERS:
        if spec.name == config.teacher:
            note += f"{f': {spec.note}' if spec.note else ''}. License: {spec.license}"
    return note


def machine(config: Config) -> dict[str, str]:
    """Return system, device and precision of this process."""
    device, threads = resolve_device(config.device), torch.get_num_threads()
    on_cpu = f"CPU, {threads} thread{'s' if threads != 1 else ''}"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": on_cpu if device.type == "cpu" else device_name(device),
        "precision": resolve_precision("auto", device),
    }
