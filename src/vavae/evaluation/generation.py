"""Compare generated images with real ones: FID, sFID, Inception Score, precision and recall, KID, FDr."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vavae.config.image_size import Size
from vavae.data.images import evenly_spaced, report
from vavae.device import float64_device
from vavae.errors import UserError
from vavae.evaluation.features import BlockStore, ImageSet, StoredFeatures, extract
from vavae.evaluation.images import npz_images
from vavae.io.files import written_whole
from vavae.metrics import (
    FeatureNetwork,
    MeasurementProtocol,
    MetricRecord,
    RunningMoments,
    bootstrap_interval,
    inception_score,
    kernel_distance,
    moments_of,
    precision_recall,
)
from vavae.metrics.npz import read_npz, stored_count
from vavae.training.parallel import World

Metric = Literal["frechet", "sfid", "inception_score", "precision_recall", "kid"]
METRICS: tuple[Metric, ...] = ("frechet", "sfid", "inception_score", "precision_recall", "kid")
_PARTS: dict[Metric, str] = {"sfid": "spatial", "inception_score": "logits"}
_OF_NEIGHBORS: tuple[Metric, ...] = ("precision_recall", "kid")
# The most images, samples and reference together, that are compared pairwise unless a metric is required. With 2,048
# features a CPU needs 8e13 float64 operations for them, an hour on two cores; a GPU 8e15, two minutes to two hours.
_COMPARED = {"cpu": 200_000, "cuda": 2_000_000}
_MANIFOLD = 10_000  # reference images for precision and recall, evenly spaced, as in ADM's protocol


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance read from a file."""

    pool: RunningMoments  # moments of the pooled features
    spatial: RunningMoments | None  # moments of the spatial features; None if the file does not have them
    count: int | None  # number of images they were computed over; None if the file does not record it
    fingerprint: str  # sha256 over the numbers
    origin: str  # how the network of these features is known


@dataclass(frozen=True, eq=False)
class Reference:
    """Reference of a measurement."""

    name: str  # name in records and messages
    features: dict[str, StoredFeatures]  # features of its images by network; empty if there are only statistics
    # Statistics of a file by network. Distances use them instead of the images' features.
    statistics: dict[str, Statistics]
    size: Size | None  # size of its images in pixels, if it is known

    def moments(self, network: str, part: str = "pool") -> tuple[RunningMoments, int | None, str] | None:
        """Return moments, number of images and hash; None if the statistics of a file do not have this part."""
        if network in self.statistics:
            stored = self.statistics[network]
            found = stored.pool if part == "pool" else stored.spatial
            return None if found is None else (found, stored.count, stored.fingerprint)
        features = self.features[network]
        return features.moments(part), features.count, features.content


def read_statistics(path: str | Path, networks: Sequence[FeatureNetwork]) -> dict[str, Statistics]:
    """Read reference statistics `mu`, `sigma` (and `mu_s`, `sigma_s`) from an npz, as ADM and others publish them.

    Files of `save_statistics` record the network of the features. Only ADM's files have `mu_s`, and their network is
    `inception`. clean-fid writes its mode into the file name. Other files, such as pytorch-fid's and EDM's, do not
    record the network: the one Inception among `networks` is assumed, or `inception` among several.

    Returns:
        Statistics by network; empty if the file has neither `mu` nor `sigma`, or is of none of these networks.

    Raises:
        UserError: The file cannot be read, has a mean without a covariance, or its numbers do not fit the network.
    """
    arrays = read_npz(path)
    lacking = {"mu", "sigma"} - arrays.keys()
    if len(lacking) == 1:
        raise UserError(f"{path} must have mu and sigma, and does not have {lacking.pop()}")
    if lacking:
        return {}
    chosen, origin = _networks_of(Path(path), arrays, networks)
    return {network.name: _statistics(arrays, str(path), network, origin) for network in chosen}


# The modes in the names of clean-fid's files -> our names of their networks.
_CLEAN_FID = {"clean": "inception-clean", "legacy_tensorflow": "inception", "legacy_pytorch": "inception-pytorch-fid"}


def _networks_of(
    path: Path, arrays: dict[str, np.ndarray], networks: Sequence[FeatureNetwork]
) -> tuple[list[FeatureNetwork], str]:
    """Return the networks whose features the statistics describe, and how that is known."""
    if "network_hash" in arrays:
        return [n for n in networks if n.fingerprint == str(arrays["network_hash"])], "the file has its hash"
    if "network" in arrays:
        return [n for n in networks if n.name == str(arrays["network"])], "the file has its name"
    inceptions = [n for n in networks if n.kind.startswith("inception")]
    if "mu_s" in arrays:
        kind, origin = "inception", "only ADM's files have mu_s"
    elif mode := re.search(f"_({'|'.join(_CLEAN_FID)})_", path.name):
        kind, origin = _CLEAN_FID[mode[1]], f"its name has clean-fid's mode {mode[1]}"
    else:
        kind = inceptions[0].kind if len(inceptions) == 1 else "inception"
        origin = "the file does not record it; pytorch-fid uses inception-pytorch-fid, EDM inception"
    return [n for n in inceptions if n.kind == kind], origin


def _statistics(arrays: dict[str, np.ndarray], path: str, network: FeatureNetwork, origin: str) -> Statistics:
    fingerprint = hashlib.sha256()
    # The features of any image show how many numbers there must be.
    widths = {part: f.shape[1] for part, f in network.all_parts(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).items()}

    def moments(mean: str, covariance: str, part: str) -> RunningMoments:
        found = RunningMoments.from_arrays(arrays, path, mean, covariance)
        wanted, length = widths.get(part), len(found.mean)
        if wanted not in (None, length):
            raise UserError(f"{path}: {mean} has {length:,} numbers, the features of {network.name} {wanted:,}")
        for name in (mean, covariance):
            fingerprint.update(np.ascontiguousarray(arrays[name].astype(np.float64)).data)
        return found

    pool = moments("mu", "sigma", "pool")
    spatial = moments("mu_s", "sigma_s", "spatial") if {"mu_s", "sigma_s"} <= arrays.keys() else None
    return Statistics(pool, spatial, stored_count(arrays, path), fingerprint.hexdigest(), origin)


def save_statistics(path: str | Path, features: StoredFeatures) -> None:
    """Write `mu` and `sigma`, `mu_s` and `sigma_s` if there are spatial features, and the network's name and hash."""
    arrays: dict[str, object] = {"count": features.count, "network": features.network.name}
    arrays["network_hash"] = features.network.fingerprint
    for part, suffix in (("pool", ""), ("spatial", "_s")):
        if part in features.parts:
            moments = features.moments(part)
            arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"] = moments.mean.numpy(), moments.covariance.numpy()
    with written_whole(Path(path)) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numbers and text become arrays


def parts_for(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Return the parts of features that the metrics need."""
    return ("pool", *(_PARTS[metric] for metric in metrics if metric in _PARTS))


def open_reference(
    images: ImageSet | None,
    npz: str | None,
    networks: Sequence[FeatureNetwork],
    metrics: Sequence[Metric],
    store: BlockStore,
    batch_size: int,
    processes: World,
    required: Sequence[Metric] = (),
    samples: int | None = None,
) -> Reference:
    """Open the reference: `images`, or the images and statistics of an npz.

    A metric that cannot be measured with these networks, this reference and this number of samples is left out, which
    is printed. `required` metrics must not be left out. `samples` is the number of samples that will be measured, if it
    is known.

    Raises:
        UserError: The npz has neither images nor statistics of the networks, or one of `required` cannot be measured.
            No features have been computed then.
    """
    statistics: dict[str, Statistics] = {}
    if npz is not None:
        statistics, images = read_statistics(npz, networks), npz_images(npz)
        if images is not None and processes.first:
            report("reference", images.count, (), images.found)
        for network, found in statistics.items() if processes.first else ():
            print(f"reference: the statistics in {npz} are taken to be of {network}: {found.origin}")
    unknown = [network.name for network in networks if network.name not in statistics]
    if images is None and unknown:
        raise UserError(
            f"reference: {npz} must have images (arr_0), or statistics of the network {unknown[0]} (mu, sigma); "
            "statistics of one network cannot be compared with features of another"
        )
    name = npz or (images.name if images is not None else "")
    for metric in metrics:
        lack = _what_lacks(metric, networks, statistics, name, None if images is None else images.count, samples)
        if lack is not None and metric in required:
            raise UserError(f"metrics: {metric} needs {lack}")
        if lack is not None and processes.first:
            print(f"{metric} is left out: it needs {lack}")
    if images is None:
        return Reference(name, {}, statistics, None)
    if images.count < 2 and unknown:
        raise UserError(f"reference: {name} must have at least 2 images, got 1")
    parts = [part for part in parts_for(metrics) if part != "logits"]
    features = extract(images, networks, store, batch_size, processes, "reference", parts)
    return Reference(name, features, statistics, images.size)


def _what_lacks(
    metric: Metric,
    networks: Sequence[FeatureNetwork],
    statistics: dict[str, Statistics],
    reference: str,
    images: int | None,
    samples: int | None,
) -> str | None:
    """Return what a metric lacks, for a message, or None if at least one network can measure it.

    `images` is the number of the reference's images, or None if it has only statistics.
    """
    able = [network for network in networks if _PARTS.get(metric, "pool") in network.parts]
    named = ", ".join(network.name for network in networks)
    if metric == "inception_score" and not able:
        return f"logits, which {named} cannot give: name a file of weights that has them, --network inception:FILE"
    if metric == "sfid" and not able:
        return f"spatial features, which {named} cannot give: --network inception has them"
    if metric == "sfid" and all(n.name in statistics and statistics[n.name].spatial is None for n in able):
        return f"mu_s and sigma_s, which {reference} does not have"
    if metric in _OF_NEIGHBORS and images is None:
        return f"the features of real images, and {reference} has only statistics"
    few = [count for count in (samples, images) if count is not None and count < 4]
    if metric in _OF_NEIGHBORS and few:
        return f"at least 4 samples and 4 reference images, not {few[0]}"
    return None


@dataclass(frozen=True)
class Measuring:
    """Metrics to measure, and their settings."""

    metrics: tuple[Metric, ...] = METRICS
    required: tuple[Metric, ...] = ()  # metrics that are measured however long it takes
    bootstrap: int = 0  # repetitions for an interval of Fréchet distances; 0 for no interval
    seed: int = 0  # seed of the bootstrap
    device: str = "cpu"  # device that computes distances between features


def generation_records(
    samples: dict[str, StoredFeatures],
    reference: Reference,
    protocol: MeasurementProtocol,
    measuring: Measuring,
    real: dict[str, StoredFeatures] | None = None,
) -> Iterator[MetricRecord]:
    """Yield all metrics that the features allow. Metrics that may take hours, or much memory, come last.

    `real` has features of other real images by network; their distance to the reference is the unit of FDr.

    Raises:
        UserError: A set has too few images, or `real` are the images of the reference.
    """
    if "frechet" in measuring.metrics and any(_is_reference(images, reference) for images in (real or {}).values()):
        raise UserError(f"real_split must have other images than the reference {reference.name}")
    protocols = {
        name: replace(
            protocol,
            samples=features.count,
            feature_network=name,
            feature_network_hash=features.network.fingerprint,
            reference=reference.name,
        )
        for name, features in samples.items()
    }
    distances = {}
    for name, features in samples.items():
        own = protocols[name]
        if "frechet" in measuring.metrics:
            distances[name] = _distance(features, reference, own, measuring)
            yield distances[name]
        known = reference.statistics.get(name)
        spatial = "spatial" in features.parts and (known is None or known.spatial is not None)
        if "sfid" in measuring.metrics and spatial:
            yield _distance(features, reference, own, measuring, "spatial")
        if "inception_score" in measuring.metrics and "logits" in features.parts:
            score = inception_score(features.blocks("logits"))
            yield MetricRecord("Inception Score", score, replace(own, reference=None), higher_is_better=True)
    if real is not None and distances:
        yield _ratio(distances, real, reference, measuring)
    for name, features in samples.items():
        if name in reference.features:
            yield from _neighborhoods(features, reference.features[name], protocols[name], measuring)


def _ratio(
    distances: dict[str, MetricRecord], real: dict[str, StoredFeatures], reference: Reference, measuring: Measuring
) -> MetricRecord:
    """Return FDr: the mean over networks of `distances`, each divided by the distance of `real` to the reference."""
    plain = replace(measuring, bootstrap=0)
    units = {name: _distance(real[name], reference, d.protocol, plain) for name, d in distances.items()}
    first = next(iter(real.values()))
    hashes = "".join(features.network.fingerprint for features in real.values())
    protocol = replace(
        next(iter(distances.values())).protocol,
        feature_network=", ".join(distances),
        feature_network_hash=hashlib.sha256(hashes.encode()).hexdigest(),
        split=f"unit: {first.count:,} real images {first.content[:12]}",
    )
    value = float(np.mean([distance.value / units[name].value for name, distance in distances.items()]))
    return MetricRecord("FDr", value, protocol, higher_is_better=False)


def _is_reference(images: StoredFeatures, reference: Reference) -> bool:
    """Return whether the reference has the same images, or their statistics."""
    known = reference.moments(images.network.name)
    return known is not None and torch.equal(known[0].mean, images.moments("pool").mean)


def _distance(
    features: StoredFeatures,
    reference: Reference,
    protocol: MeasurementProtocol,
    measuring: Measuring,
    part: str = "pool",
) -> MetricRecord:
    """Return the Fréchet distance between features and a reference that has moments of this part."""
    known = reference.moments(features.network.name, part)
    assert known is not None
    moments, count, fingerprint = known
    if features.count < 2 or moments.count < 2:
        raise UserError(f"a covariance needs at least 2 images, got {features.count} and {moments.count}")
    value = features.moments(part).distance(moments)
    interval = None
    if measuring.bootstrap:
        every = features.all(part)
        interval = bootstrap_interval(
            lambda indices: moments_of([every[indices]]).distance(moments),
            features.count,
            value,
            measuring.bootstrap,
            measuring.seed,
        )
    network = features.network.name
    name = "sFID" if part == "spatial" else "FID" if network.startswith("inception") else "Fréchet distance"
    own = replace(protocol, reference_samples=count, reference_hash=fingerprint)
    return MetricRecord(name, value, own, higher_is_better=False, interval=interval)


def _neighborhoods(
    features: StoredFeatures, reference: StoredFeatures, protocol: MeasurementProtocol, measuring: Measuring
) -> Iterator[MetricRecord]:
    """Yield precision, recall and kernel distance, which need the features of every image."""
    kept = min(_MANIFOLD, reference.count)
    against: dict[Metric, int] = {"precision_recall": kept, "kid": reference.count}
    enough = min(features.count, reference.count) >= 4
    named = [metric for metric in _OF_NEIGHBORS if enough and metric in measuring.metrics]
    wanted = [metric for metric in named if _affordable(metric, features.count + against[metric], measuring)]
    if not wanted:
        return
    protocol = replace(protocol, reference_hash=reference.content)
    real, fake = reference.all(), features.all().to(float64_device(measuring.device))
    if "precision_recall" in wanted:
        found = precision_recall(real[evenly_spaced(kept, len(real))].to(fake.device), fake, k=3)
        own = replace(protocol, reference_samples=kept)
        yield MetricRecord("precision", found.precision, own, higher_is_better=True)
        yield MetricRecord("recall", found.recall, own, higher_is_better=True)
    if "kid" in wanted:
        own = replace(protocol, reference_samples=len(real))
        yield MetricRecord("KID", kernel_distance(real.to(fake.device), fake), own, higher_is_better=False)


def _affordable(metric: Metric, images: int, measuring: Measuring) -> bool:
    """Return whether `images`, samples and reference together, are compared pairwise; print it if they are not."""
    if metric in measuring.required or images <= _COMPARED[float64_device(measuring.device).type]:
        return True
    print(
        f"{metric} is left out: it compares each of {images:,} images with each, which takes hours; "
        f"--metrics {metric} measures it"
    )
    return False
