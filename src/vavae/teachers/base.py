"""A teacher: a frozen vision foundation model that maps images to a grid of features."""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import resample_grid


@dataclass(frozen=True)
class TeacherFeatures:
    """Features of a batch of images.

    Attributes:
        grid: (B, D, h, w) float32, one feature per patch, rows from top to bottom.
        pooled: (B, D') float32, one feature per image, or None if the model has none.
    """

    grid: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Normalization:
    """Normalization of images in [0, 1] to a model's input: (image - mean) / std for each of the channels R, G, B.

    Attributes:
        name: Name in messages and fingerprints.
        mean: Mean per channel.
        std: Standard deviation per channel.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = Normalization("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Normalization("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Keras' first models: images in [0, 255] minus the mean, without division.
CAFFE = Normalization("caffe", (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255))
# The published VA-VAE feeds images in [-1, 1] to every teacher, as its author has confirmed.
PUBLISHED = Normalization("published", HALF.mean, HALF.std)


class Backbone(nn.Module):
    """Network of a teacher: normalized pixels (B, 3, H, W) -> `TeacherFeatures`.

    Attributes:
        width: D, channels of the grid.
        patch: Side in pixels of the patch of one feature.
        fixed_size: Side of the only input size that the network accepts, or None.
    """

    width: int
    patch: int
    fixed_size: int | None = None

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        raise NotImplementedError


class Teacher(nn.Module):
    """A backbone with its preprocessing; always in eval mode, without gradients, with its own precision.

    Args:
        name: Name in messages and records.
        backbone: The network.
        input_size: (height, width) that images are resized to.
        normalization: Statistics of the input. With `PUBLISHED`, images are also resized without antialiasing, as
            the published system does.
        dtype: Dtype of matrix products and convolutions (autocast); float32 if None. Norms and softmax stay float32,
            and an autocast around the call has no effect.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        input_size: tuple[int, int],
        normalization: Normalization,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.backbone = backbone
        self.width = backbone.width
        self.patch = backbone.patch
        self.input_size = input_size
        self.normalization = normalization
        self.dtype = dtype or torch.float32
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (normalization.mean, normalization.std))
        # ((x + 1) / 2 - mean) / std for images x in [-1, 1]
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)
        self.scale: Tensor
        self.shift: Tensor
        self._fingerprint: str | None = None
        self.requires_grad_(False)
        self.train(False)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w) of the feature grid."""
        return self.input_size[0] // self.patch, self.input_size[1] // self.patch

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode, since a teacher is never trained."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherFeatures:
        """Return features of images (B, 3, H, W) in [-1, 1], of any size."""
        pixels = self.preprocess(images)
        with torch.autocast(images.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            features = self.backbone(pixels)
        pooled = None if features.pooled is None else features.pooled.float()
        return TeacherFeatures(features.grid.float(), pooled)

    def features_at(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the feature grid resampled to `size` (h, w), for example a latent's: (B, D, h, w) float32."""
        return resample_grid(self(images).grid, size)

    def preprocess(self, images: Tensor, mode: str = "bilinear") -> Tensor:
        """Resize and normalize images (B, 3, H, W) in [-1, 1]; float32. "bicubic" resizes without antialiasing.

        Raises:
            UserError: The images have another shape, or are not floating-point.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise UserError(f"images must be floats in [-1, 1], got {images.dtype}; vavae.data.to_tensor converts them")
        pixels = images.float()
        if tuple(pixels.shape[-2:]) != self.input_size:
            antialias = mode == "bilinear" and self.normalization is not PUBLISHED
            pixels = F.interpolate(pixels, size=self.input_size, mode=mode, align_corners=False, antialias=antialias)
        return pixels * self.scale + self.shift

    def fingerprint(self) -> str:
        """Return a sha256 over weights, preprocessing and precision; equal fingerprints mean equal features."""
        if self._fingerprint is None:
            own, backbone = self.normalization, type(self.backbone).__name__
            # The hash of this text names cached features and is in stored results, so its spelling stays.
            described = f"Normalization(name={own.name!r}, mean={own.mean!r}, std={own.std!r})"
            text = f"({self.input_size!r}, {described}, {str(self.dtype)!r}, {backbone!r})"
            digest = hashlib.sha256(text.encode())
            for name, tensor in sorted(self.backbone.state_dict().items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint
