"""The Inception-v3 of the Fréchet inception distance: the network of December 2015.

It differs from other Inception-v3 networks in its weights, in average pools that exclude the padding, in a
maximum pool in the last block, and in the resizing of images. Weights come from the asset `fid-inception`, whose
tensor names the modules here repeat, or from a file in one of its published forms (`inception_weights`).
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.metrics.inception_resize import RESIZES, Resize

FEATURES = 2048
CLASSES = 1008
_LOGITS = "output.weight"
_SPATIAL = ("mixed_6", 7)  # the spatial features are the first channels of this layer, from its 1x1 convolution
_PREFIX = "layers."
_BATCH_NORM_EPSILON = 1e-3


class _ConvRelu(nn.Conv2d):
    """Convolution and ReLU; batch normalization is folded into weight and bias when weights are loaded."""

    def reset_parameters(self) -> None:
        """Leave weights as they are: random ones would only cost time."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class _Parallel(nn.Module):
    """Parallel branches, joined along the channels in the given order."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], dim=1)


def _average_pool() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _conv(channels: int, out: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: bool = True) -> _ConvRelu:
    """Return a convolution that keeps the size, or without `pad` removes the border."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2) if pad else (0, 0)
    return _ConvRelu(channels, out, sides, stride, padding)


def _tower(*layers: nn.Module) -> nn.Sequential:
    """Return a sequence of layers: an optional pool named `pool`, convolutions named `conv`, `conv_1`, …"""
    named: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in layers:
        convolutions = len([name for name in named if name != "pool"])
        name = "pool" if not isinstance(layer, _ConvRelu) else f"conv_{convolutions}" if convolutions else "conv"
        named[name] = layer
    return nn.Sequential(named)


def _block_35(channels: int, pooled: int) -> _Parallel:
    """Return a block at 35 x 35: 1x1, 5x5, double 3x3, pooled."""
    return _Parallel(
        conv=_conv(channels, 64),
        tower=_tower(_conv(channels, 48), _conv(48, 64, 5)),
        tower_1=_tower(_conv(channels, 64), _conv(64, 96, 3), _conv(96, 96, 3)),
        tower_2=_tower(_average_pool(), _conv(channels, pooled)),
    )


def _block_17(width: int) -> _Parallel:
    """Return a block at 17 x 17: 1x1, 7x7 in two parts, double 7x7 in four parts, pooled."""
    row, column = (1, 7), (7, 1)
    return _Parallel(
        conv=_conv(768, 192),
        tower=_tower(_conv(768, width), _conv(width, width, row), _conv(width, 192, column)),
        tower_1=_tower(
            _conv(768, width),
            _conv(width, width, column),
            _conv(width, width, row),
            _conv(width, width, column),
            _conv(width, 192, row),
        ),
        tower_2=_tower(_average_pool(), _conv(768, 192)),
    )


class _Block8(nn.Module):
    """Block at 8 x 8: two towers end in parallel 1x3 and 3x1 convolutions.

    The last branch has an average pool in the first such block, a maximum pool in the second.
    """

    def __init__(self, channels: int, pool: nn.Module) -> None:
        super().__init__()
        self.conv = _conv(channels, 320)
        self.tower_conv = _conv(channels, 384)
        self.tower_mixed_conv = _conv(384, 384, (1, 3))
        self.tower_mixed_conv_1 = _conv(384, 384, (3, 1))
        self.tower_1_conv = _conv(channels, 448)
        self.tower_1_conv_1 = _conv(448, 384, 3)
        self.tower_1_mixed_conv = _conv(384, 384, (1, 3))
        self.tower_1_mixed_conv_1 = _conv(384, 384, (3, 1))
        self.tower_2_pool = pool
        self.tower_2_conv = _conv(channels, 192)

    def forward(self, x: Tensor) -> Tensor:
        a = self.tower_conv(x)
        b = self.tower_1_conv_1(self.tower_1_conv(x))
        branches = (
            self.conv(x),
            self.tower_mixed_conv(a),
            self.tower_mixed_conv_1(a),
            self.tower_1_mixed_conv(b),
            self.tower_1_mixed_conv_1(b),
            self.tower_2_conv(self.tower_2_pool(x)),
        )
        return torch.cat(branches, dim=1)


class _Layers(nn.Sequential):
    """All layers: inputs (B, 3, 299, 299) -> pool features (B, 2048) and spatial features (B, 17 · 17 · 7)."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        name, channels = _SPATIAL
        h = spatial = inputs
        for stage, layer in self.named_children():
            h = layer(h)
            if stage == name:
                spatial = h[:, :channels].permute(0, 2, 3, 1).flatten(1)
        return h.mean(dim=(2, 3)), spatial


class FIDInception(nn.Module):
    """Network from pixels to features. Construct it with `from_weights`, `from_file` or `from_asset`.

    Args:
        resize: Program whose resize to 299 pixels and scaling come before the network: see `inception_resize`.
        logits: Whether the network has logits.

    Attributes:
        output: (1008, 2048) weights of the logits, without the bias, which the Inception Score leaves out; None
            without logits.
    """

    def __init__(self, resize: Resize = "tensorflow", logits: bool = False) -> None:
        super().__init__()
        self.resize = resize
        self.output = nn.Parameter(torch.zeros(CLASSES, FEATURES), requires_grad=False) if logits else None
        layers: dict[str, nn.Module] = {
            "conv": _conv(3, 32, 3, stride=2, pad=False),
            "conv_1": _conv(32, 32, 3, pad=False),
            "conv_2": _conv(32, 64, 3),
            "pool0": nn.MaxPool2d(3, stride=2),
            "conv_3": _conv(64, 80),
            "conv_4": _conv(80, 192, 3, pad=False),
            "pool1": nn.MaxPool2d(3, stride=2),
            "mixed": _block_35(192, 32),
            "mixed_1": _block_35(256, 64),
            "mixed_2": _block_35(288, 64),
            "mixed_3": _Parallel(
                conv=_conv(288, 384, 3, stride=2, pad=False),
                tower=_tower(_conv(288, 64), _conv(64, 96, 3), _conv(96, 96, 3, stride=2, pad=False)),
                pool=nn.MaxPool2d(3, stride=2),
            ),
            "mixed_4": _block_17(128),
            "mixed_5": _block_17(160),
            "mixed_6": _block_17(160),
            "mixed_7": _block_17(192),
            "mixed_8": _Parallel(
                tower=_tower(_conv(768, 192), _conv(192, 320, 3, stride=2, pad=False)),
                tower_1=_tower(
                    _conv(768, 192),
                    _conv(192, 192, (1, 7)),
                    _conv(192, 192, (7, 1)),
                    _conv(192, 192, 3, stride=2, pad=False),
                ),
                pool=nn.MaxPool2d(3, stride=2),
            ),
            "mixed_9": _Block8(1280, _average_pool()),
            "mixed_10": _Block8(2048, nn.MaxPool2d(3, stride=1, padding=1)),
        }
        self.layers = _Layers(OrderedDict(layers))

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], resize: Resize = "tensorflow") -> "FIDInception":
        """Build from `weight`, `beta`, `mean` and `var` of every convolution, named as in the asset.

        `output.weight` (1008, 2048) is optional and adds logits.

        Raises:
            UserError: Names or shapes differ.
        """
        network = cls(resize, _LOGITS in weights)
        left = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
        if network.output is not None:
            output = left.pop(_LOGITS)
            if output.shape != network.output.shape:
                raise UserError(f"FID Inception weights: {_LOGITS} has shape {tuple(output.shape)}")
            network.output.data = output.float()
        for name, layer in network.layers.named_modules():
            if not isinstance(layer, _ConvRelu):
                continue
            try:
                weight, beta, mean, variance = (
                    left.pop(f"{name}.{part}").double() for part in ("weight", "beta", "mean", "var")
                )
            except KeyError as error:
                raise UserError(f"FID Inception weights: {error.args[0]} is missing") from None
            if weight.shape != layer.weight.shape:
                raise UserError(f"FID Inception weights: {name}.weight has shape {tuple(weight.shape)}")
            scale = torch.rsqrt(variance + _BATCH_NORM_EPSILON)
            layer.weight.data = (weight * scale.view(-1, 1, 1, 1)).float()
            assert layer.bias is not None
            layer.bias.data = (beta - mean * scale).float()
        if left:
            raise UserError(f"FID Inception weights: {min(left)} is unknown")
        return network.eval().requires_grad_(False)

    @classmethod
    def from_asset(cls, resize: Resize = "tensorflow") -> "FIDInception":
        """Build from the asset `fid-inception`, which is fetched on first use."""
        from vavae import assets

        return cls.from_weights(assets.load("fid-inception"), resize)

    @classmethod
    def from_file(cls, path: str | Path, resize: Resize = "tensorflow") -> "FIDInception":
        """Build from a file of weights, in any form that `inception_weights.read_weights` reads."""
        from vavae.metrics.inception_weights import read_weights

        return cls.from_weights(read_weights(Path(path)), resize)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute pool features (B, 2048) float32 of pixels (B, H, W, 3) uint8 of any size."""
        return self.outputs(pixels)["pool"]

    def outputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute all features of pixels (B, H, W, 3) uint8 of any size, float32.

        Returns:
            "pool" (B, 2048): features of FID. "spatial" (B, 2023): features of sFID, seven channels of a 17 x 17 grid,
            position by position in TensorFlow's layout. "logits" (B, 1008), if there are weights for them: logits of
            the Inception Score.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"pixels must be (B, H, W, 3) uint8, got {tuple(pixels.shape)} {pixels.dtype}")
        with full_precision(pixels.device):
            return self.features(RESIZES[self.resize](pixels))

    def features(self, inputs: Tensor) -> dict[str, Tensor]:
        """Compute `outputs` from network inputs (B, 3, 299, 299) in [-1, 1]."""
        found = dict(zip(("pool", "spatial"), self.layers(inputs), strict=True))
        if self.output is not None:
            found["logits"] = found["pool"] @ self.output.T
        return found


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 without TF32 or autocast: distances must not depend on the precision of the models."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch sets it when imported
    usual = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        convolutions.fp32_precision = usual
