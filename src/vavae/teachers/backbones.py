"""Backbones around the vision models of transformers: select the patch tokens and arrange them in a grid."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.grids import patchify, to_grid, to_tokens
from vavae.teachers.base import Backbone, TeacherFeatures
from vavae.teachers.tiny_vit import TinyViT


class _VisionBackbone(Backbone):
    """A vision model of transformers with its width and patch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        patch = model.config.patch_size
        self.width, self.patch = model.config.hidden_size, patch if isinstance(patch, int) else patch[0]

    def grid_size(self, pixels: Tensor) -> tuple[int, int]:
        """Return the size of the grid of patches of pixels (B, 3, H, W)."""
        return pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch


class TokenBackbone(_VisionBackbone):
    """Vision transformer whose output is a sequence: class token, registers, patches.

    Args:
        model: A vision model of transformers.
        class_token: Whether the sequence begins with a class token.
        interpolate: Whether the model needs `interpolate_pos_encoding` to accept other input sizes.
    """

    def __init__(self, model: Any, class_token: bool = True, interpolate: bool = False) -> None:
        super().__init__(model)
        self.prefix = int(class_token) + getattr(model.config, "num_register_tokens", 0)
        self._options = {"interpolate_pos_encoding": True} if interpolate else {}

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        output = self.model(pixel_values=pixels, **self._options)
        tokens = output.last_hidden_state[:, self.prefix :]  # (B, prefix + h·w, D) -> (B, h·w, D)
        return TeacherFeatures(to_grid(tokens, self.grid_size(pixels)), output.pooler_output)


class MaskedAutoencoderBackbone(_VisionBackbone):
    """Encoder of a masked autoencoder, without masking.

    The model sorts patches by random noise even if it keeps all of them; increasing noise keeps their order.
    """

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        size = self.grid_size(pixels)
        order = torch.arange(size[0] * size[1], device=pixels.device, dtype=torch.float32)
        output = self.model(pixel_values=pixels, noise=order.expand(len(pixels), -1), interpolate_pos_encoding=True)
        tokens = output.last_hidden_state
        return TeacherFeatures(to_grid(tokens[:, 1:], size), tokens[:, 0])


class NaflexBackbone(_VisionBackbone):
    """SigLIP 2 for any aspect ratio; its input is patches instead of an image."""

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        batch, size = len(pixels), self.grid_size(pixels)
        patches = patchify(pixels, self.patch)
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

    width, patch = TinyViT.width, TinyViT.patch

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
    both = torch.cat([positions[:, :1], to_tokens(resized)], dim=1)
    model.embeddings.position_embeddings = nn.Parameter(both, requires_grad=False)
