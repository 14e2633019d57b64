"""Measure one tokenizer: its reconstructions, and the shape, meaning and interpolations of its latents."""

import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vavae.config.image_size import Size, height_width
from vavae.data import ImageSource, source_labels, to_tensor
from vavae.data.images import Selection, class_balanced
from vavae.device import InferencePrecision, autocast, resolve_precision
from vavae.evaluation.features import BlockStore, StoredFeatures, extract
from vavae.evaluation.generation import Measuring, Reference, generation_records
from vavae.evaluation.images import LatentBlocks, SourceBlocks
from vavae.evaluation.reconstruction import Originals, Reconstructions
from vavae.evaluation.records import (
    EncodedImages,
    alignment_records,
    fidelity_records,
    probe_records,
    uniformity_records,
)
from vavae.io.files import written_whole
from vavae.io.hashing import digest
from vavae.losses import LPIPS
from vavae.metrics import (
    Convention,
    FeatureNetwork,
    MeasurementProtocol,
    MetricRecord,
    bootstrap_mean,
    interpolate_neighbors,
    latent_spectrum,
    mean_uniformity,
    neighbor_uniformity,
    one_position_each,
    sphere_uniformity,
)
from vavae.models import Tokenizer
from vavae.teachers import Teacher, resample_grid
from vavae.training.parallel import World


@dataclass(frozen=True)
class EvaluationContext:
    """Settings that all measurements of an evaluation share.

    Attributes:
        store: Store of the features.
        processes: Processes that share the work.
        batch_size: Images per batch.
        precision: Compute precision of the tokenizer.
        seed: Seed of the posterior's samples and of the bootstrap.
        bootstrap: Repetitions for intervals; 0 for no intervals.
        workers: Threads that decode images.
        originals: Opens the store of the original images' features, if it is another one.
        images: Folder for the reconstructions as PNGs, with one folder for each convention; None writes no images.
    """

    store: BlockStore
    processes: World
    batch_size: int
    precision: InferencePrecision
    seed: int = 0
    bootstrap: int = 0
    workers: int = 4
    originals: Callable[[], AbstractContextManager[BlockStore]] | None = None
    images: Path | None = None


def perceptual_networks(device: torch.device) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return LPIPS with VGG-16 and with AlexNet, by name."""
    return {f"lpips_{name}": LPIPS.pretrained(name).to(device) for name in ("vgg16", "alexnet")}


def rebuild(
    tokenizer: Tokenizer,
    source: ImageSource,
    size: Size,
    convention: Convention,
    perceptual: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    work: EvaluationContext,
) -> Reconstructions:
    """Return the reconstructions of a set of images, which are computed when they are measured."""
    originals = Originals(source, size, convention, work.workers)
    folder = None if work.images is None else work.images / convention
    return Reconstructions(originals, tokenizer, perceptual, work.store, work.precision, work.seed, folder)


def reconstruction(
    tokenizer: Tokenizer,
    source: ImageSource,
    size: Size,
    convention: Convention,
    networks: Sequence[FeatureNetwork],
    perceptual: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    protocol: MeasurementProtocol,
    work: EvaluationContext,
) -> tuple[list[MetricRecord], dict[str, Tensor]]:
    """Measure the reconstructions in one convention.

    Returns:
        The records, and one value per image (N,) by name. Both are empty on all processes except the first.
    """
    rebuilt = rebuild(tokenizer, source, size, convention, perceptual, work)
    with work.originals() if work.originals is not None else nullcontext(work.store) as store:
        real = extract(rebuilt.originals, networks, store, work.batch_size, work.processes, f"originals, {convention}")
    # Without any network, fidelity still needs one pass over the blocks.
    made = extract(
        rebuilt,
        networks or [_counted(tokenizer)],
        work.store,
        work.batch_size,
        work.processes,
        f"reconstructions, {convention}",
    )
    if not work.processes.first:
        return [], {}
    if convention == "strict":
        protocol = replace(protocol, convention=convention, posterior="mean")
    else:
        protocol = replace(protocol, convention=convention, posterior="sample", seed=work.seed)
    values = rebuilt.values(next(iter(made.values())))
    means = {name: float(value.mean()) for name, value in values.items()}
    intervals = {}
    if work.bootstrap:
        intervals = {name: bootstrap_mean(value, work.bootstrap, work.seed) for name, value in values.items()}
    records = fidelity_records(means, protocol, intervals)
    if networks:
        reference = Reference(source.name, real, {}, size)
        measuring = Measuring(("frechet",), bootstrap=work.bootstrap, seed=work.seed)
        found = generation_records(made, reference, protocol, measuring)
        prefix = {"FID": "rFID", "Fréchet distance": "reconstruction Fréchet distance"}
        records += [replace(record, name=prefix[record.name]) for record in found]
    return records, values


def _counted(tokenizer: Tokenizer) -> FeatureNetwork:
    """Return a network that does no work: one feature per image, always 1."""
    return FeatureNetwork("count", "count", tokenizer.device, lambda pixels: torch.ones(len(pixels), 1))


def encoder_network(tokenizer: Tokenizer, precision: InferencePrecision) -> FeatureNetwork:
    """Return the tokenizer as a feature network: normalized posterior means, flattened."""
    mode = resolve_precision(precision, tokenizer.device)

    def compute(pixels: Tensor) -> Tensor:
        with autocast(mode, tokenizer.device):
            return tokenizer.encode(to_tensor(pixels)).float().flatten(1)

    return FeatureNetwork("latents", digest(tokenizer.fingerprint(), mode), tokenizer.device, compute)


def grid_network(teacher: Teacher, grid: tuple[int, int]) -> FeatureNetwork:
    """Return a teacher as a feature network: its features on a latent grid, flattened, and its pooled features."""

    def parts(pixels: Tensor) -> dict[str, Tensor]:
        found = teacher(to_tensor(pixels))
        pooled = found.grid.mean((2, 3)) if found.pooled is None else found.pooled
        return {"pool": pooled, "grid": resample_grid(found.grid, grid).flatten(1)}

    device = next(teacher.parameters()).device
    return FeatureNetwork(
        teacher.name,
        digest(teacher.fingerprint(), grid),
        device,
        lambda pixels: parts(pixels)["pool"],
        parts,
        ("pool", "grid"),
    )


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents of some images.

    Attributes:
        values: (N, C, h, w), normalized posterior means.
        labels: Class of each image, (N,).
        images: The images.
        name: Name of their source.
    """

    values: Tensor
    labels: Tensor
    images: SourceBlocks
    name: str


def encode(tokenizer: Tokenizer, source: ImageSource, size: Size, limit: int, work: EvaluationContext) -> Latents:
    """Encode at most `limit` images of a source, balanced over the classes if it has more."""
    chosen = source if len(source) <= limit else Selection(source, np.array(sorted(class_balanced(limit, source))))
    images = SourceBlocks(chosen, size, work.workers)
    network = encoder_network(tokenizer, work.precision)
    features = extract(images, [network], work.store, work.batch_size, work.processes, f"encoding {source.name}")[
        "latents"
    ]
    height, width = (side // tokenizer.factor for side in height_width(size))
    values = features.all().view(-1, tokenizer.latent_channels, height, width)  # (N, C h w) -> (N, C, h, w)
    return Latents(values, torch.from_numpy(np.array(source_labels(chosen))), images, source.name)


def interpolation(
    tokenizer: Tokenizer,
    latents: Latents,
    networks: Sequence[FeatureNetwork],
    protocol: MeasurementProtocol,
    work: EvaluationContext,
) -> list[MetricRecord]:
    """Measure Fréchet distances between images and decoded midpoints of nearest neighbors among their latents."""
    midpoints = interpolate_neighbors(latents.values)
    decoded = LatentBlocks(tokenizer, midpoints, work.precision, "interpolations")
    store = work.store
    real = extract(latents.images, networks, store, work.batch_size, work.processes, "originals of latents")
    made = extract(decoded, networks, store, work.batch_size, work.processes, "interpolations")
    if not work.processes.first:
        return []
    reference = Reference(latents.name, real, {}, None)
    found = generation_records(made, reference, replace(protocol, posterior="mean"), Measuring(("frechet",)))
    prefix = {"FID": "interpolation FID", "Fréchet distance": "interpolation Fréchet distance"}
    return [replace(record, name=prefix[record.name]) for record in found]


def latent_records(latents: Latents, protocol: MeasurementProtocol, tsne_seeds: int) -> list[MetricRecord]:
    """Measure the shape of a latent space: spectrum, and uniformity with and without t-SNE.

    Args:
        latents: The latents.
        protocol: Protocol of the images and the tokenizer.
        tsne_seeds: Runs of t-SNE to average, as published; 0 leaves t-SNE out.
    """
    values = latents.values
    protocol = replace(protocol, samples=len(values), posterior="mean")
    spectrum = latent_spectrum(values)
    records = [
        MetricRecord("effective rank", spectrum.effective_rank, protocol, higher_is_better=True),
        MetricRecord("participation ratio", spectrum.participation_ratio, protocol, higher_is_better=True),
        MetricRecord(
            "largest share of variance", float(spectrum.eigenvalues[0] / spectrum.eigenvalues.sum()), protocol
        ),
    ]
    points = one_position_each(values, 0)
    seeded = replace(protocol, seed=0)
    if len(points) > max(5, points.shape[1]):
        near = neighbor_uniformity(points, 5)
        records += [
            MetricRecord("neighbour uniformity: distance cv", near.distance_cv, seeded, higher_is_better=False),
            MetricRecord("neighbour uniformity: distance Gini", near.distance_gini, seeded, higher_is_better=False),
            MetricRecord(
                "neighbour uniformity: entropy gap", near.entropy_gap, seeded, "nats/dim", higher_is_better=False
            ),
            MetricRecord("sphere uniformity", sphere_uniformity(points), seeded, higher_is_better=False),
        ]
    if tsne_seeds and len(values) > 30:
        averaged = replace(protocol, preprocessing=f"t-SNE, mean of seeds 0 to {tsne_seeds - 1}")
        records += uniformity_records(mean_uniformity(values, tsne_seeds), averaged)
    return records


def meaning_records(
    train: Latents | None,
    test: Latents,
    teacher: Teacher | None,
    teacher_features: StoredFeatures | None,
    protocol: MeasurementProtocol,
) -> list[MetricRecord]:
    """Measure the meaning of latents: linear probe and nearest neighbors of classes, agreement with a teacher."""
    protocol = replace(protocol, samples=len(test.values), posterior="mean")
    records: list[MetricRecord] = []
    if train is not None:
        none = torch.empty(0)
        records += probe_records(
            EncodedImages(none, train.values, train.labels), EncodedImages(none, test.values, test.labels), protocol
        )
    if teacher is not None and teacher_features is not None:
        pooled = teacher_features.all()
        grid = teacher_features.all("grid").view(len(pooled), -1, *test.values.shape[2:])  # (N, D h w) -> (N, D, h, w)
        records += alignment_records(test.values, grid, pooled, teacher, protocol)
    return records


def write_values(path: Path, values: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a CSV file with one line per image: its number and its values, in columns named "convention name"."""
    columns = {f"{convention} {name}": found for convention, group in values.items() for name, found in group.items()}
    with written_whole(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        for number, row in enumerate(zip(*(column.tolist() for column in columns.values()), strict=True)):
            writer.writerow([number, *row])


def write_spectrum(path: Path, latents: Latents) -> None:
    """Write the eigenvalues of the latents' channel covariance, one per line, largest first."""
    with written_whole(path) as partial:
        partial.write_text("".join(f"{value!r}\n" for value in latent_spectrum(latents.values).eigenvalues.tolist()))
