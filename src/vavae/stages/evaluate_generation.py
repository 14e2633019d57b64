"""How generated images compare with real ones: FID, sFID, Inception Score, precision and recall, KID, FDr."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vavae.errors import UserError
from vavae.files import written_whole
from vavae.metrics import (
    FeatureNetwork,
    InceptionScore,
    MetricRecord,
    Protocol,
    RunningMoments,
    bootstrap_interval,
    kernel_distance,
    precision_recall,
)
from vavae.metrics.frechet import read_npz, stored_count
from vavae.stages.evaluate_images import npz_images
from vavae.stages.evaluate_store import BlockStore, ImageBlocks, StoredFeatures, extract
from vavae.stages.images import spread
from vavae.training.parallel import World

Metric = Literal["frechet", "sfid", "inception_score", "precision_recall", "kid"]
METRICS: tuple[Metric, ...] = ("frechet", "sfid", "inception_score", "precision_recall", "kid")
_PARTS: dict[Metric, str] = {"sfid": "spatial", "inception_score": "logits"}
_OF_NEIGHBOURS: tuple[Metric, ...] = ("precision_recall", "kid")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance that a file holds.

    Attributes:
        pool: Of the pooled features.
        spatial: Of the spatial features; None where the file has none.
        count: Number of images behind them; None where the file does not say.
        fingerprint: sha256 over the numbers.
    """

    pool: RunningMoments
    spatial: RunningMoments | None
    count: int | None
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Reference:
    """What samples are measured against.

    Attributes:
        name: What to call it.
        features: Features of its images by network; empty where there are statistics only.
        statistics: Statistics of a file by network: where they are, they stand for its images in distances.
        side: Side of its images in pixels, where it is known.
    """

    name: str
    features: dict[str, StoredFeatures]
    statistics: dict[str, Statistics]
    side: int | None

    def moments(self, network: str, part: str = "pool") -> tuple[RunningMoments, int | None, str] | None:
        """Moments, number of images and hash; None where it cannot tell.

        Raises:
            UserError: It knows nothing of this network.
        """
        if network in self.statistics:
            stored = self.statistics[network]
            found = stored.pool if part == "pool" else stored.spatial
            return None if found is None else (found, stored.count, stored.fingerprint)
        if network not in self.features:
            raise UserError(f"{self.name}: holds no images, and no statistics of {network} features")
        features = self.features[network]
        return features.moments(part), features.count, features.content


def read_statistics(path: str | Path, networks: Sequence[FeatureNetwork]) -> dict[str, Statistics]:
    """Reference statistics `mu`, `sigma` (and `mu_s`, `sigma_s`) of an npz, as ADM and others publish them.

    Files of `save_statistics` say which network they are of; others are taken for the Inception of the graph.

    Raises:
        UserError: The file cannot be read, or its numbers cannot be statistics of a network it is said to be of.
    """
    arrays = read_npz(path)
    if not {"mu", "sigma"} <= arrays.keys():
        return {}
    found = {}
    for network in networks:
        if "network_hash" in arrays:
            fits = str(arrays["network_hash"]) == network.fingerprint
        else:
            fits = network.kind == "inception"
        if fits:
            found[network.name] = _statistics(arrays, str(path), network)
    return found


def _statistics(arrays: dict[str, np.ndarray], path: str, network: FeatureNetwork) -> Statistics:
    fingerprint = hashlib.sha256()
    # What the network says of any image tells how many numbers there must be.
    said = network.all_parts(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))

    def moments(mean: str, covariance: str, part: str) -> RunningMoments:
        found = RunningMoments.from_arrays(arrays, path, mean, covariance)
        if part in said and said[part].shape[1] != len(found.mean):
            wanted = said[part].shape[1]
            raise UserError(
                f"{path}: {mean} has {len(found.mean):,} numbers, the features of {network.name} {wanted:,}"
            )
        for name in (mean, covariance):
            fingerprint.update(np.ascontiguousarray(arrays[name].astype(np.float64)).data)
        return found

    pool = moments("mu", "sigma", "pool")
    spatial = moments("mu_s", "sigma_s", "spatial") if {"mu_s", "sigma_s"} <= arrays.keys() else None
    return Statistics(pool, spatial, stored_count(arrays, path), fingerprint.hexdigest())


def save_statistics(path: str | Path, features: StoredFeatures) -> None:
    """Write `mu`, `sigma`, the same with `_s` where there are spatial features, and which network they are of."""
    arrays: dict[str, object] = {"count": features.count, "network": features.network.name}
    arrays["network_hash"] = features.network.fingerprint
    for part, suffix in (("pool", ""), ("spatial", "_s")):
        if part in features.parts:
            moments = features.moments(part)
            arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"] = moments.mean.numpy(), moments.covariance.numpy()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(Path(path)) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numbers and text become arrays


def parts_for(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Which parts of features the metrics need."""
    return ("pool", *(_PARTS[metric] for metric in metrics if metric in _PARTS))


def open_reference(
    images: ImageBlocks | None,
    npz: str | None,
    networks: Sequence[FeatureNetwork],
    metrics: Sequence[Metric],
    store: BlockStore,
    batch_size: int,
    processes: World,
    required: Sequence[Metric] = (),
    samples: int | None = None,
) -> Reference:
    """The reference: `images`, or the images and statistics of an npz.

    Args:
        images: The images, where there is no npz.
        npz: The file.
        networks: Feature networks.
        metrics: What shall be measured against it, as far as networks and reference allow.
        store: Where features go.
        batch_size: Images at once.
        processes: Who shares the work.
        required: Those of `metrics` that must come out.
        samples: Number of samples that will be measured against it, where it is known.

    Raises:
        UserError: There is none, the npz holds neither, or only statistics of other networks; or, before any feature
            is computed, one of `required` cannot be measured with these networks, this reference and so few samples.
    """
    statistics: dict[str, Statistics] = {}
    if npz is not None:
        statistics, images = read_statistics(npz, networks), npz_images(npz)
    if images is None:
        if npz is None:
            raise UserError("reference: neither images nor an npz")
        lacking = [network.name for network in networks if network.name not in statistics]
        if lacking:
            raise UserError(
                f"reference: {npz} holds no images, and no statistics of the network {lacking[0]}: "
                "statistics of one network mean nothing to another"
            )
    name = npz or (images.name if images is not None else "")
    for metric in required:
        lack = _what_lacks(metric, networks, statistics, name, None if images is None else images.count, samples)
        if lack is not None:
            raise UserError(f"metrics: {metric} needs {lack}")
    if images is None:
        return Reference(name, {}, statistics, None)
    if images.count < 2 and any(network.name not in statistics for network in networks):
        raise UserError(f"reference: {name} holds one image only; at least 2 are needed")
    parts = [part for part in parts_for(metrics) if part != "logits"]
    features = extract(images, networks, store, batch_size, processes, "reference", parts)
    return Reference(name, features, statistics, images.side)


def _what_lacks(
    metric: Metric,
    networks: Sequence[FeatureNetwork],
    statistics: dict[str, Statistics],
    reference: str,
    images: int | None,
    samples: int | None,
) -> str | None:
    """What a metric needs that is not there, for a message; None where it can be measured with one network at least.

    `images` is the number of the reference's images, None where there are statistics only.
    """
    able = [network for network in networks if _PARTS.get(metric, "pool") in network.parts]
    named = ", ".join(network.name for network in networks)
    if metric == "inception_score" and not able:
        return f"logits, which {named} cannot give: name a file of weights that has them, --network inception:FILE"
    if metric == "sfid":
        if not able:
            return f"spatial features, which {named} cannot give: --network inception has them"
        if all(n.name in statistics and statistics[n.name].spatial is None for n in able):
            return f"mu_s and sigma_s, which {reference} does not hold"
    if metric in _OF_NEIGHBOURS:
        if images is None:
            return f"the features of real images, and {reference} holds statistics only"
        few = [count for count in (samples, images) if count is not None and count < 4]
        if few:
            return f"at least 4 samples and 4 reference images, not {few[0]}"
    return None


@dataclass(frozen=True)
class Measuring:
    """What is measured, and how.

    Attributes:
        metrics: Which metrics.
        manifold_reference: Reference images for precision and recall, spread evenly; 10,000 in ADM's protocol.
        bootstrap: Repetitions for an interval of Fréchet distances; 0 for none.
        seed: Of the bootstrap.
        device: Where distances between features are computed.
    """

    metrics: tuple[Metric, ...] = METRICS
    manifold_reference: int = 10_000
    bootstrap: int = 0
    seed: int = 0
    device: str = "cpu"


def distance_name(network: str, part: str = "pool") -> str:
    """What the Fréchet distance on a network's features is called."""
    if part == "spatial":
        return "sFID"
    return "FID" if network.startswith("inception") else "Fréchet distance"


def generation_records(
    samples: dict[str, StoredFeatures],
    reference: Reference,
    protocol: Protocol,
    measuring: Measuring,
    real: dict[str, StoredFeatures] | None = None,
) -> list[MetricRecord]:
    """All metrics that the features allow.

    Args:
        samples: Features of the samples by network.
        reference: The reference.
        protocol: What is known already of how it was measured.
        measuring: Which metrics.
        real: Features of other real images, whose distance to the reference is the unit of FDr.

    Raises:
        UserError: A set holds too few images, or `real` are the images of the reference.
    """
    records: list[MetricRecord] = []
    ratios = []
    for name, features in samples.items():
        own = replace(
            protocol,
            samples=features.count,
            feature_network=name,
            feature_network_hash=features.network.fingerprint,
            reference=reference.name,
        )
        if "frechet" in measuring.metrics:
            records += _distances(features, reference, own, measuring, "pool")
            if real is not None:
                if _is_reference(real[name], reference):
                    raise UserError(f"real_split: its images are those of the reference {reference.name} itself")
                floor = _distances(real[name], reference, own, replace(measuring, bootstrap=0), "pool")
                ratios.append(records[-1].value / floor[0].value)
        if "sfid" in measuring.metrics and "spatial" in features.parts:
            records += _distances(features, reference, own, measuring, "spatial")
        if "inception_score" in measuring.metrics and "logits" in features.parts:
            score = InceptionScore()
            for logits in features.blocks("logits"):
                score.update(logits)
            bare = replace(own, reference=None)
            records.append(MetricRecord("Inception Score", score.compute(), bare, higher_is_better=True))
        if name in reference.features:
            records += _neighbourhoods(features, reference.features[name], own, measuring)
    if ratios:
        value = float(np.mean(ratios))
        networks = ", ".join(samples)
        hashes = hashlib.sha256(
            "".join(features.network.fingerprint for features in samples.values()).encode()
        ).hexdigest()
        assert real is not None
        first = next(iter(real.values()))
        own = replace(
            records[0].protocol,
            feature_network=networks,
            feature_network_hash=hashes,
            split=f"unit: {first.count:,} real images {first.content[:12]}",
        )
        records.append(MetricRecord("FDr", value, own, higher_is_better=False))
    return records


def _is_reference(images: StoredFeatures, reference: Reference) -> bool:
    """Whether the reference is of the same images, be it their statistics only."""
    known = reference.moments(images.network.name)
    return known is not None and torch.equal(known[0].mean, images.moments("pool").mean)


def _distances(
    features: StoredFeatures, reference: Reference, protocol: Protocol, measuring: Measuring, part: str
) -> list[MetricRecord]:
    known = reference.moments(features.network.name, part)
    if known is None:
        return []
    moments, count, fingerprint = known
    if features.count < 2 or moments.count < 2:
        raise UserError(f"a covariance needs at least 2 images, not {features.count} and {moments.count}")
    value = features.moments(part).distance(moments)
    interval = None
    if measuring.bootstrap:
        every = features.all(part)

        def resampled(indices: Tensor) -> float:
            drawn = RunningMoments(every.shape[1])
            drawn.update(every[indices])
            return drawn.distance(moments)

        interval = bootstrap_interval(resampled, features.count, value, measuring.bootstrap, measuring.seed)
    protocol = replace(protocol, reference_samples=count, reference_hash=fingerprint)
    name = distance_name(features.network.name, part)
    return [MetricRecord(name, value, protocol, higher_is_better=False, interval=interval)]


def _neighbourhoods(
    features: StoredFeatures, reference: StoredFeatures, protocol: Protocol, measuring: Measuring
) -> list[MetricRecord]:
    """Precision, recall and kernel distance, which need the features themselves."""
    wanted = set(_OF_NEIGHBOURS) & set(measuring.metrics)
    if not wanted or min(features.count, reference.count) < 4:
        return []
    fake, real = features.all().to(measuring.device), reference.all().to(measuring.device)
    protocol = replace(protocol, reference_hash=reference.content, reference_samples=reference.count)
    records = []
    if "precision_recall" in wanted:
        kept = min(measuring.manifold_reference, len(real))
        found = precision_recall(real[spread(kept, len(real)).to(real.device)], fake, k=3)
        own = replace(protocol, reference_samples=kept)
        records.append(MetricRecord("precision", found.precision, own, higher_is_better=True))
        records.append(MetricRecord("recall", found.recall, own, higher_is_better=True))
    if "kid" in wanted:
        records.append(MetricRecord("KID", kernel_distance(real, fake), protocol, higher_is_better=False))
    return records
