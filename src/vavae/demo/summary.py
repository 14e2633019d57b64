"""Headline, findings and notes of the demo, in words."""

import math
import platform
from collections.abc import Sequence

import torch

from vavae import assets
from vavae.config.image_size import Size, format_size
from vavae.data import ImageSource
from vavae.demo.contents import Headline, RunResult, StepTiming
from vavae.demo.plan import Config
from vavae.device import device_name, resolve_device, resolve_precision
from vavae.metrics import MetricRecord
from vavae.report.numbers import duration

_COSINE = "alignment: cosine after the best linear map"
_SAMPLES = "Fréchet distance of samples"


def headline(runs: Sequence[RunResult]) -> list[Headline]:
    """Return the five most telling numbers of the aligned run, with the unaligned one's if there is one."""
    rows = (
        ("PSNR of reconstructions", "PSNR", "dB", 2, "On test images; higher is better."),
        ("Linear probe on latents", "linear probe", "", 3, "Accuracy on test images; higher is better."),
        ("Alignment with the teacher", _COSINE, "", 3, "Cosine after the best linear map; higher is better."),
        ("LPIPS of reconstructions", "LPIPS", "", 3, "Perceptual difference; lower is better."),
        (_SAMPLES, _SAMPLES, "", 0, "Lower is better."),
    )
    first = runs[0]
    return [
        Headline(label, {run.name: _shown(run.value(name), digits) for run in runs}, unit, explanation)
        for label, name, unit, digits, explanation in rows
        if first.value(name) is not None
    ]


def _shown(value: float | None, digits: int) -> str:
    return "not measured" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def findings(
    config: Config, runs: Sequence[RunResult], floor: MetricRecord, steps: Sequence[StepTiming] = ()
) -> list[str]:
    """Return sentences about the numbers that were measured.

    Args:
        config: Options of the demo.
        runs: The aligned run, and the unaligned one if there is one.
        floor: Fréchet distance of real images.
        steps: Steps with their times.
    """
    first, *others = runs
    sentences = []
    for other in others:
        for name, words, unit, digits in (
            ("linear probe", "Linear probe on latents", "", 3),
            (_COSINE, "Cosine with the teacher after the best linear map", "", 3),
            ("PSNR", "PSNR", " dB", 2),
            (_SAMPLES, _SAMPLES, "", 0),
        ):
            a, b = first.value(name), other.value(name)
            if a is not None and b is not None:
                sentences.append(
                    f"{words}: {a:.{digits}f}{unit} {first.name}, {b:.{digits}f}{unit} {other.name} "
                    f"(difference {a - b:+z.{digits}f})."
                )
    sentences.append(
        f"The Fréchet distance between real training images, as many as samples, and the test images is "
        f"{floor.value:.0f}. A generator cannot be expected to reach a lower one."
    )
    trained = [step.seconds for step in steps if step.name == f"train the transformer on {first.name} latents"]
    took = f" in {duration(trained[0])}" if trained else ""
    sentences.append(
        f"The transformer saw {config.budget.generator_images:,} latents{took}; published models see eighty million "
        "and more. The Fréchet distance uses few samples and the network with which the aligned tokenizer was trained. "
        "It compares the runs roughly and cannot be compared with published FIDs."
    )
    return sentences


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
    for asset in assets.list_assets():
        if asset.name == config.teacher:
            note += f": {asset.description.rstrip('.')}. License: {asset.license}"
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
