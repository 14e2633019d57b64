"""Numbers with their protocol: a metric without it cannot be compared."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Protocol:
    """How a number was measured; what does not apply is None.

    Attributes:
        samples: Number of images, samples or latents it was computed over.
        reference_samples: Number of reference images behind it.
        split: Which images: "train", "test", or the name of a set.
        label_protocol: How labels of generated images were chosen: "random" per image, or "balanced" over classes.
        solver: Name of the ODE solver.
        steps: Grid points of the solver, as published (250 points are 249 Euler evaluations).
        shift: Time shift of the grid.
        guidance_scale: Scale of classifier-free guidance; 1 is none.
        guidance_interval: Times between which guidance acts.
        guidance_channels: Number of leading channels it acts on; None is all.
        seed: Seed of the samples.
        dtype: Compute type of the generator or tokenizer.
        posterior: "sample" or "mean" of the tokenizer's posterior.
        image_size: Side of the images in pixels.
        preprocessing: How images were cropped and quantised.
        feature_network: Name of the feature network.
        feature_network_hash: Its fingerprint.
        reference: Where the reference statistics come from.
        reference_hash: Their fingerprint.
        checkpoint: Which weights: a path or hub id.
        checkpoint_hash: Their fingerprint.
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
    image_size: int | None = None
    preprocessing: str | None = None
    feature_network: str | None = None
    feature_network_hash: str | None = None
    reference: str | None = None
    reference_hash: str | None = None
    checkpoint: str | None = None
    checkpoint_hash: str | None = None


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
    """

    name: str
    value: float
    protocol: Protocol
    unit: str = ""
    higher_is_better: bool | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: what does not apply is left out, and numbers that are not finite become text."""
        plain = asdict(self)
        plain["value"] = self.value if math.isfinite(self.value) else str(self.value)
        plain["protocol"] = {key: value for key, value in plain["protocol"].items() if value is not None}
        return json.loads(json.dumps(plain, allow_nan=False))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; unknown keys raise TypeError."""
        protocol = dict(plain["protocol"])
        if "guidance_interval" in protocol:
            protocol["guidance_interval"] = tuple(protocol["guidance_interval"])
        return cls(**plain | {"value": float(plain["value"]), "protocol": Protocol(**protocol)})

    def differences(self, other: "MetricRecord") -> list[str]:
        """Names of the protocol's fields in which two records differ, so that a comparison can say so."""
        return [f.name for f in fields(Protocol) if getattr(self.protocol, f.name) != getattr(other.protocol, f.name)]
