"""Numbers with their protocol, without which they cannot be compared."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from vavae.config.image_size import Size, as_size


@dataclass(frozen=True)
class MeasurementProtocol:
    """How a number was measured. Fields that do not apply are None.

    Attributes:
        samples: Number of images, samples or latents it was computed over.
        reference_samples: Number of reference images behind it.
        split: Set of images: "train", "test", or the name of a set.
        label_protocol: Labels of generated images: "random" per image, or "balanced" over classes.
        solver: Name of the solver; `euler_maruyama` solves the stochastic equation.
        steps: Grid points of the solver, as published (250 points are 249 Euler evaluations).
        shift: Time shift of the grid.
        end: Last point of the grid before the shift; 1 is data.
        guidance_scale: Guidance scale; 1 means without guidance.
        guidance_interval: Times between which guidance acts.
        guidance_channels: Number of leading channels that are guided; None guides all.
        guidance_kind: "cfg" (classifier-free), "zero_star" (CFG-Zero*), …
        zero_init_steps: Steps at the start that do not move.
        weak_model: Path or hub id of the weaker generator of autoguidance.
        weak_model_hash: Fingerprint of its weights.
        seed: Seed of the samples of a generator or of the tokenizer's posterior.
        dtype: Compute type of the generator or tokenizer: fp32, tf32 (float32 with TF32 products on GPUs) or bf16.
        posterior: "sample" or "mean" of the tokenizer's posterior.
        image_size: Size of the images in pixels: one number for squares, else (height, width).
        preprocessing: How images were cropped and quantized.
        feature_network: Name of the feature network.
        feature_network_hash: Its fingerprint.
        reference: Origin of the reference statistics.
        reference_hash: Their fingerprint.
        checkpoint: Path or hub id of the weights, or path of the samples.
        checkpoint_hash: Fingerprint of the weights, or of the samples' pixels.
        convention: Convention of reconstructions: "strict" or "published".
    """

    samples: int
    reference_samples: int | None = None
    split: str | None = None
    label_protocol: Literal["random", "balanced"] | None = None
    solver: str | None = None
    steps: int | None = None
    shift: float | None = None
    end: float | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_channels: int | None = None
    guidance_kind: str | None = None
    zero_init_steps: int | None = None
    weak_model: str | None = None
    weak_model_hash: str | None = None
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


# The subject of a comparison, which may differ.
_COMPARED = frozenset({"checkpoint", "checkpoint_hash"})
# Names, and hashes of the named things: if both records have the hash, only the hash is compared.
_NAMED_BY_HASH = {
    "feature_network": "feature_network_hash",
    "reference": "reference_hash",
    "weak_model": "weak_model_hash",
}


@dataclass(frozen=True)
class MetricRecord:
    """One measured number.

    Attributes:
        name: Name of the metric as displayed and stored, such as "PSNR" or "Fréchet distance".
        value: The number.
        protocol: How it was measured.
        unit: Unit of the number; empty if it has none.
        higher_is_better: Direction of improvement; None if there is none.
        versions: Versions of the libraries used.
        interval: 95 % bootstrap interval; None if it was not requested.
    """

    name: str
    value: float
    protocol: MeasurementProtocol
    unit: str = ""
    higher_is_better: bool | None = None
    versions: dict[str, str] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values. Fields that are None are left out; numbers that are not finite become text."""
        plain = asdict(self)
        plain["value"] = self.value if math.isfinite(self.value) else str(self.value)
        plain["protocol"] = {key: value for key, value in plain["protocol"].items() if value is not None}
        if self.interval is None:
            del plain["interval"]
        return json.loads(json.dumps(plain, allow_nan=False))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """Return the record of which `to_dict` made `plain`. Unknown keys raise TypeError."""
        protocol = dict(plain["protocol"])
        if "guidance_interval" in protocol:
            protocol["guidance_interval"] = tuple(protocol["guidance_interval"])
        if "image_size" in protocol:
            protocol["image_size"] = as_size("image_size", protocol["image_size"])
        changed = {"value": float(plain["value"]), "protocol": MeasurementProtocol(**protocol)}
        if "interval" in plain:
            changed["interval"] = tuple(plain["interval"])
        return cls(**plain | changed)

    def obstacles(self, other: "MetricRecord") -> list[str]:
        """Return the names of the protocol's fields that differ and so forbid comparing the two numbers.

        The checkpoint may differ, since it is the subject of the comparison. Networks and references of equal hash may
        have different names, since they are the same at another path.
        """
        first, second = vars(self.protocol), vars(other.protocol)
        same = {name for name, key in _NAMED_BY_HASH.items() if first[key] is not None and first[key] == second[key]}
        return [name for name in first if first[name] != second[name] and name not in _COMPARED | same]
