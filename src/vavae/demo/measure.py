"""What the demo measures, and the pictures it takes, of one tokenizer with its generator."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vavae.checkpoints.folder import SHIPPED
from vavae.data import ImageSource, to_uint8
from vavae.data.images import Selection, class_balanced
from vavae.demo.contents import Gallery, LogLine
from vavae.demo.plan import SAMPLING, Plan
from vavae.device import autocast, resolve_device, resolve_precision
from vavae.evaluation import records as evaluate
from vavae.metrics import (
    FeatureNetwork,
    MeasurementProtocol,
    MetricRecord,
    RunningMoments,
    feature_moments,
    tsne_points,
)
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.models.sampling import choose_labels, draw
from vavae.teachers import Teacher
from vavae.training.run_log import read_metrics

_BATCH = 100
SHOWN = 10  # originals, and classes of samples
FORMING = 3  # samples whose formation is shown


@dataclass(frozen=True, eq=False)
class ReferenceImages:
    """What both runs are measured against.

    Attributes:
        train: Training images.
        test: Test images.
        pixels: (N, H, W, 3) uint8 test images.
        labels: (N,) their labels.
        shown: Indices of the test images on the page.
        features: (N, D, h, w) teacher features of the test images on the latent grid.
        pooled: (N, D) pooled teacher features of the test images.
        teacher: The teacher.
        network: The teacher as a feature network for Fréchet distances.
        moments: Of the test images' features.
        records: Numbers that belong to no run.
    """

    train: ImageSource
    test: ImageSource
    pixels: Tensor
    labels: Tensor
    shown: list[int]
    features: Tensor
    pooled: Tensor
    teacher: Teacher
    network: FeatureNetwork
    moments: RunningMoments
    records: tuple[MetricRecord, ...]

    @classmethod
    def of(cls, plan: Plan, train: ImageSource, test: ImageSource, teacher: Teacher) -> Self:
        """Compute the reference; the floor of the Fréchet distance is that of as many training images as samples."""
        pixels = torch.cat(list(evaluate.batched_pixels(test, plan.size, _BATCH, "test images")))
        side = plan.size // 4
        features, pooled = evaluate.teacher_features(teacher, pixels, (side, side), _BATCH)
        network = evaluate.teacher_network(teacher)
        moments = RunningMoments(pooled.shape[1])
        moments.update(pooled)
        chosen = Selection(train, np.array(class_balanced(plan.budget.samples, train)))
        real = feature_moments(network, evaluate.batched_pixels(chosen, plan.size, _BATCH, "training images"))
        protocol = MeasurementProtocol(
            samples=real.count, image_size=plan.size, reference=f"{test.name} (test)", split=f"{train.name} (train)"
        )
        floor = evaluate.frechet_record("Fréchet distance of real training images", network, real, moments, protocol)
        labels = torch.tensor([test.label(i) for i in range(len(test))])
        return cls(
            train,
            test,
            pixels,
            labels,
            class_balanced(SHOWN, test),
            features,
            pooled,
            teacher,
            network,
            moments,
            (floor,),
        )


@dataclass(frozen=True, eq=False)
class Measured:
    """One run: numbers and pictures.

    Attributes:
        name: aligned or unaligned.
        records: All numbers.
        reconstructions: (n, H, W, 3) uint8 of the shown test images.
        latents: (n, h, w, C) of the same.
        tsne: (M, 2) latents laid out.
        tsne_labels: (M,) their labels.
        samples: (S, H, W, 3) uint8 guided samples.
        sample_labels: (S,) their labels.
        formation: (t, (k, H, W, 3) uint8) what the network expects the samples to become.
        tokenizer_log: Lines of the tokenizer's log.
        generator_log: Lines of the transformer's log.
    """

    name: str
    records: tuple[MetricRecord, ...]
    reconstructions: np.ndarray
    latents: np.ndarray
    tsne: np.ndarray | None
    tsne_labels: np.ndarray
    samples: np.ndarray
    sample_labels: np.ndarray
    formation: list[tuple[float, np.ndarray]]
    tokenizer_log: Sequence[LogLine]
    generator_log: Sequence[LogLine]

    def value(self, name: str) -> float | None:
        """The number called `name`, or None."""
        return next((record.value for record in self.records if record.name == name), None)


def measure(plan: Plan, name: str, tokenizer: Tokenizer, generator: Generator, reference: ReferenceImages) -> Measured:
    """Measure one run and take its pictures."""
    folder = plan.run_folder(name)
    device = tokenizer.device
    protocol = MeasurementProtocol(
        samples=len(reference.test),
        split=f"{reference.test.name} (test)",
        dtype=resolve_precision("auto", device),
        posterior="mean",
        image_size=plan.size,
        checkpoint=str(folder / "tokenizer" / "tokenizer"),
    )
    test = evaluate.encode_all(tokenizer, reference.test, plan.size, _BATCH, "auto")
    train = evaluate.encode_all(tokenizer, reference.train, plan.size, _BATCH, "auto")
    rebuilt = evaluate.reconstruct_all(tokenizer, test.latents, _BATCH, "auto")
    records = evaluate.reconstruction_records(test.pixels, rebuilt, protocol, _BATCH)
    remade = feature_moments(reference.network, to_uint8(rebuilt).split(_BATCH))
    records.append(
        evaluate.frechet_record(
            "Fréchet distance of reconstructions", reference.network, remade, reference.moments, protocol
        )
    )
    records += evaluate.probe_records(train, test, protocol)
    records += evaluate.alignment_records(
        test.latents, reference.features, reference.pooled, reference.teacher, protocol
    )
    tsne, tsne_labels, uniformity = _uniformity(plan, test, protocol)
    records += uniformity
    records.append(_generation_record(plan, generator, reference, str(folder / "generator" / "generator")))
    labels = _shown_labels(plan, generator)
    shown = draw(generator, labels, range(len(labels)), plan.seed, SAMPLING, "auto")
    return Measured(
        name=name,
        records=tuple(records),
        reconstructions=to_uint8(rebuilt[reference.shown]).numpy(),
        latents=test.latents[reference.shown].permute(0, 2, 3, 1).numpy(),
        tsne=tsne,
        tsne_labels=tsne_labels,
        samples=shown,
        sample_labels=np.array(labels),
        formation=_formation(plan, generator, labels),
        tokenizer_log=read_metrics(folder / "tokenizer"),
        generator_log=read_metrics(folder / "generator"),
    )


def _uniformity(
    plan: Plan, test: evaluate.EncodedImages, protocol: MeasurementProtocol
) -> tuple[np.ndarray | None, np.ndarray, list[MetricRecord]]:
    count = min(plan.budget.tsne_points, len(test.latents))
    if count <= 30:  # t-SNE's perplexity
        return None, np.zeros(0, dtype=np.int64), []
    points = tsne_points(test.latents[:count], 42)
    records = evaluate.uniformity_records(points, replace(protocol, samples=count, seed=42))
    return points, test.labels[:count].numpy(), records


def _generation_record(plan: Plan, generator: Generator, reference: ReferenceImages, checkpoint: str) -> MetricRecord:
    count = plan.budget.samples
    labels = choose_labels(count, generator.num_classes, "balanced", plan.seed)
    drawn = evaluate.drawn_pixels(generator, labels, plan.seed, SAMPLING, _BATCH, "auto")
    protocol = replace(
        evaluate.sampling_protocol(SAMPLING, count, plan.seed, "balanced"),
        dtype=resolve_precision("auto", generator.tokenizer.device),
        image_size=plan.size,
        reference=f"{reference.test.name} (test)",
        checkpoint=checkpoint,
    )
    moments = feature_moments(reference.network, drawn)
    return evaluate.frechet_record(
        "Fréchet distance of samples", reference.network, moments, reference.moments, protocol
    )


def shipped_gallery(plan: Plan) -> Gallery:
    """Samples of the model that comes with the package."""
    generator = Generator.from_pretrained(SHIPPED["demo"], resolve_device(plan.device))
    labels = _shown_labels(plan, generator)
    samples = draw(generator, labels, range(len(labels)), plan.seed, generator.sampling, "auto")
    seen = [model.provenance["images_seen"] for model in (generator.tokenizer, generator)]
    note = (
        "The model that comes with the package, from which “vavae sample” draws: its tokenizer saw "
        f"{seen[0]:,} images, its transformer {seen[1]:,} latents. Those above saw "
        f"{plan.budget.tokenizer_images:,} and {plan.budget.generator_images:,}."
    )
    return Gallery(note, samples, labels, generator.class_names, guidance_said(generator.sampling))


def guidance_said(sampling: SamplingConfig) -> str:
    """How samples are guided and drawn, in words."""
    interval = f"t in [{sampling.guidance_start:g}, {sampling.guidance_stop:g}]"
    return f"guidance {sampling.guidance_scale:g} for {interval}, {sampling.steps} {sampling.solver} grid points"


def _shown_labels(plan: Plan, generator: Generator) -> list[int]:
    classes = range(min(SHOWN, generator.num_classes))
    return [label for label in classes for _ in range(plan.budget.samples_per_class)]


def _formation(plan: Plan, generator: Generator, labels: Sequence[int]) -> list[tuple[float, np.ndarray]]:
    """What the network expects some samples to become, at nine moments on their way."""
    indices = range(0, len(labels), plan.budget.samples_per_class)[:FORMING]  # of different classes
    kept: list[tuple[float, Tensor]] = []
    moments = set(np.linspace(0, SAMPLING.steps - 2, 8).round().astype(int).tolist())

    def keep(step: int, t: float, x: Tensor, data: Tensor) -> None:
        if step in moments:
            kept.append((float(t), data))

    device = generator.tokenizer.device
    with autocast(resolve_precision("auto", device), device):
        final = generator.latents([labels[i] for i in indices], plan.seed, indices, SAMPLING, callback=keep)
    kept.append((1.0, final))
    return [(t, to_uint8(generator.tokenizer.decode(latents.float())).cpu().numpy()) for t, latents in kept]
