"""The adversarial term: a patch discriminator and its hinge loss (arXiv 1611.07004, 2012.09841)."""

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vavae.config.image_size import Size, format_size, height_width
from vavae.errors import UserError
from vavae.losses.checks import check_not_negative


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of a discriminator; the defaults are VA-VAE's `PatchDiscriminator`.

    Attributes:
        kind: `patch`, or `dino` for heads on the tokens of a frozen DINO (RAE, `DinoDiscriminator`).
        dino: The DINO ViT, a hub model or a folder with a ViT of transformers; RAE takes ViT-S/8.
        base_channels: Channels of the first convolution; they double per layer, up to eightfold.
        layers: Convolutions of stride 2 (`disc_num_layers` in the published code). Images need at least
            3 · 2^layers pixels a side; 2 suits 32-pixel images.
    """

    base_channels: int = 64
    layers: int = 3
    kind: Literal["patch", "dino"] = "patch"
    dino: str = "facebook/dino-vits8"

    def __post_init__(self) -> None:
        if self.kind not in ("patch", "dino"):
            raise UserError(f"discriminator.kind must be patch or dino, got {str(self.kind)[:20]}")
        # Far above any real network; without a bound a mistyped recipe could take all time or memory.
        for name, most in (("base_channels", 65_536), ("layers", 16)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"discriminator.{name} must be from 1 to {most:,}, got {str(getattr(self, name))[:20]}")


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial term.

    Attributes:
        enabled: Whether to train a discriminator.
        weight: Factor of the term, multiplied with the adaptive weight (`disc_weight` in the published code).
        start_images: Images seen before the term and the discriminator's training begin (`disc_start`). The
            published 5001 counts two optimizer steps per batch of 256: 640,000 images.
        discriminator_start_images: Images seen before the discriminator's training begins, at most `start_images`;
            null is `start_images` (`disc_upd_start` in RAE's code).
        adaptive: Scale the term's gradient to the reconstruction's gradient at the decoder's last layer.
        maximum: Upper bound of the adaptive weight.
        augment: Change brightness, saturation, contrast and place of the discriminator's images (DiffAugment).
        discriminator: Shape of the discriminator.
    """

    enabled: bool = True
    weight: float = 0.5
    start_images: int = 640_000
    adaptive: bool = True
    maximum: float = 1e4
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    discriminator_start_images: int | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        check_not_negative("adversarial", self, "weight", "start_images", "maximum")
        early = self.discriminator_start_images
        if early is not None and not 0 <= early <= self.start_images:
            limits = f"from 0 to start_images {self.start_images:,}"
            raise UserError(f"adversarial.discriminator_start_images must be {limits}, got {early:,}")

    @property
    def first_images(self) -> int:
        """Images seen when the discriminator first runs."""
        early = self.discriminator_start_images
        return self.start_images if early is None else early

    def check_size(self, size: Size, images: int) -> None:
        """Check that images of `size` are large enough for the discriminator, if it starts within `images` images.

        Raises:
            UserError: The images are too small.
        """
        shape = self.discriminator
        needed = 3 * 2**shape.layers if shape.kind == "patch" else 1
        if self.enabled and self.first_images < images and min(height_width(size)) < needed:
            raise UserError(
                f"data.size must be at least {needed} pixels a side for objective.adversarial.discriminator.layers "
                f"{shape.layers}, got {format_size(size)}"
            )


class PatchDiscriminator(nn.Module):
    """Convolutions whose logits are positive for real patches of an image and negative for reconstructed ones.

    In training, batch normalization uses the statistics of the batch of this process;
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` makes processes share them. State dict: `main.{0,2,3,5,6,…}.*`,
    as published.

    Args:
        config: The shape; the published one if None.
        in_channels: Channels of an image.
    """

    def __init__(self, config: DiscriminatorConfig | None = None, in_channels: int = 3) -> None:
        super().__init__()
        config = config or DiscriminatorConfig()
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
        """Return logits (B, 1, h, w) of (B, 3, H, W) images in [-1, 1]; 30×30 logits for 256 pixels."""
        return self.main(images)


def generator_loss(logits_fake: Tensor) -> Tensor:
    """Return −mean D(x̂), 0-dim, which the autoencoder minimizes."""
    return -logits_fake.mean()


def discriminator_hinge_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Return ½ (mean relu(1 − D(x)) + mean relu(1 + D(x̂))), 0-dim, which the discriminator minimizes."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())
