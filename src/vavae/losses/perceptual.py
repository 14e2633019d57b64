"""LPIPS: distance of images in the feature space of a classification network (arXiv 1801.03924, version 0.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.config.image_size import Size, format_size, height_width
from vavae.errors import UserError
from vavae.losses.checks import check_not_negative, check_one_of, check_same_shape

Network = Literal["vgg16", "alexnet"]


@dataclass(frozen=True)
class PerceptualConfig:
    """The perceptual term.

    Attributes:
        weight: Factor of LPIPS, which is added to every element's error (`perceptual_weight` in the published
            code); 0 switches it off.
        network: Network whose features are compared: "vgg16" (published) or "alexnet" (an eighth of the
            computation).
    """

    weight: float = 1.0
    network: Network = "vgg16"

    def __post_init__(self) -> None:
        check_not_negative("perceptual", self, "weight")
        check_one_of("perceptual.network", self.network, get_args(Network))

    def check_size(self, size: Size) -> None:
        """Check that images of `size` are large enough for the network.

        Raises:
            UserError: The images are too small.
        """
        if self.weight > 0 and min(height_width(size)) < smallest_side(self.network):
            raise UserError(
                f"data.size must be at least {smallest_side(self.network)} pixels a side for objective.perceptual "
                f"with {self.network}, got {format_size(size)}; objective.perceptual.weight 0 switches it off"
            )


@dataclass(frozen=True)
class _Layer:
    """One convolution, the max-pooling before it, and whether its rectified output is compared."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    padding: int = 1
    pool: int = 0  # kernel of the max-pooling of stride 2 before the convolution; 0 for none
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
    """Return the side in pixels of the smallest images that leave every layer at least one position."""
    side = 1
    for layer in reversed(_NETWORKS[network]()):
        side = max(1, (side - 1) * layer.stride + layer.kernel - 2 * layer.padding)
        if layer.pool:
            side = (side - 1) * 2 + layer.pool
    return side


# ImageNet's mean and standard deviation, converted from [0, 1] to [-1, 1]
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity: frozen, without the dropout of the published training code.

    Features of five layers are normalized to unit length over channels. Their squared differences are weighted per
    channel, averaged over positions, and summed over layers.
    State dict: `features.{i}.weight` and `features.{i}.bias`, numbered over convolutions; `heads.{k}.weight`
    (1, C, 1, 1), numbered over compared layers.

    Args:
        network: "vgg16" or "alexnet".
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Network = "vgg16") -> None:
        super().__init__()
        check_one_of("network", network, get_args(Network))
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
        """Return LPIPS with its published weights, which are fetched on first use."""
        from vavae import assets

        model = cls(network)
        model.load_state_dict(assets.load(f"lpips-{network}"))
        return model

    def extract(self, images: Tensor) -> list[Tensor]:
        """Return unit-length features of (B, 3, H, W) images in [-1, 1]: one (B, C, h, w) per compared layer.

        The convolutions follow autocast; the features are at least float32.

        Raises:
            UserError: The images have another shape or dtype, or are too small for the network.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                f"images must be floats of shape (B, 3, H, W), got {images.dtype} of shape {tuple(images.shape)}"
            )
        if min(images.shape[2:]) < self._smallest:
            raise UserError(
                f"images must be at least {self._smallest} pixels a side for LPIPS with {self._network}, "
                f"got {images.shape[2]} x {images.shape[3]} (in a recipe: data.size)"
            )
        h = (images - self.shift) / self.scale
        taps = []
        for layer, convolution in zip(self.layers, self.features, strict=True):
            if layer.pool:
                h = F.max_pool2d(h, layer.pool, stride=2)
            h = F.relu(convolution(h))
            if layer.tap:
                wide = h.float() if h.dtype in (torch.bfloat16, torch.float16) else h
                # vector_norm has gradient 0 instead of NaN at positions where every channel is 0.
                taps.append(wide / (torch.linalg.vector_norm(wide, dim=1, keepdim=True) + 1e-10))
        return taps

    def distance(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Return LPIPS of two images' features from `extract`: (B,)."""
        total = torch.zeros((), device=first[0].device, dtype=first[0].dtype)
        for head, a, b in zip(self.heads, first, second, strict=True):
            # The head is linear, so the mean over positions comes first and leaves only (B, C) numbers to weight.
            weight = head.get_parameter("weight").flatten()  # (1, C, 1, 1) -> (C,)
            total = total + ((a - b).square().mean((2, 3)) * weight).sum(1)  # (B, C, h, w) -> (B, C) -> (B,)
        return total

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return LPIPS of (B, 3, H, W) images in [-1, 1], one value per pair: (B,)."""
        check_same_shape(first, second, "images")
        return self.distance(self.extract(first), self.extract(second))
