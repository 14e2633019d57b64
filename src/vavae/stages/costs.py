"""What a training needs, from its recipe alone: networks, operations and memory, counted with fake tensors.

Fake tensors have shapes and no values, so nothing is computed and no weights are loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vavae.config.image_size import height_width
from vavae.device import Compute, autocast
from vavae.flow import FlowConfig
from vavae.losses import LPIPS, TokenizerObjective
from vavae.teachers.registry import TEACHERS, TeacherSpec
from vavae.tokenizer import AutoencoderKL
from vavae.training.activation_checkpointing import Recomputation, apply_activation_checkpointing
from vavae.training.throughput import count_flops, count_peak_bytes
from vavae.transformer import LightningDiT, LightningDiTConfig

if TYPE_CHECKING:
    from vavae.stages.train_tokenizer import Config as TokenizerRecipe


@dataclass(frozen=True)
class TransformerCosts:
    """Costs of `train-dit`.

    Attributes:
        shape: The transformer.
        flow: Its loss.
        precision: Compute precision.
        recomputation: As `transformer.activation_checkpointing` of the recipe.
    """

    shape: LightningDiTConfig
    flow: FlowConfig
    precision: Compute
    recomputation: Recomputation

    def flops(self) -> float:
        """Return the operations of one image in a training step, without recomputation."""
        with torch.device("meta"):  # where attention consists of matrix products, which are counted
            model = LightningDiT.from_config(self.shape)
            x = torch.empty(1, self.shape.latent_channels, *self.shape.latent_hw)
            t, label = torch.empty(1), torch.zeros(1, dtype=torch.int64)
        return count_flops(lambda: model(x, t, label).sum().backward())

    def step_bytes(self, images: int) -> int:
        """Return the peak memory of gradients and activations in a step of `images` images, on a CPU, not compiled."""
        with FakeTensorMode():
            return count_peak_bytes(self._step(images))

    def network(self) -> LightningDiT:
        """Return the transformer without values."""
        with FakeTensorMode():
            return LightningDiT.from_config(self.shape)

    def _step(self, count: int) -> Callable[[], object]:
        model = LightningDiT.from_config(self.shape)
        apply_activation_checkpointing(list(model.blocks), self.recomputation)

        def step() -> None:
            latents = torch.empty(count, self.shape.latent_channels, *self.shape.latent_hw)
            t, labels = torch.empty(count), torch.zeros(count, dtype=torch.int64)
            with autocast(self.precision, latents.device):
                drop = t < self.shape.label_dropout
                terms = self.flow.loss(model, latents, labels, torch.empty_like(latents), t, drop)
            terms["total"].mean().backward()

        return step


@dataclass(frozen=True)
class TokenizerCosts:
    """Costs of `train-tokenizer`, with discriminator and without the teacher's own work.

    Attributes:
        config: The recipe.
        teacher_width: Channels of the teacher's features; None without a teacher.
        precision: Compute precision.
    """

    config: "TokenizerRecipe"
    teacher_width: int | None
    precision: Compute

    def flops(self) -> float:
        """Return the operations of one image in a training step."""
        with FakeTensorMode():
            return count_flops(self._step(1, torch.float32))

    def step_bytes(self, images: int) -> int:
        """Return the peak memory of gradients and activations in a step of `images` images, on a CPU, not compiled."""
        with FakeTensorMode():
            return count_peak_bytes(self._step(images, torch.bfloat16 if self.precision == "bf16" else torch.float32))

    def networks(self) -> tuple[AutoencoderKL, TokenizerObjective]:
        """Return autoencoder and objective without values."""
        with FakeTensorMode():
            return self._networks()

    def _networks(self) -> tuple[AutoencoderKL, TokenizerObjective]:
        config, losses = self.config, self.config.objective
        lpips = LPIPS(losses.perceptual.network) if losses.perceptual.weight > 0 else None
        objective = TokenizerObjective(losses, config.tokenizer.latent_channels, self.teacher_width, lpips)
        return AutoencoderKL.from_config(config.tokenizer), objective

    def _step(self, count: int, compute_dtype: torch.dtype) -> Callable[[], object]:
        config, width = self.config, self.teacher_width
        autoencoder, objective = self._networks()

        def step() -> Mapping[str, Tensor]:
            images = torch.empty(count, 3, *height_width(config.data.size)).contiguous(
                memory_format=torch.channels_last
            )
            noise = torch.empty(count, *config.latent_shape)
            features = None if width is None else torch.empty(count, width, *config.latent_shape[1:])
            start = config.objective.adversarial.start_images
            return objective.accumulate_gradients(
                autoencoder, images, noise, features, start, compute_dtype=compute_dtype
            )

        return step


# Blocks of the usual vision transformers, by width.
_DEPTHS = {384: 12, 768: 12, 1024: 24, 1152: 27, 1280: 32, 1536: 40, 4096: 40}


def teacher_spec(name: str) -> TeacherSpec | None:
    """Return the teacher of a short name or hub id; None for any other."""
    return next((spec for spec in TEACHERS if name in (spec.name, spec.source)), None)


def vit_costs(spec: TeacherSpec, input_size: int) -> tuple[float, int] | None:
    """Return operations per image and parameters of a teacher's blocks; None if it is not a usual ViT.

    A block has 12 · width² parameters, each two operations per token, and attention takes 4 · tokens² · width.
    """
    if not spec.name.startswith(("dinov2", "dinov3", "mae", "clip", "siglip2")):
        return None
    depth, tokens = _DEPTHS[spec.width], (input_size // spec.patch) ** 2 + 1
    parameters = 12 * spec.width**2 * depth
    return 2.0 * parameters * tokens + 4.0 * tokens**2 * spec.width * depth, parameters
