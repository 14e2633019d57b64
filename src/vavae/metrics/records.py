"""Numbers with their protocol: a metric without it cannot be compared."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from vavae.config.image_size import Size, as_size


@dataclass(frozen=True)
class MeasurementProtocol:
    """How a number was measured; what does not apply is None.

    Attributes:
        samples: Number of images, samples or latents it was computed over.
        reference_samples: Number of reference images behind it.
        split: Which images: "train", "test", or the name of a set.
        label_protocol: How labels of generated images were chosen: "random" per image, or "balanced" over classes.
        solver: Name of the solver; `euler_maruyama` is that of the stochastic equation.
        steps: Grid points of the solver, as published (250 points are 249 Euler evaluations).
        shift: Time shift of the grid.
        guidance_scale: Scale of classifier-free guidance; 1 is none.
        guidance_interval: Times between which guidance acts.
        guidance_channels: Number of leading channels it acts on; None is all.
        seed: Seed of the samples, be it of a generator or of the tokenizer's posterior.
        dtype: Compute type of the generator or tokenizer: fp32, tf32 (float32 with TF32 products on GPUs) or bf16.
        posterior: "sample" or "mean" of the tokenizer's posterior.
        image_size: Of the images in pixels: one number for squares, else (height, width).
        preprocessing: How images were cropped and quantised.
        feature_network: Name of the feature network.
        feature_network_hash: Its fingerprint.
        reference: Where the reference statistics come from.
        reference_hash: Their fingerprint.
        checkpoint: Which weights, or which folder or file of samples: a path or hub id.
        checkpoint_hash: Fingerprint of the weights, or of the samples' pixels.
        convention: Of reconstructions: "strict" or "published".
    """

    samples: int
    reference_samples: int | None = None
    split: str | None = None
    label_protocol: Literal["random", "balanced"] | None = None
    solver: str | None = None
    steps: int | None = None
    shift: float | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_channels: int | None = None
    seed: int | None = None
    dtype: str | None = None
    posterior: Literal["sample", "mean"] | None = None
    image_size: Size | None = None
    preprocessing: str | None = None
    feature_network: str | None = None
    feature_network_hash: str | None = None
    reference: str | None = None
    reference_hash: str | None = None
    checkpoint: str | None = None
    checkpoint_hash: str | None = None
    convention: Literal["strict", "published"] | None = None


# What a comparison is about, so that it may differ.
_COMPARED = frozenset({"checkpoint", "checkpoint_hash"})
# A name and the hash of what it names: where both records have the hash, it alone decides.
_NAMED_BY_HASH = {"feature_network": "feature_network_hash", "reference": "reference_hash"}


@dataclass(frozen=True)
class MetricRecord:
    """One measured number.

    Attributes:
        name: What was measured, such as "psnr" or "frechet_distance".
        value: The number.
        protocol: How.
        unit: Unit of the number; empty for none.
        higher_is_better: Direction of improvement; None where there is none.
        versions: Versions of the libraries that took part.
        interval: Where the number lies in 95 of 100 repetitions with other images, by bootstrap; None if not asked for.
    """

    name: str
    value: float
    protocol: MeasurementProtocol
    unit: str = ""
    higher_is_better: bool | None = None
    versions: dict[str, str] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: what does not apply is left out, and numbers that are not finite become text."""
        plain = asdict(self)
        plain["value"] = self.value if math.isfinite(self.value) else str(self.value)
        plain["protocol"] = {key: value for key, value in plain["protocol"].items() if value is not None}
        if self.interval is None:
            del plain["interval"]
        return json.loads(json.dumps(plain, allow_nan=False))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; unknown keys raise TypeError."""
        protocol = dict(plain["protocol"])
        if "guidance_interval" in protocol:
            protocol["guidance_interval"] = tuple(protocol["guidance_interval"])
        if "image_size" in protocol:
            protocol["image_size"] = as_size("image_size", protocol["image_size"])
        changed = {"value": float(plain["value"]), "protocol": MeasurementProtocol(**protocol)}
        if "interval" in plain:
            changed["interval"] = tuple(plain["interval"])
        return cls(**plain | changed)

    def differences(self, other: "MetricRecord") -> list[str]:
        """Names of the protocol's fields in which two records differ, so that a comparison can say so."""
        return [
            f.name
            for f in fields(MeasurementProtocol)
            if getattr(self.protocol, f.name) != getattr(other.protocol, f.name)
        ]

    def obstacles(self, other: "MetricRecord") -> list[str]:
        """The differences that forbid to compare the two numbers.

        All but what is compared (the checkpoint) and names of networks and references of equal hash, which are the
        same thing in another place.
        """
        same = {
            name
            for name, digest in _NAMED_BY_HASH.items()
            if getattr(self.protocol, digest) is not None
            and getattr(self.protocol, digest) == getattr(other.protocol, digest)
        }
        return [name for name in self.differences(other) if name not in _COMPARED | same]
