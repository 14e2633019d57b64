"""Backbones around transformers' vision models: which tokens are patches, and in which order they come."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.teachers.base import Backbone, TeacherFeatures
from vavae.teachers.tiny_vit import TinyViT


def to_grid(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Patch tokens (B, h*w, D), row by row -> (B, D, h, w)."""
    batch, _, width = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, width, *size)


class TokenBackbone(Backbone):
    """A vision transformer that answers with a sequence of tokens: some of its own, then the patches.

    Args:
        model: A transformers vision model.
        prefix: Number of tokens before the patches (class token and registers).
        interpolate: Whether the model must be told to fit its position embeddings to the input size.
    """

    def __init__(self, model: Any, prefix: int, interpolate: bool) -> None:
        super().__init__()
        self.model = model
        self.prefix = prefix
        self.width, self.patch = _width_and_patch(model)
        self._options = {"interpolate_pos_encoding": True} if interpolate else {}

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        output = self.model(pixel_values=pixels, **self._options)
        size = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        return TeacherFeatures(to_grid(output.last_hidden_state[:, self.prefix :], size), output.pooler_output)


class MaskedAutoencoderBackbone(Backbone):
    """A masked autoencoder's encoder with nothing masked.

    The model sorts patches by a random noise even when it keeps all of them; an increasing noise keeps the order.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width, self.patch = _width_and_patch(model)

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        size = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        order = torch.arange(size[0] * size[1], device=pixels.device, dtype=torch.float32)
        output = self.model(pixel_values=pixels, noise=order.expand(len(pixels), -1), interpolate_pos_encoding=True)
        tokens = output.last_hidden_state
        return TeacherFeatures(to_grid(tokens[:, 1:], size), tokens[:, 0])


class NaflexBackbone(Backbone):
    """SigLIP 2's variant for any aspect ratio: takes patches instead of an image."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width, self.patch = _width_and_patch(model)

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        batch, channels = pixels.shape[:2]
        size = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        cells = pixels.view(batch, channels, size[0], self.patch, size[1], self.patch)
        # Within a patch: row, column, channel.
        patches = cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, size[0] * size[1], -1)
        output = self.model(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device),
            spatial_shapes=torch.tensor([size], device=pixels.device).expand(batch, 2),
        )
        return TeacherFeatures(to_grid(output.last_hidden_state, size), output.pooler_output)


class SamBackbone(Backbone):
    """SAM's image encoder with its neck; takes one input size only."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.width, self.patch, self.fixed_size = config.output_channels, config.patch_size, config.image_size

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        return TeacherFeatures(self.model(pixel_values=pixels).last_hidden_state, None)


class ResNetBackbone(Backbone):
    """A ResNet's last feature map, and its mean."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        widths = model.config.hidden_sizes
        self.width = widths[-1]
        # The stem divides by 4, each stage after the first by 2.
        self.patch = 4 << (len(widths) - 1)

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        output = self.model(pixel_values=pixels)
        return TeacherFeatures(output.last_hidden_state, output.pooler_output.flatten(1))


class TinyViTBackbone(Backbone):
    """MobileSAM's image encoder with its neck."""

    width = TinyViT.width
    patch = TinyViT.patch

    def __init__(self, model: TinyViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        return TeacherFeatures(self.model(pixels), None)


def resize_positions(model: Any, size: tuple[int, int]) -> None:
    """Replace a model's position embeddings by ones of grid `size`, bicubic with antialiasing.

    The published system's models fit theirs that way; transformers' do it without antialiasing.
    """
    positions = model.embeddings.position_embeddings.data
    grid = to_grid(positions[:, 1:], (round((positions.shape[1] - 1) ** 0.5),) * 2)
    resized = F.interpolate(grid.float(), size=size, mode="bicubic", align_corners=False, antialias=True)
    both = torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
    model.embeddings.position_embeddings = nn.Parameter(both, requires_grad=False)


def _width_and_patch(model: Any) -> tuple[int, int]:
    patch = model.config.patch_size
    return model.config.hidden_size, patch if isinstance(patch, int) else patch[0]
