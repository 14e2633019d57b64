"""Measure one tokenizer: its reconstructions, and the shape, meaning and interpolations of its latents."""

import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from vavae.config.image_size import Size, height_width
from vavae.data import ImageSource, to_tensor
from vavae.data.images import Selection, class_balanced
from vavae.device import InferencePrecision, autocast, resolve_precision
from vavae.evaluation.features import BlockStore, ImageSet, StoredFeatures, extract
from vavae.evaluation.generation import Measuring, Reference, generation_records
from vavae.evaluation.images import decoded_images, source_images
from vavae.evaluation.reconstruction import EvaluationContext, Reconstructions
from vavae.evaluation.records import fidelity_records, make_records, uniformity_records
from vavae.io.files import write_text, written_whole
from vavae.io.hashing import digest
from vavae.losses import LPIPS
from vavae.losses.perceptual import Network, smallest_side
from vavae.metrics import (
    Convention,
    FeatureNetwork,
    MeasurementProtocol,
    MetricRecord,
    bootstrap_mean,
    cknna,
    distance_matrix_similarity,
    interpolate_neighbors,
    knn_accuracy,
    latent_spectrum,
    linear_probe,
    mapped_cosine,
    mean_uniformity,
    neighbor_uniformity,
    one_position_each,
    sphere_uniformity,
)
from vavae.models import Tokenizer
from vavae.teachers import Teacher, resample_grid


def perceptual_networks(
    device: torch.device, size: Size, say: Callable[[str], None]
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return LPIPS with VGG-16 and with AlexNet, by name; say which is left out, as images of `size` are too small."""
    networks: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    for name in get_args(Network):
        if min(height_width(size)) < smallest_side(name):
            say(f"LPIPS with {name} is left out: it needs images of at least {smallest_side(name)} pixels a side")
        else:
            networks[f"lpips_{name}"] = LPIPS.pretrained(name).to(device)
    return networks


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
    rebuilt = Reconstructions(tokenizer, source, size, convention, perceptual, work)
    real = {}
    if networks:
        with work.originals() if work.originals is not None else nullcontext(work.store) as store:
            real = _extract(rebuilt.originals(), networks, f"originals, {convention}", work, store)
    # Without any network, fidelity still needs one pass over the images, by a network that does no work.
    counted = FeatureNetwork("count", "count", tokenizer.device, lambda pixels: torch.ones(len(pixels), 1))
    made = _extract(rebuilt.images(), networks or [counted], f"reconstructions, {convention}", work)
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
        measuring = Measuring(("frechet",), bootstrap=work.bootstrap, seed=work.seed)
        found = generation_records(made, Reference(source.name, real, {}, size), protocol, measuring)
        prefix = {"FID": "rFID", "Fréchet distance": "reconstruction Fréchet distance"}
        records += [replace(record, name=prefix[record.name]) for record in found]
    return records, values


def _extract(
    images: ImageSet,
    networks: Sequence[FeatureNetwork],
    description: str,
    work: EvaluationContext,
    store: BlockStore | None = None,
) -> dict[str, StoredFeatures]:
    return extract(images, networks, store or work.store, work.batch_size, work.processes, description)


def encoder_network(tokenizer: Tokenizer, precision: InferencePrecision) -> FeatureNetwork:
    """Return the tokenizer as a feature network: normalized posterior means, flattened."""
    mode = resolve_precision(precision, tokenizer.device)

    def compute(pixels: Tensor) -> Tensor:
        with autocast(mode, tokenizer.device):
            return tokenizer.encode(to_tensor(pixels)).float().flatten(1)

    return FeatureNetwork("latents", digest(tokenizer.fingerprint(), mode), tokenizer.device, compute)


def grid_network(teacher: Teacher, grid: tuple[int, int]) -> FeatureNetwork:
    """Return a teacher as a feature network: its features on a latent grid, flattened, and its pooled features."""

    def compute(pixels: Tensor) -> dict[str, Tensor]:
        found = teacher(to_tensor(pixels))
        pooled = found.grid.mean((2, 3)) if found.pooled is None else found.pooled
        return {"pool": pooled, "grid": resample_grid(found.grid, grid).flatten(1)}

    device = next(teacher.parameters()).device
    return FeatureNetwork(teacher.name, digest(teacher.fingerprint(), grid), device, compute, ("pool", "grid"))


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents of some images."""

    values: Tensor  # (N, C, h, w), normalized posterior means
    labels: Tensor  # class of each image, (N,)
    source: ImageSource
    images: ImageSet  # the images with the crop that was encoded


def encode(tokenizer: Tokenizer, source: ImageSource, size: Size, limit: int, work: EvaluationContext) -> Latents:
    """Encode at most `limit` images of a source, balanced over the classes if it has more."""
    chosen = source if len(source) <= limit else Selection(source, np.array(sorted(class_balanced(limit, source))))
    images = source_images(chosen, size, work.workers)
    network = encoder_network(tokenizer, work.precision)
    features = _extract(images, [network], f"encoding {source.name}", work)[network.name]
    height, width = (side // tokenizer.factor for side in height_width(size))
    values = features.all().view(-1, tokenizer.latent_channels, height, width)  # (N, C h w) -> (N, C, h, w)
    return Latents(values, torch.from_numpy(np.array(chosen.labels)), chosen, images)


def interpolation(
    tokenizer: Tokenizer,
    latents: Latents,
    networks: Sequence[FeatureNetwork],
    protocol: MeasurementProtocol,
    work: EvaluationContext,
) -> list[MetricRecord]:
    """Measure Fréchet distances between images and decoded midpoints of nearest neighbors among their latents."""
    midpoints = interpolate_neighbors(latents.values)
    decoded = decoded_images(tokenizer, midpoints, work.precision, "interpolations")
    real = _extract(latents.images, networks, "originals of latents", work)
    made = _extract(decoded, networks, "interpolations", work)
    if not work.processes.first:
        return []
    reference = Reference(latents.source.name, real, {}, None)
    found = generation_records(made, reference, replace(protocol, posterior="mean"), Measuring(("frechet",)))
    prefix = {"FID": "interpolation FID", "Fréchet distance": "interpolation Fréchet distance"}
    return [replace(record, name=prefix[record.name]) for record in found]


def latent_records(latents: Latents, protocol: MeasurementProtocol, tsne_seeds: int) -> list[MetricRecord]:
    """Measure the shape of a latent space: spectrum, and uniformity with and without t-SNE.

    t-SNE is averaged over `tsne_seeds` runs, as published; 0 leaves it out.
    """
    values = latents.values
    protocol = replace(protocol, samples=len(values), posterior="mean")
    spectrum = latent_spectrum(values)
    records = make_records(
        protocol,
        ("effective rank", spectrum.effective_rank, True),
        ("participation ratio", spectrum.participation_ratio, True),
        ("largest share of variance", float(spectrum.eigenvalues[0] / spectrum.eigenvalues.sum()), None),
    )
    points = one_position_each(values, 0)
    seeded = replace(protocol, seed=0)
    if len(points) > max(5, points.shape[1]):
        near = neighbor_uniformity(points, 5)
        records += [
            MetricRecord("neighbour uniformity: distance cv", near.distance_cv, seeded, higher_is_better=False),
            MetricRecord("neighbour uniformity: distance Gini", near.distance_gini, seeded, higher_is_better=False),
            MetricRecord("neighbour uniformity: entropy gap", near.entropy_gap, seeded, "nats/dim", False),
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
    if train is not None and len(train.labels.unique()) > 1:
        own = replace(protocol, reference_samples=len(train.labels), reference="training images")
        sets = (train.values, train.labels, test.values, test.labels)
        records += make_records(
            own, ("linear probe", linear_probe(*sets), True), ("k-NN accuracy (k = 20)", knn_accuracy(*sets), True)
        )
    if teacher is not None and teacher_features is not None:
        pooled = teacher_features.all()
        grid = teacher_features.all("grid").view(len(pooled), -1, *test.values.shape[2:])  # (N, D h w) -> (N, D, h, w)
        own = replace(protocol, feature_network=teacher.name, feature_network_hash=teacher.fingerprint())
        cosine, difference = mapped_cosine(test.values, grid), distance_matrix_similarity(test.values, grid).mean()
        rows: list[tuple[str, float, bool | None]] = [
            ("alignment: cosine after the best linear map", cosine, True),
            ("alignment: distance-matrix difference", float(difference), False),
        ]
        if len(pooled) > 10:
            rows.append(("alignment: CKNNA (k = 10)", cknna(test.values, pooled), True))
        records += make_records(own, *rows)
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
    write_text(path, "".join(f"{value!r}\n" for value in latent_spectrum(latents.values).eigenvalues.tolist()))
