"""Feature networks by name, for Fréchet distances, probes and alignment.

Every network takes stored pixels, so that samples and reference images are quantized and resized alike.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from vavae.device import to_device
from vavae.errors import UserError
from vavae.io.hashing import weights_fingerprint
from vavae.metrics.frechet import RunningMoments
from vavae.metrics.inception_resize import RESIZE_VERSIONS, Resize

if TYPE_CHECKING:
    from vavae.teachers import Teacher

TEACHER_PREFIX = "teacher:"
_INCEPTIONS: dict[str, Resize] = {
    "inception" if resize == "tensorflow" else f"inception-{resize}": resize for resize in get_args(Resize)
}


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A frozen network from pixels to one feature vector per image.

    Attributes:
        name: Name in recipes and records, with the file of its weights if one was given: see `load_feature_network`.
        fingerprint: sha256 over its weights and preprocessing.
        device: Device of the network.
        compute: Pixels (B, H, W, 3) uint8 on `device` -> features (B, d), or several outputs (B, d) by name; "pool" are
            the features.
        parts: Names of the outputs.
        modules: The modules that `compute` calls, which `vavae.evaluation.features.compiled_features` compiles.
    """

    name: str
    fingerprint: str
    device: torch.device
    compute: Callable[[Tensor], Tensor | Mapping[str, Tensor]]
    parts: tuple[str, ...] = ("pool",)
    modules: tuple[nn.Module, ...] = ()

    @property
    def kind(self) -> str:
        """The name without a file of weights: "inception" for "inception:FILE", "teacher" for a teacher."""
        return self.name.partition(":")[0]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute features (B, d) float32, on the CPU, of pixels (B, H, W, 3) uint8."""
        return self.all_parts(pixels)["pool"].cpu()

    @torch.no_grad()  # tensors of inference mode cannot enter training
    def all_parts(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute all outputs (B, d) float32 by name, on `device`, of pixels (B, H, W, 3) uint8."""
        found = self.compute(to_device(pixels, self.device))
        outputs = {"pool": found} if isinstance(found, Tensor) else found
        return {name: values.float() for name, values in outputs.items()}


def load_feature_network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """Load a feature network.

    Args:
        name: "inception" for the network of FID with the resize of the original graph (as ADM and StyleGAN),
            "inception-pytorch-fid" or "inception-clean" for the resize of these programs. A colon and a file of its
            weights in any published form may follow, for example of a file with logits. "teacher:NAME" for any
            teacher of `vavae.teachers` at its own input size, or "teacher:NAME@SIDE" at another size, which changes
            the numbers. A teacher's feature is its pooled feature, or the mean over its grid if it has none.
        device: Device of the network.

    Raises:
        UserError: The name is unknown, or the weights cannot be loaded.
    """
    device = torch.device(device)
    kind, _, file = name.partition(":")
    if kind in _INCEPTIONS:
        from vavae.metrics.inception import FIDInception

        resize = _INCEPTIONS[kind]
        inception = FIDInception.from_file(file, resize) if file else FIDInception.from_asset(resize)
        version = RESIZE_VERSIONS[resize]
        fingerprint = hashlib.sha256(f"{weights_fingerprint(inception)} {version}".encode()).hexdigest()
        parts = ("pool", "spatial", *(["logits"] if inception.output is not None else []))
        if device.type == "cpu":
            # 8.2 instead of 5.2 images a second on a core (medians of 4 in turns); features differ by 2e-6 at most.
            inception.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        own_name = f"{kind}:{file}" if file else kind
        return FeatureNetwork(own_name, fingerprint, device, inception.to(device).outputs, parts, (inception.layers,))
    if name.startswith(TEACHER_PREFIX):
        from vavae.teachers import load_teacher
        from vavae.teachers.registry import name_and_side

        teacher_name, side = name_and_side(name.removeprefix(TEACHER_PREFIX))
        teacher = load_teacher(teacher_name, input_size=side)
        compute = _pooled_by(teacher.to(device))
        return FeatureNetwork(name, teacher.fingerprint(), device, compute, modules=(teacher.backbone,))
    raise UserError(f'unknown feature network "{name}": {", ".join(_INCEPTIONS)}, or "teacher:" and a teacher')


def _pooled_by(teacher: "Teacher") -> Callable[[Tensor], Tensor]:
    from vavae.data.pixels import to_tensor

    def compute(pixels: Tensor) -> Tensor:
        features = teacher(to_tensor(pixels))
        return features.grid.mean(dim=(2, 3)) if features.pooled is None else features.pooled

    return compute


def feature_moments(network: FeatureNetwork, batches: Iterable[Tensor]) -> RunningMoments:
    """Compute the moments of the features of images in batches (B, H, W, 3) uint8, without keeping the features."""
    return moments_of(network(pixels) for pixels in batches)


def moments_of(features: Iterable[Tensor]) -> RunningMoments:
    """Compute mean and covariance of features that come in parts, (B, d) each.

    Raises:
        UserError: `features` is empty.
    """
    moments: RunningMoments | None = None
    for part in features:
        if moments is None:
            moments = RunningMoments(part.shape[1])
        moments.update(part)
    if moments is None:
        raise UserError("at least one image is needed to compute features, got none")
    return moments
