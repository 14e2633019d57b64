"""What a training needs, from its recipe alone: networks, operations and memory, counted with fake tensors.

Fake tensors have shapes and no values, so nothing is computed and no weights are loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vavae.config.image_size import height_width
from vavae.device import Compute, autocast, without_values
from vavae.flow import FlowConfig
from vavae.losses import LPIPS, TokenizerObjective
from vavae.losses.dino_discriminator import DinoViT
from vavae.stages.joint_alignment import LatentAlignment
from vavae.stages.joint_config import Config as JointConfig
from vavae.stages.tokenizer_config import Config
from vavae.teachers.registry import TeacherSpec
from vavae.tokenizer import AutoencoderKL
from vavae.training.activation_checkpointing import Recomputation, apply_activation_checkpointing
from vavae.training.throughput import StepWork, count_flops, count_peak_bytes
from vavae.transformer import (
    DiTDHConfig,
    LightningDiT,
    LightningDiTConfig,
    Transformer,
    TransformerShape,
    build_transformer,
)


@dataclass(frozen=True)
class TransformerCosts:
    """Costs of `train-dit`."""

    shape: TransformerShape
    flow: FlowConfig
    precision: Compute
    recomputation: Recomputation  # as `transformer.activation_checkpointing` of the recipe

    def work(self, images: int, images_seen: int | None = None) -> StepWork:
        """Return operations, without recomputation, and processed tokens of one image in a training step.

        A token counts by the share of the blocks that process it.

        Args:
            images: Length of the run.
            images_seen: Images before the step; None is the mean over the run, whose last phase may keep all tokens.
        """
        routing, shape, tokens = self.shape.routing, self.shape, self.shape.token_count
        kept = routing.kept(tokens, 0)
        if images_seen is None:
            full = 0.0 if routing.full_after_images is None else max(0, images - routing.full_after_images) / images
        else:
            full = float(routing.kept(tokens, images_seen) == tokens)
        flops = _transformer_flops(shape, kept)
        if full > 0 and kept < tokens:
            flops += full * (_transformer_flops(shape, tokens) - flops)
        depths = shape.depths if isinstance(shape, DiTDHConfig) else (shape.depth,)
        start, stop = shape.routed_blocks
        dropped = (1 - full) * (tokens - kept) * (stop - start) / sum(depths)
        return StepWork(flops, round(tokens - dropped))

    def step_bytes(self, images: int) -> int:
        """Return the peak memory of gradients and activations in a step of `images` images, on a CPU, not compiled."""
        with FakeTensorMode():
            return count_peak_bytes(self._step(images))

    def network(self) -> Transformer:
        """Return the transformer without values."""
        with FakeTensorMode():
            return build_transformer(self.shape)

    def _step(self, count: int) -> Callable[[], object]:
        routing, tokens = self.shape.routing, self.shape.token_count
        kept = tokens if routing.full_after_images is not None else routing.kept(tokens, 0)
        network = build_transformer(self.shape)
        model = partial(network, **_routed(self.shape, count, kept))
        apply_activation_checkpointing(list(network.blocks), self.recomputation)
        flow = replace(self.flow, contrastive=0.0)  # which takes little, and needs two images

        def step() -> None:
            latents = torch.empty(count, self.shape.latent_channels, *self.shape.latent_hw)
            t, labels = torch.empty(count), torch.zeros(count, dtype=torch.int64)
            with autocast(self.precision, latents.device):
                drop, tokens = t < self.shape.label_dropout, _class_tokens(self.shape, count)
                terms = flow.loss(model, latents, labels, torch.empty_like(latents), t, drop, tokens)
            terms["total"].mean().backward()

        return step


@cache
def _transformer_flops(shape: TransformerShape, kept: int) -> float:
    """Return the operations of one image of which the routed blocks see `kept` tokens, forward and backward."""
    with without_values():  # where attention consists of matrix products, which are counted
        model = build_transformer(shape)
        x = torch.empty(1, shape.latent_channels, *shape.latent_hw)
        t, label, noise = torch.empty(1), torch.zeros(1, dtype=torch.int64), torch.empty_like(x)
        routed, tokens = partial(model, **_routed(shape, 1, kept)), _class_tokens(shape, 1)
    return count_flops(lambda: FlowConfig().loss(routed, x, label, noise, t, t < 0, tokens)["total"].sum().backward())


def _class_tokens(shape: TransformerShape, count: int) -> tuple[Tensor, Tensor] | None:
    """Return class tokens and their noise without values, if the transformer has them."""
    channels = shape.class_token
    return None if channels is None else (torch.empty(count, channels), torch.empty(count, channels))


def _routed(shape: TransformerShape, count: int, kept: int) -> dict[str, Tensor]:
    """Return the arguments of a transformer of which the routed blocks see `kept` tokens of each of `count` images."""
    routing, options = shape.routing, {}
    if kept < shape.token_count:
        options["kept"] = torch.zeros(count, kept, dtype=torch.int64)
    if routing.drops_paths:
        options["path_drop"] = torch.zeros(count, dtype=torch.bool)
    return options


@dataclass(frozen=True)
class TokenizerCosts:
    """Costs of `train-tokenizer`, with discriminator and without the teacher's own work."""

    config: Config
    teacher_width: int | None  # channels of the teacher's features; None without a teacher
    precision: Compute

    def flops(self) -> float:
        """Return the operations of one image in a training step."""
        return _tokenizer_flops(self)

    def step_bytes(self, images: int) -> int:
        """Return the peak memory of gradients and activations in a step of `images` images, on a CPU, not compiled."""
        with FakeTensorMode():
            return count_peak_bytes(self._step(images, torch.bfloat16 if self.precision == "bf16" else torch.float32))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        config, width = self.config, self.teacher_width
        channels = config.tokenizer.latent_channels if config.representation is None or width is None else width
        return channels, *config.data.latent_size(config.factor)

    def networks(self) -> tuple[nn.Module, TokenizerObjective]:
        """Return autoencoder and objective without values; of a representation autoencoder the decoder."""
        with FakeTensorMode():
            return self._networks()

    def _networks(self) -> tuple[nn.Module, TokenizerObjective]:
        config, losses = self.config, self.config.objective
        channels, *grid = self.latent_shape
        lpips = LPIPS(losses.perceptual.network) if losses.perceptual.weight > 0 else None
        dino = DinoViT() if losses.adversarial.discriminator.kind == "dino" else None
        objective = TokenizerObjective(losses, channels, self.teacher_width, lpips, dino)
        if config.representation is None:
            return AutoencoderKL(config.tokenizer), objective
        decoder = config.representation.decoder(channels, (grid[0], grid[1]))
        decoder.decode, decoder.last_decoder_layer = decoder.forward, decoder.decoder_pred  # type: ignore[assignment]
        return decoder, objective

    def _step(self, count: int, compute_dtype: torch.dtype) -> Callable[[], object]:
        config, width = self.config, self.teacher_width
        autoencoder, objective = self._networks()

        def step() -> Mapping[str, Tensor]:
            images = torch.empty(count, 3, *height_width(config.data.size)).contiguous(
                memory_format=torch.channels_last
            )
            noise = torch.empty(count, *self.latent_shape)
            return objective.accumulate_gradients(
                autoencoder,
                images,
                noise,
                None if width is None or config.representation else torch.empty(count, width, *self.latent_shape[1:]),
                config.objective.adversarial.start_images,
                latents=None if config.representation is None else torch.empty_like(noise),
                augmentation=torch.empty(3, count, 5),
                compute_dtype=compute_dtype,
            )

        return step


@cache
def _tokenizer_flops(costs: TokenizerCosts) -> float:
    with FakeTensorMode():
        return count_flops(costs._step(1, torch.float32))


@dataclass(frozen=True)
class JointCosts:
    """Costs of `train-joint`, without the teacher's own work."""

    config: JointConfig
    teacher_width: int  # channels of the teacher's features
    precision: Compute
    num_classes: int  # classes of the images

    def flops(self) -> float:
        """Return the operations of one image in a training step.

        The tokenizer's pass through the aligned blocks has no gradients of weights, a third of the operations.
        """
        whole = self.shape.token_count
        aligned = _transformer_flops(replace(self.shape, depth=self.config.alignment.block), whole)
        return self.tokenizer.flops() + _transformer_flops(self.shape, whole) + 2 / 3 * aligned

    def step_bytes(self, images: int) -> int:
        """Return an upper bound of the memory of a step: both networks at their peaks at once."""
        return self.tokenizer.step_bytes(images) + self._of(self.shape).step_bytes(images)

    @property
    def tokenizer(self) -> TokenizerCosts:
        """Costs of the tokenizer alone."""
        return TokenizerCosts(self.config, self.teacher_width, self.precision)

    @property
    def shape(self) -> LightningDiTConfig:
        """Shape of the transformer."""
        channels, *grid = self.tokenizer.latent_shape
        shape = self.config.transformer.resolve(channels, (grid[0], grid[1]), self.num_classes)
        assert isinstance(shape, LightningDiTConfig)
        return shape

    def networks(self) -> dict[str, nn.Module]:
        """Return transformer and alignment without values."""
        with FakeTensorMode():
            shape, alignment = self.shape, self.config.alignment
            return {
                "transformer": LightningDiT(shape),
                "alignment": LatentAlignment(alignment, shape.latent_channels, shape.width, self.teacher_width),
            }

    def _of(self, shape: LightningDiTConfig) -> TransformerCosts:
        config = self.config
        return TransformerCosts(shape, config.flow, self.precision, config.transformer.activation_checkpointing)


# Blocks of the usual vision transformers, by width.
_DEPTHS = {384: 12, 768: 12, 1024: 24, 1152: 27, 1280: 32, 1536: 40, 4096: 40}


def vit_costs(spec: TeacherSpec, input_size: int) -> tuple[float, int] | None:
    """Return operations per image and parameters of a teacher's blocks; None if it is not a usual ViT.

    A block has 12 · width² parameters, each two operations per token, and attention takes 4 · tokens² · width.
    """
    if not spec.name.startswith(("dinov2", "dinov3", "mae", "clip", "siglip2")):
        return None
    depth, tokens = _DEPTHS[spec.width], (input_size // spec.patch) ** 2 + 1
    parameters = 12 * spec.width**2 * depth
    return 2.0 * parameters * tokens + 4.0 * tokens**2 * spec.width * depth, parameters
