"""Reconstruction, generation and latent metrics, each with its protocol."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vavae.data import ImageSource, load_pixels, source_labels, to_tensor, to_uint8
from vavae.errors import UserError
from vavae.losses import LPIPS
from vavae.metrics import (
    FeatureNetwork,
    MetricRecord,
    Protocol,
    RunningMoments,
    Uniformity,
    cknna,
    distance_matrix_similarity,
    feature_moments,
    knn_accuracy,
    latent_uniformity,
    linear_probe,
    load_feature_network,
    mapped_cosine,
    psnr,
    ssim,
    tsne_points,
)
from vavae.pretrained import Generator, SamplingConfig, Tokenizer
from vavae.progress import track
from vavae.stages.images import ImagesConfig, evenly
from vavae.stages.sample import choose_labels, draw
from vavae.teachers import Teacher, load_teacher
from vavae.training.precision import Precision, autocast, resolve_device, resolve_precision
from vavae.training.tracking import versions


@dataclass(frozen=True)
class Config:
    """Evaluate a tokenizer, a generator, or a folder of samples.

    Attributes:
        what: `tokenizer`, `generator` or `samples`.
        model: Folder or hub id of the model; for `samples` the folder of PNGs.
        data: Images: those to reconstruct, or the reference of the Fréchet distance.
        split: Part of the images that is reconstructed or is the reference; the probe is fitted on `train`.
        teacher: Also measure how latents agree with this teacher's features (tokenizers only).
        teacher_size: Input size of the teacher; null is its own.
        network: Feature network of Fréchet distances: `inception`, `teacher:NAME`; null computes none.
        count: Samples to draw from a generator.
        label_protocol: Labels of those samples.
        seed: Seed of samples, t-SNE and choices.
        batch_size: Images at once.
        output: JSON file for the records; null prints only.
        device: auto, cpu, cuda, …
        precision: Compute precision of tokenizer and generator.
    """

    what: Literal["tokenizer", "generator", "samples"] = "tokenizer"
    model: str = "runs/tokenizer/tokenizer"
    data: ImagesConfig = field(default_factory=ImagesConfig)
    split: Literal["train", "test"] = "test"
    teacher: str | None = None
    teacher_size: int | None = None
    network: str | None = "inception"
    count: int = 50_000
    label_protocol: Literal["balanced", "random"] = "balanced"
    seed: int = 0
    batch_size: int = 64
    output: str | None = None
    device: str = "auto"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.count < 2 or self.batch_size < 1:
            raise UserError(f"count must be at least 2 and batch_size 1, not {self.count} and {self.batch_size}")


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images with their latents.

    Attributes:
        pixels: (N, H, W, 3) uint8.
        latents: (N, C, h, w) normalised posterior means, float32.
        labels: (N,) int64.
    """

    pixels: Tensor
    latents: Tensor
    labels: Tensor


def encode_all(
    tokenizer: Tokenizer, source: ImageSource, size: int, batch_size: int, precision: Precision
) -> EncodedImages:
    """Pixels, posterior means and labels of all images of a source."""
    device = tokenizer.device
    mode = resolve_precision(precision, device)
    pixels, latents = [], []
    with track(f"encoding {source.name}", len(source), "images") as bar:
        for indices in torch.arange(len(source)).split(batch_size):
            pixels.append(load_pixels(source, indices, size))
            with autocast(mode, device):
                latents.append(tokenizer.encode(to_tensor(pixels[-1]).to(device)).float().cpu())
            bar.advance(len(indices))
    labels = torch.from_numpy(np.array(source_labels(source)))
    return EncodedImages(torch.cat(pixels), torch.cat(latents), labels)


def reconstruct_all(tokenizer: Tokenizer, latents: Tensor, batch_size: int, precision: Precision) -> Tensor:
    """Normalised latents (N, C, h, w) -> images (N, 3, H, W) in [-1, 1], clamped, on the CPU."""
    device = tokenizer.device
    mode = resolve_precision(precision, device)
    images = []
    for part in latents.split(batch_size):
        with autocast(mode, device):
            images.append(tokenizer.decode(part).float().cpu())
    return torch.cat(images)


def reconstruction_records(pixels: Tensor, rebuilt: Tensor, protocol: Protocol, batch_size: int) -> list[MetricRecord]:
    """PSNR, SSIM and LPIPS of reconstructions, means over the images.

    Args:
        pixels: (N, H, W, 3) uint8 originals.
        rebuilt: (N, 3, H, W) in [-1, 1], clamped, not rounded to 8 bits.
        protocol: Of the records.
        batch_size: Images at once.
    """
    lpips = LPIPS.pretrained("vgg16")
    values: dict[str, list[Tensor]] = {"PSNR": [], "SSIM": [], "LPIPS": []}
    with track("PSNR, SSIM, LPIPS", len(pixels), "images") as bar, torch.inference_mode():
        for original, image in zip(pixels.split(batch_size), rebuilt.split(batch_size), strict=True):
            reference = to_tensor(original)
            values["PSNR"].append(psnr(image, reference))
            if min(image.shape[2:]) >= 11:
                values["SSIM"].append(ssim(image, reference))
            values["LPIPS"].append(lpips(image, reference).double())
            bar.advance(len(original))
    protocol = replace(protocol, preprocessing="ADM centre crop; reconstructions clamped to [-1, 1], not rounded")
    units, higher = {"PSNR": "dB"}, {"PSNR": True, "SSIM": True, "LPIPS": False}
    networks = {"LPIPS": "lpips-vgg16"}
    return [
        MetricRecord(
            name,
            float(torch.cat(parts).mean()),
            replace(protocol, feature_network=networks.get(name)),
            units.get(name, ""),
            higher[name],
        )
        for name, parts in values.items()
        if parts
    ]


def probe_records(train: EncodedImages, test: EncodedImages, protocol: Protocol) -> list[MetricRecord]:
    """Linear probe and k-NN on flattened latents; none where there is one class only."""
    if len(train.labels.unique()) < 2:
        return []
    protocol = replace(protocol, reference_samples=len(train.labels), reference="training images")
    arguments = (train.latents, train.labels, test.latents, test.labels)
    return [
        MetricRecord("linear probe", linear_probe(*arguments), protocol, higher_is_better=True),
        MetricRecord("k-NN accuracy (k = 20)", knn_accuracy(*arguments), protocol, higher_is_better=True),
    ]


def alignment_records(
    latents: Tensor, features: Tensor, pooled: Tensor, teacher: Teacher, protocol: Protocol
) -> list[MetricRecord]:
    """How latents (N, C, h, w) agree with a teacher's grid (N, D, h, w) and pooled features (N, D')."""
    protocol = replace(protocol, feature_network=teacher.name, feature_network_hash=teacher.fingerprint())
    rows = [
        ("alignment: cosine after the best linear map", mapped_cosine(latents, features), True),
        (
            "alignment: distance-matrix difference",
            float(distance_matrix_similarity(latents, features).mean()),
            False,
        ),
    ]
    if len(latents) > 10:
        rows.append(("alignment: CKNNA (k = 10)", cknna(latents, pooled), True))
    return [MetricRecord(name, value, protocol, higher_is_better=higher) for name, value, higher in rows]


def uniformity_records(points: np.ndarray, protocol: Protocol) -> list[MetricRecord]:
    """Uniformity of latents laid out by t-SNE, as in the paper's Table 6."""
    found: Uniformity = latent_uniformity(points)
    return [
        MetricRecord("uniformity: density cv", found.density_cv, protocol, higher_is_better=False),
        MetricRecord("uniformity: density std", found.density_std, protocol, higher_is_better=False),
        MetricRecord("uniformity: Gini", found.gini, protocol, higher_is_better=False),
        MetricRecord("uniformity: normalized entropy", found.normalized_entropy, protocol, higher_is_better=True),
    ]


def teacher_network(teacher: Teacher) -> FeatureNetwork:
    """The pooled features of a loaded teacher, at its input size, as a feature network."""

    def compute(pixels: Tensor) -> Tensor:
        features = teacher(to_tensor(pixels))
        return features.grid.mean((2, 3)) if features.pooled is None else features.pooled

    name = f"teacher:{teacher.name} at {teacher.input_size[0]} px"
    return FeatureNetwork(name, teacher.fingerprint(), next(teacher.parameters()).device, compute)


def frechet_record(
    name: str, network: FeatureNetwork, samples: RunningMoments, reference: RunningMoments, protocol: Protocol
) -> MetricRecord:
    """The Fréchet distance of two sets of features."""
    protocol = replace(
        protocol,
        samples=samples.count,
        reference_samples=reference.count,
        feature_network=network.name,
        feature_network_hash=network.fingerprint,
    )
    return MetricRecord(name, samples.distance(reference), protocol, higher_is_better=False)


def sampling_protocol(sampling: SamplingConfig, count: int, seed: int, label_protocol: str) -> Protocol:
    """The protocol of samples drawn with these settings."""
    guided = sampling.guidance_scale != 1.0
    return Protocol(
        samples=count,
        label_protocol="random" if label_protocol == "random" else "balanced",
        solver=sampling.solver,
        steps=sampling.steps,
        shift=sampling.shift,
        guidance_scale=sampling.guidance_scale,
        guidance_interval=(sampling.guidance_start, sampling.guidance_stop) if guided else None,
        guidance_channels=sampling.guidance_channels if guided else None,
        seed=seed,
    )


def batched_pixels(source: ImageSource, size: int, batch_size: int, description: str) -> Iterator[Tensor]:
    """All images of a source as pixels, in order, with a progress bar."""
    with track(description, len(source), "images") as bar:
        for indices in torch.arange(len(source)).split(batch_size):
            yield load_pixels(source, indices, size)
            bar.advance(len(indices))


def drawn_pixels(
    generator: Generator,
    labels: Sequence[int],
    seed: int,
    sampling: SamplingConfig,
    batch_size: int,
    precision: Precision,
) -> Iterator[Tensor]:
    """Samples 0 … of the given labels as pixels, in order, with a progress bar."""
    with track("sampling", len(labels), "images") as bar:
        for indices in torch.arange(len(labels)).split(batch_size):
            numbers = indices.tolist()
            pixels = draw(generator, [labels[i] for i in numbers], numbers, seed, sampling, precision)
            yield torch.from_numpy(pixels)
            bar.advance(len(numbers))


def _tokenizer(config: Config) -> list[MetricRecord]:
    device = resolve_device(config.device)
    tokenizer = Tokenizer.from_pretrained(config.model, device)
    size = config.data.size
    if size % tokenizer.factor:
        raise UserError(f"data.size: {size} is no multiple of the tokenizer's factor {tokenizer.factor}")
    source = config.data.open(config.split)
    encoded = encode_all(tokenizer, source, size, config.batch_size, config.precision)
    rebuilt = reconstruct_all(tokenizer, encoded.latents, config.batch_size, config.precision)
    protocol = Protocol(
        samples=len(source),
        split=f"{source.name} ({config.split})",
        dtype=resolve_precision(config.precision, device),
        posterior="mean",
        image_size=size,
        checkpoint=config.model,
    )
    records = reconstruction_records(encoded.pixels, rebuilt, protocol, config.batch_size)
    if config.network is not None:
        network = load_feature_network(config.network, device)
        parts = encoded.pixels.split(config.batch_size)
        reference = feature_moments(network, parts)
        remade = feature_moments(network, to_uint8(rebuilt).split(config.batch_size))
        records.append(frechet_record("reconstruction Fréchet distance", network, remade, reference, protocol))
    if config.split == "test" and source.num_classes > 1:
        train = encode_all(tokenizer, config.data.open("train"), size, config.batch_size, config.precision)
        records += probe_records(train, encoded, protocol)
    if len(source) > 30:
        chosen = encoded.latents[evenly(10_000, source)]
        points = tsne_points(chosen, 42)
        records += uniformity_records(points, replace(protocol, samples=len(points), seed=42))
    if config.teacher is not None:
        teacher = load_teacher(config.teacher, input_size=config.teacher_size).to(device)
        grid = (encoded.latents.shape[2], encoded.latents.shape[3])
        features, pooled = teacher_features(teacher, encoded.pixels, grid, config.batch_size)
        records += alignment_records(encoded.latents, features, pooled, teacher, protocol)
    return records


def teacher_features(teacher: Teacher, pixels: Tensor, grid: tuple[int, int], batch_size: int) -> tuple[Tensor, Tensor]:
    """A teacher's grids (N, D, h, w), resampled to `grid`, and pooled features (N, D') of pixels."""
    from vavae.teachers import resample_grid

    device = next(teacher.parameters()).device
    grids, pooled = [], []
    with track(f"features of {teacher.name}", len(pixels), "images") as bar:
        for part in pixels.split(batch_size):
            found = teacher(to_tensor(part).to(device))
            grids.append(resample_grid(found.grid, grid).cpu())
            pooled.append((found.grid.mean((2, 3)) if found.pooled is None else found.pooled).cpu())
            bar.advance(len(part))
    return torch.cat(grids), torch.cat(pooled)


def _generator(config: Config) -> list[MetricRecord]:
    device = resolve_device(config.device)
    generator = Generator.from_pretrained(config.model, device)
    network = load_feature_network(_required_network(config), device)
    _, height, width = generator.latent_shape
    factor = generator.tokenizer.factor
    if (height * factor, width * factor) != (config.data.size, config.data.size):
        raise UserError(f"data.size: the generator makes images of {width * factor} px, not {config.data.size}")
    source = config.data.open(config.split)
    reference = feature_moments(network, batched_pixels(source, config.data.size, config.batch_size, "reference"))
    labels = choose_labels(config.count, generator.num_classes, config.label_protocol, config.seed)
    drawn = drawn_pixels(generator, labels, config.seed, generator.sampling, config.batch_size, config.precision)
    protocol = replace(
        sampling_protocol(generator.sampling, config.count, config.seed, config.label_protocol),
        dtype=resolve_precision(config.precision, device),
        image_size=config.data.size,
        reference=f"{source.name} ({config.split})",
        checkpoint=config.model,
    )
    return [frechet_record("Fréchet distance", network, feature_moments(network, drawn), reference, protocol)]


def _samples(config: Config) -> list[MetricRecord]:
    network = load_feature_network(_required_network(config), resolve_device(config.device))
    folder = Path(config.model)
    files = sorted(folder.glob("[0-9]*.png")) or sorted(folder.glob("*.png"))
    if len(files) < 2:
        raise UserError(f"{folder}: no PNG samples there")

    def pixels() -> Iterator[Tensor]:
        with track("samples", len(files), "images") as bar:
            for start in range(0, len(files), config.batch_size):
                part = [np.array(Image.open(f).convert("RGB")) for f in files[start : start + config.batch_size]]
                if len({p.shape for p in part}) > 1:
                    raise UserError(f"{folder}: its images differ in size")
                yield torch.from_numpy(np.stack(part))
                bar.advance(len(part))

    source = config.data.open(config.split)
    reference = feature_moments(network, batched_pixels(source, config.data.size, config.batch_size, "reference"))
    protocol = Protocol(
        samples=len(files),
        image_size=config.data.size,
        reference=f"{source.name} ({config.split})",
        checkpoint=config.model,
    )
    return [frechet_record("Fréchet distance", network, feature_moments(network, pixels()), reference, protocol)]


def _required_network(config: Config) -> str:
    if config.network is None:
        raise UserError(f"network: a {config.what} is measured with a feature network; give one")
    return config.network


def run(config: Config) -> list[MetricRecord]:
    """Measure, print a table, and write the JSON.

    Raises:
        UserError: No such model, images or network.
    """
    from rich.console import Console
    from rich.table import Table

    measure = {"tokenizer": _tokenizer, "generator": _generator, "samples": _samples}[config.what]
    records = measure(config)
    found = versions()
    table = Table(box=None, pad_edge=False)
    for heading in ("metric", "value", "images", "network"):
        table.add_column(heading, justify="right" if heading in ("value", "images") else "left")
    for record in records:
        value = f"{record.value:.4f}" if math.isfinite(record.value) else "not defined"
        table.add_row(
            record.name,
            f"{value} {record.unit}".strip(),
            f"{record.protocol.samples:,}",
            record.protocol.feature_network or "",
        )
    Console().print(table)
    if config.output is not None:
        write_records(Path(config.output), [replace(record, versions=found) for record in records])
        print(f"records: {config.output}")
    return records


def write_records(path: Path, records: Sequence[MetricRecord]) -> None:
    """Write records as a JSON list, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps([record.to_dict() for record in records], indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)
