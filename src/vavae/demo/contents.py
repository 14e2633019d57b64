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
    """Numbers and pictures of one tokenizer and the generator on its latents."""

    name: str  # "aligned" or "unaligned"
    records: Sequence[MetricRecord]
    reconstructions: NDArray[np.uint8]  # (N, H, W, 3) uint8, of the originals on the page, in their order
    latents: NDArray[np.floating]  # (N, h, w, C) float, of the same images
    # (M, 2) float, latents in the plane; None where there are too few for t-SNE.
    tsne_points: NDArray[np.floating] | None
    tsne_labels: NDArray[np.integer]  # (M,) integers
    samples: NDArray[np.uint8]  # (S, H, W, 3) uint8
    sample_labels: Sequence[int]  # (S,) integers; samples are shown in rows of equal label
    # (t, images (k, H, W, 3) uint8) in rising t: the expected result of k samples at time t.
    formation: Sequence[tuple[float, NDArray[np.uint8]]]
    tokenizer_log: Sequence[LogLine] = ()  # lines of the tokenizer's `metrics.jsonl`
    generator_log: Sequence[LogLine] = ()  # lines of the generator's `metrics.jsonl`


@dataclass(frozen=True, eq=False)
class Gallery:
    """Samples of a model with longer training."""

    note: str  # which model, and how it was trained
    samples: NDArray[np.uint8]  # (S, H, W, 3) uint8
    sample_labels: Sequence[int]  # (S,) integers into `class_names`
    class_names: Sequence[str]  # one per label
    guidance: str  # how the samples were guided


@dataclass(frozen=True, eq=False)
class DemoReport:
    """The contents of the page."""

    command: str  # the command line that makes this page again
    created: str
    machine: Mapping[str, str]  # for example {"processor": "...", "threads": "2"}
    versions: Mapping[str, str]
    images_note: str  # origin and license of the images
    teacher_note: str  # name, origin and license of the teacher
    guidance: str  # how the runs' samples were guided
    steps: Sequence[StepTiming]  # steps in order, with their times
    class_names: Sequence[str]  # one per label
    originals: NDArray[np.uint8]  # (N, H, W, 3) uint8
    original_labels: Sequence[int] | NDArray[np.integer]  # (N,) integers into `class_names`
    teacher_features: NDArray[np.floating]  # (N, h, w, D) float, of the originals
    runs: Sequence[RunResult]  # the aligned run, and the unaligned one where the two are compared
    reference: Sequence[MetricRecord]  # numbers that belong to no run
    findings: Sequence[str]  # about the numbers
    gallery: Gallery  # samples of a model with longer training
    quick: bool = False  # whether the run was too short for its numbers to mean anything
