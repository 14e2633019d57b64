"""Measurements as records, each with its protocol, for all stages that measure."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from vavae.config.image_size import Size, format_size
from vavae.data import ImageSource, load_pixels, source_labels, to_tensor
from vavae.device import InferencePrecision, autocast, resolve_precision
from vavae.errors import UserError
from vavae.io.files import written_whole
from vavae.losses import LPIPS
from vavae.metrics import (
    Convention,
    FeatureNetwork,
    MeasurementProtocol,
    MetricRecord,
    RunningMoments,
    Uniformity,
    cknna,
    distance_matrix_similarity,
    fidelity,
    knn_accuracy,
    latent_uniformity,
    linear_probe,
    mapped_cosine,
)
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.models.sampling import draw
from vavae.progress import track
from vavae.teachers import Teacher


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images with their latents.

    Attributes:
        pixels: (N, H, W, 3) uint8.
        latents: (N, C, h, w) normalized posterior means, float32.
        labels: (N,) int64.
    """

    pixels: Tensor
    latents: Tensor
    labels: Tensor


def encode_all(
    tokenizer: Tokenizer, source: ImageSource, size: Size, batch_size: int, precision: InferencePrecision
) -> EncodedImages:
    """Return pixels, posterior means and labels of all images of a source."""
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


def reconstruct_all(tokenizer: Tokenizer, latents: Tensor, batch_size: int, precision: InferencePrecision) -> Tensor:
    """Decode normalized latents (N, C, h, w) to images (N, 3, H, W) in [-1, 1], clamped, on the CPU."""
    device = tokenizer.device
    mode = resolve_precision(precision, device)
    images = []
    for part in latents.split(batch_size):
        with autocast(mode, device):
            images.append(tokenizer.decode(part).float().cpu())
    return torch.cat(images)


def reconstruction_records(
    pixels: Tensor, rebuilt: Tensor, protocol: MeasurementProtocol, batch_size: int
) -> list[MetricRecord]:
    """Measure PSNR, SSIM and LPIPS of reconstructions in the strict convention, as means over the images.

    Args:
        pixels: (N, H, W, 3) uint8 originals.
        rebuilt: (N, 3, H, W) in [-1, 1].
        protocol: Protocol of the records.
        batch_size: Images per batch.
    """
    perceptual = {"lpips_vgg16": LPIPS.pretrained("vgg16")}
    values: dict[str, list[Tensor]] = {}
    with track("PSNR, SSIM, LPIPS", len(pixels), "images") as bar, torch.inference_mode():
        for original, image in zip(pixels.split(batch_size), rebuilt.split(batch_size), strict=True):
            for name, found in fidelity(to_tensor(original), image, "strict", perceptual).items():
                values.setdefault(name, []).append(found)
            bar.advance(len(original))
    means = {name: float(torch.cat(parts).mean()) for name, parts in values.items()}
    return fidelity_records(means, replace(protocol, convention="strict"))


_FIDELITY = {
    "psnr": ("PSNR", "dB", True, None),
    "ssim": ("SSIM", "", True, None),
    "lpips_vgg16": ("LPIPS", "", False, "lpips-vgg16"),
    "lpips_alexnet": ("LPIPS (AlexNet)", "", False, "lpips-alexnet"),
}


def _preprocessing(convention: Convention, size: Size | None) -> str:
    """Return how images are cropped and what is compared, in words."""
    if convention == "strict":
        return "ADM centre crop; both images as 8-bit pixels"
    resized = "short side resized" if size is None or isinstance(size, int) else "resized until it covers both sides"
    return f"{resized}, centre crop; SSIM clamped and padded, LPIPS of the decoder's output"


def fidelity_records(
    means: Mapping[str, float],
    protocol: MeasurementProtocol,
    intervals: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> list[MetricRecord]:
    """Return records of the means of `vavae.metrics.fidelity`, in the convention of the protocol."""
    assert protocol.convention is not None
    protocol = replace(protocol, preprocessing=_preprocessing(protocol.convention, protocol.image_size))
    records = []
    for key, (name, unit, higher, network) in _FIDELITY.items():
        if key in means:
            own = replace(protocol, feature_network=network)
            records.append(MetricRecord(name, means[key], own, unit, higher, interval=intervals.get(key)))
    return records


def probe_records(train: EncodedImages, test: EncodedImages, protocol: MeasurementProtocol) -> list[MetricRecord]:
    """Measure linear probe and k-NN on flattened latents; return nothing if there is only one class."""
    if len(train.labels.unique()) < 2:
        return []
    protocol = replace(protocol, reference_samples=len(train.labels), reference="training images")
    arguments = (train.latents, train.labels, test.latents, test.labels)
    return [
        MetricRecord("linear probe", linear_probe(*arguments), protocol, higher_is_better=True),
        MetricRecord("k-NN accuracy (k = 20)", knn_accuracy(*arguments), protocol, higher_is_better=True),
    ]


def alignment_records(
    latents: Tensor, features: Tensor, pooled: Tensor, teacher: Teacher, protocol: MeasurementProtocol
) -> list[MetricRecord]:
    """Measure how latents (N, C, h, w) agree with a teacher's grid (N, D, h, w) and pooled features (N, D')."""
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


def uniformity_records(points: np.ndarray | Uniformity, protocol: MeasurementProtocol) -> list[MetricRecord]:
    """Return the uniformity of latents laid out by t-SNE, or its mean over layouts, as in the paper's Table 6."""
    found = points if isinstance(points, Uniformity) else latent_uniformity(points)
    return [
        MetricRecord("uniformity: density cv", found.density_cv, protocol, higher_is_better=False),
        MetricRecord("uniformity: density std", found.density_std, protocol, higher_is_better=False),
        MetricRecord("uniformity: Gini", found.gini, protocol, higher_is_better=False),
        MetricRecord("uniformity: normalized entropy", found.normalized_entropy, protocol, higher_is_better=True),
    ]


def teacher_network(teacher: Teacher) -> FeatureNetwork:
    """Return a loaded teacher as a feature network: its pooled features at its input size."""

    def compute(pixels: Tensor) -> Tensor:
        features = teacher(to_tensor(pixels))
        return features.grid.mean((2, 3)) if features.pooled is None else features.pooled

    name = f"teacher:{teacher.name} at {format_size(teacher.input_size)} px"
    return FeatureNetwork(name, teacher.fingerprint(), next(teacher.parameters()).device, compute)


def frechet_record(
    name: str,
    network: FeatureNetwork,
    samples: RunningMoments,
    reference: RunningMoments,
    protocol: MeasurementProtocol,
) -> MetricRecord:
    """Return the Fréchet distance of two sets of features."""
    protocol = replace(
        protocol,
        samples=samples.count,
        reference_samples=reference.count,
        feature_network=network.name,
        feature_network_hash=network.fingerprint,
    )
    return MetricRecord(name, samples.distance(reference), protocol, higher_is_better=False)


def sampling_protocol(sampling: SamplingConfig, count: int, seed: int, label_protocol: str) -> MeasurementProtocol:
    """Return the protocol of samples drawn with these settings."""
    guided = sampling.guidance_scale != 1.0
    return MeasurementProtocol(
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


def batched_pixels(source: ImageSource, size: Size, batch_size: int, description: str) -> Iterator[Tensor]:
    """Yield all images of a source as pixels, in order, with a progress bar."""
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
    precision: InferencePrecision,
) -> Iterator[Tensor]:
    """Yield the samples of these labels as pixels, in order, with a progress bar."""
    with track("sampling", len(labels), "images") as bar:
        for indices in torch.arange(len(labels)).split(batch_size):
            numbers = indices.tolist()
            pixels = draw(generator, [labels[i] for i in numbers], numbers, seed, sampling, precision)
            yield torch.from_numpy(pixels)
            bar.advance(len(numbers))


def teacher_features(teacher: Teacher, pixels: Tensor, grid: tuple[int, int], batch_size: int) -> tuple[Tensor, Tensor]:
    """Return a teacher's grids (N, D, h, w), resampled to `grid`, and pooled features (N, D') of pixels."""
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


def check_writable(key: str, path: str | Path, folder: bool = False) -> None:
    """Check that a file, or a folder, can be made at `path`, so that a mistake is reported before the work.

    Raises:
        UserError: `path` has another kind, or a parent of it is a file or a folder without write permission. The
            message begins with `key`.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        raise UserError(f"{key} must be a {'folder' if folder else 'file'}, got {path}, which exists and is not one")
    above = next(p for p in (*([path] if folder else []), *path.absolute().parents) if p.exists())
    if not above.is_dir():
        raise UserError(f"{key}: {path} cannot be made ({above} is not a folder)")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{key}: {path} cannot be made (no permission to write in {above})")


def write_records(path: Path, records: Sequence[MetricRecord]) -> None:
    """Write records as a JSON list, whole or not at all."""
    text = json.dumps([record.to_dict() for record in records], indent=1, ensure_ascii=False) + "\n"
    with written_whole(path) as partial:
        partial.write_text(text)
