"""What the page of the demo shows: arrays, numbers and sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vavae.metrics import MetricRecord
from vavae.report.curves import LogLine


@dataclass(frozen=True)
class StepTiming:
    """How long one step of the demo took, with the amount of its work in words."""

    name: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True, eq=False)
class RunResult:
    """Numbers and pictures of one tokenizer and the generator on its latents.

    Attributes:
        name: "aligned" or "unaligned".
        records: All numbers.
        reconstructions: (N, H, W, 3) uint8, of the originals on the page, in their order.
        latents: (N, h, w, C) float, of the same images.
        tsne_points: (M, 2) float, latents in the plane; None where there are too few for t-SNE.
        tsne_labels: (M,) integers.
        samples: (S, H, W, 3) uint8.
        sample_labels: (S,) integers; samples are shown in rows of equal label.
        formation: (t, images (k, H, W, 3) uint8) in rising t: the expected result of k samples at time t.
        tokenizer_log: Lines of the tokenizer's `metrics.jsonl`.
        generator_log: Lines of the generator's `metrics.jsonl`.
    """

    name: str
    records: Sequence[MetricRecord]
    reconstructions: NDArray[np.uint8]
    latents: NDArray[np.floating]
    tsne_points: NDArray[np.floating] | None
    tsne_labels: NDArray[np.integer]
    samples: NDArray[np.uint8]
    sample_labels: Sequence[int]
    formation: Sequence[tuple[float, NDArray[np.uint8]]]
    tokenizer_log: Sequence[LogLine] = ()
    generator_log: Sequence[LogLine] = ()


@dataclass(frozen=True, eq=False)
class Gallery:
    """Samples of a model with longer training.

    Attributes:
        note: Which model, and how it was trained.
        samples: (S, H, W, 3) uint8.
        sample_labels: (S,) integers into `class_names`.
        class_names: One per label.
        guidance: How the samples were guided.
    """

    note: str
    samples: NDArray[np.uint8]
    sample_labels: Sequence[int]
    class_names: Sequence[str]
    guidance: str


@dataclass(frozen=True, eq=False)
class DemoReport:
    """The contents of the page.

    Attributes:
        command: The command line that makes this page again.
        created: When.
        machine: The machine, for example {"processor": "...", "threads": "2"}.
        versions: Package to version.
        images_note: Origin and license of the images.
        teacher_note: Name, origin and license of the teacher.
        guidance: How the runs' samples were guided.
        steps: Steps in order, with their times.
        class_names: One per label.
        originals: (N, H, W, 3) uint8.
        original_labels: (N,) integers into `class_names`.
        teacher_features: (N, h, w, D) float, of the originals.
        runs: The aligned run, and the unaligned one where the two are compared.
        reference: Numbers that belong to no run.
        findings: Sentences about the numbers.
        gallery: Samples of a model with longer training.
        quick: Whether the run was too short for its numbers to mean anything.
    """

    command: str
    created: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    images_note: str
    teacher_note: str
    guidance: str
    steps: Sequence[StepTiming]
    class_names: Sequence[str]
    originals: NDArray[np.uint8]
    original_labels: Sequence[int] | NDArray[np.integer]
    teacher_features: NDArray[np.floating]
    runs: Sequence[RunResult]
    reference: Sequence[MetricRecord]
    findings: Sequence[str]
    gallery: Gallery
    quick: bool = False
