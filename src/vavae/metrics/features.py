"""Networks whose features Fréchet distances, probes and alignment are computed on, by name.

Every network takes stored pixels, so that samples and reference images are quantised and resized alike.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.metrics.frechet import RunningMoments

if TYPE_CHECKING:
    from vavae.teachers import Teacher

TEACHER_PREFIX = "teacher:"


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A frozen network from pixels to one feature vector per image.

    Attributes:
        name: As in recipes and records: "inception", "teacher:NAME" or "teacher:NAME@SIDE".
        fingerprint: sha256 over its weights (and a teacher's preprocessing).
        device: Where it runs.
        compute: Pixels (B, H, W, 3) uint8 on `device` -> (B, d).
    """

    name: str
    fingerprint: str
    device: torch.device
    compute: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, 3) uint8 -> features (B, d) float32, on the CPU."""
        return self.compute(pixels.to(self.device)).float().cpu()


def weights_fingerprint(network: nn.Module) -> str:
    """sha256 over the names, shapes and values of all parameters and buffers, as hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_feature_network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """Load a feature network.

    Args:
        name: "inception" for the network of FID; "teacher:NAME" for any teacher of `vavae.teachers`, at its own
            input size, or "teacher:NAME@SIDE" at another, which is faster and gives other numbers. Of a teacher
            the pooled feature is taken, or the mean over the grid where it has none.
        device: Where it shall run.

    Raises:
        UserError: There is no such network, or its weights cannot be had.
    """
    device = torch.device(device)
    if name == "inception":
        from vavae.metrics.inception import FIDInception

        inception = FIDInception.from_asset()
        return FeatureNetwork(name, weights_fingerprint(inception), device, inception.to(device))
    if name.startswith(TEACHER_PREFIX):
        from vavae.teachers import load_teacher

        teacher_name, _, side = name.removeprefix(TEACHER_PREFIX).rpartition("@")
        if not teacher_name or not side.isdigit():
            teacher_name, side = name.removeprefix(TEACHER_PREFIX), ""
        teacher = load_teacher(teacher_name, input_size=int(side) if side else None)
        return FeatureNetwork(name, teacher.fingerprint(), device, _pooled_by(teacher.to(device)))
    raise UserError(f'unknown feature network "{name}": "inception", or "teacher:" and the name of a teacher')


def _pooled_by(teacher: "Teacher") -> Callable[[Tensor], Tensor]:
    from vavae.data.transforms import to_tensor

    def compute(pixels: Tensor) -> Tensor:
        features = teacher(to_tensor(pixels))
        return features.grid.mean(dim=(2, 3)) if features.pooled is None else features.pooled

    return compute


def extract_features(network: FeatureNetwork, batches: Iterable[Tensor]) -> Tensor:
    """Features of all images in order, (N, d) float32 on the CPU.

    Args:
        network: The feature network.
        batches: Pixels, (B, H, W, 3) uint8 each.
    """
    features = [network(pixels) for pixels in batches]
    if not features:
        raise UserError(f"there are no images to compute {network.name} features of")
    return torch.cat(features)


def feature_moments(network: FeatureNetwork, batches: Iterable[Tensor]) -> RunningMoments:
    """Mean and covariance of the features of all images, without keeping the features.

    Args:
        network: The feature network.
        batches: Pixels, (B, H, W, 3) uint8 each.
    """
    moments: RunningMoments | None = None
    for pixels in batches:
        features = network(pixels)
        if moments is None:
            moments = RunningMoments(features.shape[1])
        moments.update(features)
    if moments is None:
        raise UserError(f"there are no images to compute {network.name} features of")
    return moments
