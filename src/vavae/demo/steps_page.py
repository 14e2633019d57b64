"""The demo's page, and the sentences and numbers on it."""

import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from vavae import assets
from vavae.config.image_size import format_size
from vavae.demo.contents import DemoReport, Gallery, Headline, MetricRow, RunReport, StepTiming
from vavae.demo.measure import Measured, ReferenceImages, guidance_said
from vavae.demo.page import write_page
from vavae.demo.plan import SAMPLING, Plan
from vavae.device import device_name, resolve_device, resolve_precision
from vavae.metrics import MetricRecord
from vavae.report.numbers import duration
from vavae.training.run_log import versions

_BETTER: dict[bool | None, Literal["higher", "lower"] | None] = {True: "higher", False: "lower", None: None}
_COSINE = "alignment: cosine after the best linear map"


def _shown(value: float | None, digits: int) -> str:
    return "not measured" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def headline(runs: Sequence[Measured]) -> list[Headline]:
    """The five most telling numbers of the aligned run, beside the unaligned one's where there is one."""
    rows = (
        ("PSNR of reconstructions", "PSNR", "dB", 2, "On test images; higher is better."),
        ("Linear probe on latents", "linear probe", "", 3, "Accuracy on test images; higher is better."),
        ("Alignment with the teacher", _COSINE, "", 3, "Cosine after the best linear map; higher is better."),
        ("LPIPS of reconstructions", "LPIPS", "", 3, "Perceptual difference; lower is better."),
        ("Fréchet distance of samples", "Fréchet distance of samples", "", 0, "Lower is better."),
    )  # fmt: skip
    first, *others = runs
    return [
        Headline(
            label,
            _shown(first.value(name), digits),
            unit,
            explanation,
            {other.name: _shown(other.value(name), digits) for other in others},
            first.name if others else "",
        )
        for label, name, unit, digits, explanation in rows
        if first.value(name) is not None
    ]


def findings(plan: Plan, reference: ReferenceImages, runs: Sequence[Measured], seconds: float | None) -> list[str]:
    """What the numbers say, sentence by sentence; nothing that was not measured.

    Args:
        plan: What was asked for.
        reference: What the runs are measured against.
        runs: The aligned run, and perhaps others.
        seconds: How long the first run's transformer was trained; None where that is not known.
    """
    first, *others = runs
    said = []
    for other in others:
        for name, words, unit, digits in (
            ("linear probe", "Linear probe on latents", "", 3),
            (_COSINE, "Cosine with the teacher after the best linear map", "", 3),
            ("PSNR", "PSNR", " dB", 2),
            ("Fréchet distance of samples", "Fréchet distance of samples", "", 0),
        ):
            a, b = first.value(name), other.value(name)
            if a is not None and b is not None:
                said.append(
                    f"{words}: {a:.{digits}f}{unit} {first.name}, {b:.{digits}f}{unit} {other.name} "
                    f"(difference {a - b:+z.{digits}f})."
                )
    floor = reference.records[0]
    said.append(
        f"Real training images, as many as samples, are {floor.value:.0f} from the test images in the same Fréchet "
        "distance: what no generator can be expected to beat."
    )
    took = f" in {duration(seconds)}" if seconds is not None else ""
    said.append(
        f"The transformer saw {plan.budget.generator_images:,} latents{took}; published models see eighty "
        "million and more. The Fréchet distance uses few samples and the network that the aligned tokenizer was "
        "trained with, so it compares runs roughly and must not be set beside published FIDs."
    )
    return said


def metric_rows(reference: ReferenceImages, runs: Sequence[Measured]) -> list[MetricRow]:
    """Every number with its protocol."""

    def row(record: MetricRecord, run: str) -> MetricRow:
        better = _BETTER[record.higher_is_better]
        name = f"{record.name} ({record.unit})" if record.unit else record.name
        protocol = record.to_dict()["protocol"]
        return MetricRow(name, run, record.value, better, protocol)

    rows = [row(record, run.name) for run in runs for record in run.records]
    return rows + [row(record, "") for record in reference.records]


def _run_report(run: Measured) -> RunReport:
    return RunReport(
        name=run.name,
        reconstructions=run.reconstructions,
        latents=run.latents,
        tokenizer_log=run.tokenizer_log,
        generator_log=run.generator_log,
        tsne_points=run.tsne,
        tsne_labels=run.tsne_labels if run.tsne is not None else None,
        tsne_note="a point is one random position of a test image's latent; perplexity 30, seed 42",
        samples=run.samples,
        sample_labels=run.sample_labels,
        guidance=guidance_said(SAMPLING),
        formation=run.formation,
        formation_note="what the network expects the finished image to be, decoded",
    )


def _images_note(plan: Plan, reference: ReferenceImages) -> str:
    size = f"{len(reference.train):,} images to train on and {len(reference.test):,} to test on, {plan.size} px."
    if plan.images in ("demo", "cifar10"):
        part = "A class-balanced part of CIFAR-10" if plan.images == "demo" else "CIFAR-10"
        return f"{part} (A. Krizhevsky, 2009; the data set states no licence): {size}"
    return f"{reference.train.name}: {size}"


def _teacher_note(plan: Plan, reference: ReferenceImages) -> str:
    known = {state.name: state for state in assets.list_assets()}
    said = f"{plan.teacher} at {format_size(reference.teacher.input_size)} px"
    if plan.teacher in known:
        said += f": {known[plan.teacher].description.rstrip('.')}. Licence: {known[plan.teacher].licence}"
    return said


def _threads() -> str:
    """What the process computes with, which may be less than the machine has."""
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count != 1 else ''}"


def write_report(
    path: Path,
    plan: Plan,
    command: str,
    steps: Sequence[StepTiming],
    reference: ReferenceImages,
    runs: Sequence[Measured],
    gallery: Gallery | None = None,
) -> None:
    """Write the page."""
    shown = reference.shown
    device = resolve_device(plan.device)
    found = versions()
    machine = {
        "system": f"{platform.system()} {found['machine']}",
        "device": f"CPU, {_threads()}" if device.type == "cpu" else device_name(device),
        "precision": resolve_precision("auto", device),
    }
    trained = [step.seconds for step in steps if step.name == f"train the transformer on {runs[0].name} latents"]
    compared = ", beside one without alignment" if len(runs) > 1 else ""
    report = DemoReport(
        title="vavae demo",
        subtitle=(
            f"A visual tokenizer aligned with a vision foundation model{compared}, and a latent diffusion transformer "
            "on its latents: trained, sampled and measured on this machine."
        ),
        command=command,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        machine=machine,
        versions={name: version for name, version in found.items() if name not in ("machine", "gpu", "cuda")},
        images_note=_images_note(plan, reference),
        teacher_note=_teacher_note(plan, reference),
        steps=tuple(steps),
        class_names=reference.train.class_names,
        originals=reference.pixels[shown].numpy(),
        original_labels=reference.labels[shown].numpy(),
        teacher_features=reference.features[shown].permute(0, 2, 3, 1).numpy(),
        runs=tuple(_run_report(run) for run in runs),
        headline=tuple(headline(runs)),
        metrics=tuple(metric_rows(reference, runs)),
        findings=tuple(findings(plan, reference, runs, next(iter(trained), None))),
        gallery=gallery,
    )
    write_page(path, report)
