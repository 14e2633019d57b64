"""Measurements as records, each with its protocol, for all stages that measure."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vavae.config.image_size import Size
from vavae.errors import UserError
from vavae.io.files import write_text
from vavae.metrics import Convention, MeasurementProtocol, MetricRecord, Uniformity
from vavae.models import SamplingConfig

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
    intervals: Mapping[str, tuple[float, float]],
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


def make_records(protocol: MeasurementProtocol, *rows: tuple[str, float, bool | None]) -> list[MetricRecord]:
    """Return one record for each name, value and direction of improvement, all of one protocol."""
    return [MetricRecord(name, value, protocol, higher_is_better=higher) for name, value, higher in rows]


def uniformity_records(found: Uniformity, protocol: MeasurementProtocol) -> list[MetricRecord]:
    """Return the uniformity of latents laid out by t-SNE, as in the paper's Table 6."""
    return make_records(
        protocol,
        ("uniformity: density cv", found.density_cv, False),
        ("uniformity: density std", found.density_std, False),
        ("uniformity: Gini", found.gini, False),
        ("uniformity: normalized entropy", found.normalized_entropy, True),
    )


def sampling_protocol(sampling: SamplingConfig, count: int, seed: int, label_protocol: str) -> MeasurementProtocol:
    """Return the protocol of samples drawn with these settings."""
    guided = sampling.guidance_scale != 1.0
    return MeasurementProtocol(
        samples=count,
        label_protocol="random" if label_protocol == "random" else "balanced",
        solver=sampling.solver,
        steps=sampling.steps,
        shift=float(sampling.shift),
        end=sampling.end,
        guidance_scale=sampling.guidance_scale,
        guidance_interval=(sampling.guidance_start, sampling.guidance_stop) if guided else None,
        guidance_channels=sampling.guidance_channels if guided else None,
        guidance_kind=sampling.guidance_kind if guided else None,
        zero_init_steps=sampling.guidance.still_steps if sampling.guidance else None,
        seed=seed,
    )


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
    write_text(path, text)
