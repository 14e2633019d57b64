"""A teacher: a frozen vision foundation model that turns images into a grid of features."""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import resample_grid


@dataclass(frozen=True)
class TeacherFeatures:
    """What a teacher says about a batch of images.

    Attributes:
        grid: (B, D, h, w) float32, one feature per patch, first axis of the grid from top to bottom.
        pooled: (B, D') float32, one feature per image, or None where the model has none.
    """

    grid: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Normalisation:
    """How images in [0, 1] become a model's input: (image - mean) / std for each of the channels R, G, B.

    Attributes:
        name: What to call it.
        mean: Per channel.
        std: Per channel.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = Normalisation("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Normalisation("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Keras' first models: 0 to 255 minus the mean; the mean is on the same scale.
CAFFE = Normalisation("caffe", (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255))
# The published VA-VAE feeds its own range [-1, 1] to every teacher (published-system quirk, confirmed by its author).
PUBLISHED = Normalisation("published", HALF.mean, HALF.std)


class Backbone(nn.Module):
    """The network inside a teacher: normalised pixels (B, 3, H, W) -> `TeacherFeatures`.

    Attributes:
        width: D, channels of the grid.
        patch: Pixels a feature stands for on each axis.
        fixed_size: The only input size it takes, or None.
    """

    width: int
    patch: int
    fixed_size: int | None = None

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        raise NotImplementedError


class Teacher(nn.Module):
    """A backbone with its preprocessing; always in eval mode, without gradients, at a precision of its own.

    Args:
        name: What to call it.
        backbone: The network.
        input_size: (height, width) images are resized to.
        normalisation: Statistics its input is normalised with. With `PUBLISHED`, images are also resized without
            antialiasing, as the published system does.
        dtype: Type of matrix products and convolutions (autocast); float32 if None. Norms and softmax stay float32,
            and an autocast around the call changes nothing.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        input_size: tuple[int, int],
        normalisation: Normalisation,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.backbone = backbone
        self.width = backbone.width
        self.patch = backbone.patch
        self.input_size = input_size
        self.normalisation = normalisation
        self.dtype = dtype or torch.float32
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (normalisation.mean, normalisation.std))
        # Of images in [-1, 1]: ((x + 1) / 2 - mean) / std.
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)
        self.scale: Tensor
        self.shift: Tensor
        self._fingerprint: str | None = None
        self.requires_grad_(False)
        self.train(False)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w) of the grid it answers with."""
        return self.input_size[0] // self.patch, self.input_size[1] // self.patch

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode whatever is asked: a teacher is never trained."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherFeatures:
        """Features of images (B, 3, H, W) in [-1, 1], of any size."""
        pixels = self.preprocess(images)
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            features = self.backbone(pixels)
        pooled = None if features.pooled is None else features.pooled.float()
        return TeacherFeatures(features.grid.float(), pooled)

    def features_at(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """The feature grid resampled to `size` (h, w), say a latent's: (B, D, h, w) float32."""
        return resample_grid(self(images).grid, size)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize (bilinear) and normalise images (B, 3, H, W) in [-1, 1]; float32."""
        if not images.is_floating_point():
            raise UserError(f"images: {images.dtype} is not in [-1, 1]; vavae.data.to_tensor makes it so")
        pixels = images.float()
        if tuple(pixels.shape[-2:]) != self.input_size:
            antialias = self.normalisation is not PUBLISHED
            pixels = F.interpolate(
                pixels, size=self.input_size, mode="bilinear", align_corners=False, antialias=antialias
            )
        return pixels * self.scale + self.shift

    def fingerprint(self) -> str:
        """sha256 over the weights, the preprocessing and the precision: equal means equal features."""
        if self._fingerprint is None:
            described = (self.input_size, self.normalisation, str(self.dtype), type(self.backbone).__name__)
            digest = hashlib.sha256(repr(described).encode())
            for name, tensor in sorted(self.backbone.state_dict().items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint
