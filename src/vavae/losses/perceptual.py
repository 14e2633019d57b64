"""LPIPS: distance between images in the features of a classification network (arXiv 1801.03924, version 0.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.config.image_size import Size, format_size, height_width
from vavae.errors import UserError

Network = Literal["vgg16", "alexnet"]


@dataclass(frozen=True)
class PerceptualConfig:
    """The perceptual term.

    Attributes:
        weight: factor of LPIPS, which is added to every element's error; 0 switches it off.
        network: whose features are compared: "vgg16" (published) or "alexnet" (an eighth of the work).
    """

    weight: float = 1.0
    network: Network = "vgg16"

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UserError(f"perceptual.weight: {self.weight} is negative")
        if self.network not in ("vgg16", "alexnet"):
            raise UserError(f"perceptual.network: {self.network!r} is neither 'vgg16' nor 'alexnet'")

    def check_size(self, size: Size) -> None:
        """Check that images of a run are large enough for the network.

        Raises:
            UserError: They are not.
        """
        if self.weight > 0 and min(height_width(size)) < smallest_side(self.network):
            raise UserError(
                f"data.size: {format_size(size)} is too small for objective.perceptual with {self.network}, which "
                f"needs {smallest_side(self.network)}; objective.perceptual.weight 0 does without"
            )


@dataclass(frozen=True)
class _Layer:
    """One convolution: its geometry, the max-pooling before it, and whether its rectified output is compared."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    padding: int = 1
    pool: int = 0  # kernel of the max-pooling before the convolution, stride 2; 0 is none
    tap: bool = False


def _vgg16() -> list[_Layer]:
    layers = []
    previous = 3
    for block, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for i in range(depth):
            pool = 2 if block > 0 and i == 0 else 0
            layers.append(_Layer(previous, width, kernel=3, pool=pool, tap=i == depth - 1))
            previous = width
    return layers


def _alexnet() -> list[_Layer]:
    return [
        _Layer(3, 64, kernel=11, stride=4, padding=2, tap=True),
        _Layer(64, 192, kernel=5, padding=2, pool=3, tap=True),
        _Layer(192, 384, kernel=3, pool=3, tap=True),
        _Layer(384, 256, kernel=3, tap=True),
        _Layer(256, 256, kernel=3, tap=True),
    ]


_NETWORKS = {"vgg16": _vgg16, "alexnet": _alexnet}


def smallest_side(network: Network) -> int:
    """Side in pixels of the smallest images of which every layer sees at least one position."""
    side = 1
    for layer in reversed(_NETWORKS[network]()):
        side = max(1, (side - 1) * layer.stride + layer.kernel - 2 * layer.padding)
        if layer.pool:
            side = (side - 1) * 2 + layer.pool
    return side


# ImageNet's mean and standard deviation, moved from [0, 1] to [-1, 1]
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity; frozen, and without the published training code's dropout.

    Features of five layers are normalised to unit length over channels, their squared differences weighted
    per channel, averaged over positions, and summed over layers.
    State dict: `features.{i}.weight`, `features.{i}.bias`, numbered over convolutions; `heads.{k}.weight`
    (1, C, 1, 1), numbered over compared layers.

    Args:
        network: "vgg16" or "alexnet".
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Network = "vgg16") -> None:
        super().__init__()
        if network not in _NETWORKS:
            raise UserError(f"network: {network!r} is neither 'vgg16' nor 'alexnet'")
        self._network: Network = network
        self._smallest = smallest_side(network)
        self.layers = _NETWORKS[network]()
        self.features = nn.ModuleList(
            nn.Conv2d(a.in_channels, a.out_channels, a.kernel, a.stride, a.padding) for a in self.layers
        )
        self.heads = nn.ModuleList(
            nn.Conv2d(layer.out_channels, 1, 1, bias=False) for layer in self.layers if layer.tap
        )
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def pretrained(cls, network: Network = "vgg16") -> Self:
        """LPIPS with its published weights, fetched on first use."""
        from vavae import assets

        model = cls(network)
        model.load_state_dict(assets.load(f"lpips-{network}"))
        return model

    def extract(self, images: Tensor) -> list[Tensor]:
        """Unit-length features of (B, 3, H, W) images in [-1, 1]: one (B, C, h, w) per compared layer.

        The convolutions follow autocast; the features are float32 at least.

        Raises:
            UserError: The images are too small for the network.
        """
        if min(images.shape[2:]) < self._smallest:
            raise UserError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels are too small for LPIPS with "
                f"{self._network}, which needs {self._smallest} (in a recipe: data.size)"
            )
        h = (images - self.shift) / self.scale
        taps = []
        for layer, convolution in zip(self.layers, self.features, strict=True):
            if layer.pool:
                h = F.max_pool2d(h, layer.pool, stride=2)
            h = F.relu(convolution(h))
            if layer.tap:
                wide = h.float() if h.dtype in (torch.bfloat16, torch.float16) else h
                # vector_norm has gradient 0, not NaN, where every channel is 0
                taps.append(wide / (torch.linalg.vector_norm(wide, dim=1, keepdim=True) + 1e-10))
        return taps

    def distance(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """LPIPS of two images' features from `extract`, (B,)."""
        total = torch.zeros((), device=first[0].device, dtype=first[0].dtype)
        for head, a, b in zip(self.heads, first, second, strict=True):
            # the mean over positions first: the head is linear, and C numbers are left to weigh
            weight = head.get_parameter("weight").flatten()
            total = total + ((a - b).square().mean((2, 3)) * weight).sum(1)
        return total

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """LPIPS of (B, 3, H, W) images in [-1, 1], one value per pair, (B,)."""
        return self.distance(self.extract(first), self.extract(second))
