"""What a report page shows: plain arrays, numbers and sentences, collected by whoever ran the work.

Nothing here knows models or run folders, so a page can be written from saved arrays long after the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vavae.report.curves import LogLine
from vavae.report.images import check_images, class_name


@dataclass(frozen=True)
class StepTiming:
    """How long one step of the work took.

    Attributes:
        name: What was done: "train the aligned tokenizer".
        seconds: Wall-clock time.
        detail: A few words on how much: "20,000 images, batch 32".
    """

    name: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Headline:
    """One number that a reader should take away.

    Attributes:
        label: What was measured.
        value: The number, or a short text.
        unit: "dB", "images/s"; printed after the value.
        explanation: One sentence below it.
        beside: The same number of other runs, by name of the run: shown below the value, in their colours.
        run: Name of the run that the value belongs to; "" where that need not be said.
    """

    label: str
    value: float | int | str
    unit: str = ""
    explanation: str = ""
    beside: Mapping[str, float | int | str] = field(default_factory=dict)
    run: str = ""


@dataclass(frozen=True)
class MetricRow:
    """One measured number and how it was measured.

    Attributes:
        name: The metric; rows of equal name are shown side by side, one column per run.
        run: Name of the run it belongs to, as in `RunReport.name`; "" for a number of no run.
        value: The number; None or NaN is shown as not measured.
        better: Which direction is better, or None where neither is.
        protocol: What the number depends on: sample count, network and its hash, sampler, steps, guidance, seed.
            Values are shown as text; nested mappings and sequences are allowed.
        explanation: What the metric says, in one sentence; None takes it from `vavae.report.glossary`.
    """

    name: str
    run: str
    value: float | int | None
    better: Literal["higher", "lower"] | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    explanation: str | None = None


@dataclass(frozen=True, eq=False)
class RunReport:
    """What one run made: a tokenizer, and a generator on its latents. What is None or empty is not shown.

    Attributes:
        name: "aligned", "unaligned": heads its columns and curves. The first run of a report is the one it is
            about, the others are what it is compared with.
        reconstructions: (N, H, W, 3) uint8, of the report's originals, in their order.
        latents: (N, h, w, C) float, of the same images.
        tokenizer_log: Lines of the tokenizer's `metrics.jsonl`; each has `images`.
        generator_log: Lines of the generator's `metrics.jsonl`.
        tsne_points: (M, 2) float, latents laid out by t-SNE.
        tsne_labels: (M,) integers into the report's class names; None where there are no labels.
        tsne_note: What a point is: "mean over positions of a test image's latent; perplexity 30, seed 0".
        samples: (S, H, W, 3) uint8; H and W may differ from the originals'.
        sample_labels: (S,) integers; samples are shown in rows of equal label. None for no labels.
        guidance: How the samples were guided: "guidance 4.0 for t in [0.125, 1]".
        formation: (t, images (k, H, W, 3) uint8) in rising t: the same k samples on their way from noise.
        formation_note: What these images are: "the state x_t, decoded".
    """

    name: str
    reconstructions: NDArray[np.uint8] | None = None
    latents: NDArray[np.floating] | None = None
    tokenizer_log: Sequence[LogLine] = ()
    generator_log: Sequence[LogLine] = ()
    tsne_points: NDArray[np.floating] | None = None
    tsne_labels: NDArray[np.integer] | Sequence[int] | None = None
    tsne_note: str = ""
    samples: NDArray[np.uint8] | None = None
    sample_labels: NDArray[np.integer] | Sequence[int] | None = None
    guidance: str = ""
    formation: Sequence[tuple[float, NDArray[np.uint8]]] = ()
    formation_note: str = ""

    def __post_init__(self) -> None:
        where = f"run {self.name!r}: "
        for name in ("reconstructions", "samples"):
            check_images(getattr(self, name), where + name)
        for t, images in self.formation:
            check_images(images, f"{where}formation at t = {t:g}")
        if len({images.shape for _, images in self.formation}) > 1:
            raise ValueError(f"{where}formation: every t must have the same number and size of images")
        _check_grid(self.latents, where + "latents")
        if self.tsne_points is not None and (self.tsne_points.ndim != 2 or self.tsne_points.shape[1] != 2):
            raise ValueError(f"{where}tsne_points must be (M, 2), not {self.tsne_points.shape}")
        _check_count(self.tsne_labels, self.tsne_points, where + "tsne_labels")
        _check_count(self.sample_labels, self.samples, where + "sample_labels")


@dataclass(frozen=True, eq=False)
class Gallery:
    """Samples of a model that was trained elsewhere, to show what longer training gives.

    Attributes:
        note: Which model, and how it was trained.
        samples: (S, H, W, 3) uint8.
        sample_labels: (S,) integers into `class_names`; samples are shown in rows of equal label. None for no labels.
        class_names: One per label.
        guidance: How the samples were guided.
    """

    note: str
    samples: NDArray[np.uint8]
    sample_labels: NDArray[np.integer] | Sequence[int] | None
    class_names: Sequence[str]
    guidance: str = ""

    def __post_init__(self) -> None:
        check_images(self.samples, "gallery: samples")
        _check_count(self.sample_labels, self.samples, "gallery: sample_labels")


@dataclass(frozen=True, eq=False)
class DemoReport:
    """Everything on the page of `vavae demo`.

    Attributes:
        title: Of the page.
        subtitle: One or two sentences: what was done, and with what result.
        command: The command line that makes this page again.
        created: When, as an ISO 8601 string.
        machine: What it ran on, as shown: {"processor": "...", "threads": "2"}.
        versions: Package to version.
        images_note: Where the images come from and under which licence.
        teacher_note: Which teacher, and from where.
        steps: What ran and for how long, in order.
        class_names: One per label.
        originals: (N, H, W, 3) uint8; N may be 0.
        original_labels: (N,) integers into `class_names`, or None.
        teacher_features: (N, h, w, D) float, of the originals, or None.
        runs: At least one; the first is the one the page is about.
        headline: Numbers at the top.
        metrics: The table of all numbers.
        findings: Sentences on what the numbers show, below the headline.
        gallery: Samples of a model trained for longer, or None.
    """

    title: str
    subtitle: str
    command: str
    created: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    images_note: str
    teacher_note: str
    steps: Sequence[StepTiming]
    class_names: Sequence[str]
    originals: NDArray[np.uint8]
    runs: Sequence[RunReport]
    original_labels: NDArray[np.integer] | Sequence[int] | None = None
    teacher_features: NDArray[np.floating] | None = None
    headline: Sequence[Headline] = ()
    metrics: Sequence[MetricRow] = ()
    findings: Sequence[str] = ()
    gallery: Gallery | None = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("a report needs at least one run")
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise ValueError(f"runs must have different names, not {names}")
        check_images(self.originals, "originals")
        _check_count(self.original_labels, self.originals, "original_labels")
        _check_grid(self.teacher_features, "teacher_features")
        _check_count(self.teacher_features, self.originals, "teacher_features")
        for run in self.runs:
            if run.reconstructions is not None and run.reconstructions.shape != self.originals.shape:
                raise ValueError(
                    f"run {run.name!r}: reconstructions {run.reconstructions.shape} of originals {self.originals.shape}"
                )
            _check_count(run.latents, self.originals, f"run {run.name!r}: latents")

    def class_name(self, label: int) -> str:
        """The name of a label; labels beyond the names get a number."""
        return class_name(label, self.class_names)


def _check_grid(features: NDArray | None, name: str) -> None:
    if features is not None and (features.ndim != 4 or 0 in features.shape[1:]):
        raise ValueError(f"{name}: must be (N, h, w, channels), not {features.shape}")


def _check_count(items: NDArray | Sequence[int] | None, of: NDArray | None, name: str) -> None:
    if items is not None and (of is None or len(items) != len(of)):
        raise ValueError(f"{name}: {len(items)} for {0 if of is None else len(of)} items")
