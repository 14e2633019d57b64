"""A teacher's own grid as the latent (RAE, arXiv 2510.11690)."""

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import to_grid
from vavae.io.hashing import digest
from vavae.teachers.base import PUBLISHED, Teacher

# Where models of transformers have their last norm.
_LAST_NORMS = ("layernorm", "post_layernorm", "vision_model.post_layernorm", "norm")


class LatentEncoder(nn.Module):
    """Images -> the teacher's patch tokens after its last norm, without the norm's weight and bias.

    The teacher is frozen, and its last norm loses its affine part, so it must not be used as a teacher afterwards.
    Images are resized as published: bicubic, without antialiasing.

    Args:
        teacher: A vision transformer of a family whose last norm is known.
        layers: Sum the normalized tokens of this many last blocks (RAEv2, arXiv 2605.18324); 1 is the last alone.

    Attributes:
        name: The teacher's name.
        width: C, the teacher's channels.
        grid: (h, w) of the latents.

    Raises:
        UserError: The teacher has no last norm that is known, fewer blocks than `layers`, or the published VA-VAE's
            normalization, which is none of its own.
    """

    def __init__(self, teacher: Teacher, layers: int = 1) -> None:
        super().__init__()
        self.teacher, self.name = teacher, teacher.name
        self.width, self.grid, self.layers = teacher.width, teacher.grid_size, layers
        model = getattr(teacher.backbone, "model", teacher.backbone)
        modules = dict(model.named_modules())
        norm = next((modules[name] for name in _LAST_NORMS if name in modules), None)
        if not isinstance(norm, nn.LayerNorm):
            raise UserError(f"teacher '{teacher.name}' must be a ViT with a last LayerNorm to be a latent")
        if teacher.normalization is PUBLISHED:
            raise UserError("teacher.normalization must be default for a latent, got published")
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
        self._norm = [norm]  # in a list, so that it is not registered twice
        blocks = max((m for m in modules.values() if isinstance(m, nn.ModuleList)), key=len)
        if not 1 <= layers <= len(blocks):
            raise UserError(f"layers must be from 1 to the teacher's {len(blocks)} blocks, got {layers}")
        self._blocks = list(blocks[-layers:])

    def fingerprint(self) -> str:
        """Return a sha256 over all that the latents depend on, precision included."""
        return digest("latent", self.teacher.fingerprint(), self.layers)

    def features_at(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the latents (B, C, h, w) of images; `size` must be their own, since latents are not resampled."""
        assert size == self.grid
        return self(images)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return latents (B, C, h, w) float32 of images (B, 3, H, W) in [-1, 1]; not normalized."""
        teacher = self.teacher
        pixels = teacher.preprocess(images, "bicubic")
        outputs: list[Tensor] = []

        def keep(block: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs.append(output if isinstance(output, Tensor) else output[0])

        hooks = [block.register_forward_hook(keep) for block in self._blocks]
        try:
            with torch.autocast(images.device.type, dtype=teacher.dtype, enabled=teacher.dtype != torch.float32):
                teacher.backbone(pixels)
                tokens = sum(self._norm[0](output) for output in outputs)  # (B, prefix + h·w, C)
        finally:
            for hook in hooks:
                hook.remove()
        return to_grid(tokens[:, -self.grid[0] * self.grid[1] :].float(), self.grid)
