"""The adversarial term: a discriminator of patches and its hinge loss (arXiv 1611.07004, 2012.09841)."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from vavae.config.image_size import Size, format_size, height_width
from vavae.errors import UserError


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The shape of a `PatchDiscriminator`; the defaults are the published ones.

    Attributes:
        base_channels: width of the first convolution; it doubles per layer, up to eightfold.
        layers: convolutions of stride 2. Images need 3 · 2^layers pixels a side; 2 suits 32-pixel images.
    """

    base_channels: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        for name in ("base_channels", "layers"):
            if getattr(self, name) < 1:
                raise UserError(f"discriminator.{name}: {getattr(self, name)} is not positive")

    @property
    def smallest_side(self) -> int:
        """Side of the smallest images it takes, in pixels."""
        return 3 * 2**self.layers


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial term.

    Attributes:
        enabled: whether there is a discriminator at all.
        weight: factor of the term, on top of the adaptive weight.
        start_images: images seen before the term and the discriminator's training begin. The published
            5001 counts two optimizer steps per batch of 256: 640,000 images.
        adaptive: balance the gradient with the reconstruction's at the decoder's last layer.
        maximum: upper bound of the adaptive weight.
        discriminator: shape of the discriminator.
    """

    enabled: bool = True
    weight: float = 0.5
    start_images: int = 640_000
    adaptive: bool = True
    maximum: float = 1e4
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        for name in ("weight", "start_images", "maximum"):
            if getattr(self, name) < 0:
                raise UserError(f"adversarial.{name}: {getattr(self, name)} is negative")

    def check_size(self, size: Size, images: int) -> None:
        """Check that images of a run are large enough for the discriminator, if it begins within so many of them.

        Raises:
            UserError: They are not.
        """
        needed = self.discriminator.smallest_side
        if self.enabled and self.start_images < images and min(height_width(size)) < needed:
            raise UserError(
                f"data.size: {format_size(size)} is too small for objective.adversarial.discriminator.layers "
                f"{self.discriminator.layers}, which need {needed} pixels a side"
            )


class PatchDiscriminator(nn.Module):
    """Convolutions that call each patch of an image real (positive) or reconstructed (negative).

    Batch normalisation uses each batch's own statistics in training. Where processes must agree, convert with
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm`.
    State dict: `main.{0,2,3,5,6,…}.*`, as published.

    Args:
        config: the shape.
        in_channels: channels of an image.
    """

    def __init__(self, config: DiscriminatorConfig | None = None, in_channels: int = 3) -> None:
        super().__init__()
        config = config or DiscriminatorConfig()
        self.config = config
        width = config.base_channels
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, config.layers + 1):
            previous, width = width, config.base_channels * min(2**i, 8)
            stride = 2 if i < config.layers else 1
            layers += [
                nn.Conv2d(previous, width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of (B, 3, H, W) images in [-1, 1]; 30×30 logits at 256 pixels.

        Raises:
            UserError: if the images are too small for the number of layers.
        """
        smallest = self.config.smallest_side
        if min(images.shape[2:]) < smallest:
            raise UserError(
                f"discriminator.layers: {self.config.layers} layers need images of {smallest} pixels a side, "
                f"not {images.shape[2]}×{images.shape[3]}"
            )
        return self.main(images)


def generator_loss(logits_fake: Tensor) -> Tensor:
    """−mean D(x̂), 0-dim: what the autoencoder minimises."""
    return -logits_fake.mean()


def discriminator_hinge_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """½ (mean relu(1 − D(x)) + mean relu(1 + D(x̂))), 0-dim: what the discriminator minimises."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())
