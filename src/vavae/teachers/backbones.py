"""Backbones around the vision models of transformers: select the patch tokens and arrange them in a grid."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.teachers.base import Backbone, TeacherFeatures
from vavae.teachers.tiny_vit import TinyViT


def to_grid(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h·w, D) patch tokens, row by row -> (B, D, h, w)."""
    batch, _, width = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, width, *size)


class TokenBackbone(Backbone):
    """Vision transformer whose output is a sequence: prefix tokens, then patches.

    Args:
        model: A vision model of transformers.
        prefix: Number of tokens before the patches: class token and registers.
        interpolate: Whether the model needs `interpolate_pos_encoding` to accept other input sizes.
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
        # (B, prefix + h·w, D) -> (B, D, h, w)
        return TeacherFeatures(to_grid(output.last_hidden_state[:, self.prefix :], size), output.pooler_output)


class MaskedAutoencoderBackbone(Backbone):
    """Encoder of a masked autoencoder, without masking.

    The model sorts patches by random noise even if it keeps all of them; increasing noise keeps their order.
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
    """SigLIP 2 for any aspect ratio; its input is patches instead of an image."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width, self.patch = _width_and_patch(model)

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        batch, channels = pixels.shape[:2]
        size = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
        cells = pixels.view(batch, channels, size[0], self.patch, size[1], self.patch)  # (B, C, h, p, w, p)
        # (B, h, w, p, p, C) -> (B, h·w, p·p·C)
        patches = cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, size[0] * size[1], -1)
        output = self.model(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device),
            spatial_shapes=torch.tensor([size], device=pixels.device).expand(batch, 2),
        )
        return TeacherFeatures(to_grid(output.last_hidden_state, size), output.pooler_output)


class SamBackbone(Backbone):
    """Image encoder of SAM with its neck; it accepts a single input size."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.width, self.patch, self.fixed_size = config.output_channels, config.patch_size, config.image_size

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        return TeacherFeatures(self.model(pixel_values=pixels).last_hidden_state, None)


class ResNetBackbone(Backbone):
    """Last feature map of a ResNet, and its mean."""

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
    """Image encoder of MobileSAM with its neck."""

    width = TinyViT.width
    patch = TinyViT.patch

    def __init__(self, model: TinyViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        return TeacherFeatures(self.model(pixels), None)


def resize_positions(model: Any, size: tuple[int, int]) -> None:
    """Resize a model's position embeddings to the grid `size`, bicubic with antialiasing.

    The published system does this; transformers resizes without antialiasing.
    """
    # (1, 1 + h·w, D): class token, then patches
    positions = model.embeddings.position_embeddings.data
    grid = to_grid(positions[:, 1:], (round((positions.shape[1] - 1) ** 0.5),) * 2)
    resized = F.interpolate(grid.float(), size=size, mode="bicubic", align_corners=False, antialias=True)
    # (1, D, h', w') -> (1, h'·w', D)
    both = torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
    model.embeddings.position_embeddings = nn.Parameter(both, requires_grad=False)


def _width_and_patch(model: Any) -> tuple[int, int]:
    patch = model.config.patch_size
    return model.config.hidden_size, patch if isinstance(patch, int) else patch[0]
