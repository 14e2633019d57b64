"""Align hidden states of the transformer with foundation models while it trains (REPA, iREPA).

The tokens after one block are projected to each teacher's channels and compared with its features of the same image
by their cosine (arXiv 2410.06940, 2512.10794). It helps early and hurts late, so its weight is a function of the images
seen, and it can stop for good (HASTE, arXiv 2505.16792).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vavae.config.image_size import format_size, height_width, num_pixels
from vavae.data import (
    ImageSource,
    InMemoryImages,
    LatentDataset,
    flip_horizontally,
    load_images,
    load_pixels,
    to_tensor,
)
from vavae.data.images import ImagesConfig, note_source
from vavae.device import resolve_device, resolve_precision
from vavae.errors import UserError, errors_name
from vavae.flow.networks import config_of
from vavae.grids import to_tokens
from vavae.losses.representation import Projector, ProjectorKind, mean_projection_loss, spatial_normalize
from vavae.stages.kept_features import IN_MEMORY_BYTES, keep_features
from vavae.teachers import FeatureCache, load_teacher
from vavae.teachers.config import TeacherConfig
from vavae.training.config import TrainingConfig
from vavae.training.parallel import World
from vavae.training.throughput import count_flops
from vavae.transformer import DiTDHConfig, TransformerShape


@dataclass(frozen=True)
class ProjectorConfig:
    """The map from hidden tokens to a teacher's channels, which is trained along and not part of the generator.

    Attributes:
        kind: `mlp`, three linear layers (REPA), `linear`, or `conv`, one convolution over the grid of tokens (iREPA).
        hidden: Width of the MLP's hidden layers.
        kernel: Side of the convolution's kernel, odd.
    """

    kind: ProjectorKind = "mlp"
    hidden: int = 2048
    kernel: int = 3

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise UserError(f"alignment.projector.hidden must be at least 1, got {self.hidden}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"alignment.projector.kernel must be an odd number, got {self.kernel}")


@dataclass(frozen=True)
class HiddenAlignmentConfig:
    """Alignment of hidden states with foundation models (REPA, iREPA).

    Attributes:
        data: The images of `latents`, with the options they were encoded with.
        teachers: One or several; their terms are averaged. `cache_features` must be the same for all.
        block: Number of the block, from 1, whose tokens are aligned; null is 8 for 24 blocks and more, 4 for 12 blocks,
            and a third of fewer.
        projector: Map from tokens to the teacher's channels.
        normalization: `none`, or `zscore`: the features minus `alpha` times their mean over each image, divided by
            their deviation there (iREPA).
        alpha: The share of that mean.
        weight: Weight of the term, minus the mean cosine, in the total.
        schedule: `constant`, or `linear`: falling to 0 at `stop_images`.
        stop_images: Images after which the alignment ends, and with it the teachers' work; null never ends it.
    """

    data: ImagesConfig = field(default_factory=ImagesConfig)
    teachers: tuple[TeacherConfig, ...] = (TeacherConfig("dinov2-base"),)
    block: int | None = None
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    normalization: Literal["none", "zscore"] = "none"
    alpha: float = 0.6
    weight: float = 0.5
    schedule: Literal["constant", "linear"] = "constant"
    stop_images: int | None = None

    def __post_init__(self) -> None:
        if not self.teachers:
            raise UserError("alignment.teachers must be at least one teacher, got none")
        if len({teacher.cache_features for teacher in self.teachers}) > 1:
            raise UserError("alignment.teachers must have the same cache_features, got true and false")
        if self.data.crop != "center" or self.data.flip:
            raise UserError(
                "alignment.data.crop must be center and flip false, as for encoding; `flip` mirrors latents"
            )
        if not self.weight > 0:
            raise UserError(f"alignment.weight must be above 0, got {self.weight}; alignment null aligns nothing")
        if self.stop_images is not None and self.stop_images < 1:
            raise UserError(f"alignment.stop_images must be at least 1 or null, got {self.stop_images}")
        if self.schedule == "linear" and self.stop_images is None:
            raise UserError("alignment.stop_images must be a number with schedule linear, which falls to 0 there")

    def block_of(self, depth: int) -> int:
        """Return the number of the aligned block in a network of `depth` blocks.

        Raises:
            UserError: It does not exist.
        """
        if self.block is None:
            return 8 if depth >= 24 else max(1, min(4, depth // 3))
        if not 1 <= self.block <= depth:
            raise UserError(f"alignment.block must be from 1 to {depth}, the transformer's blocks, got {self.block}")
        return self.block

    def weight_at(self, images_seen: int) -> float:
        """Return the weight after `images_seen` images; 0 at the end of the alignment and later."""
        if self.stop_images is None:
            return self.weight
        if images_seen >= self.stop_images:
            return 0.0
        return self.weight * (1 - images_seen / self.stop_images if self.schedule == "linear" else 1)

    def active_share(self, images: int) -> float:
        """Return the share of a run of `images` images in which projectors and teachers work."""
        return 1.0 if self.stop_images is None else min(1.0, self.stop_images / images)


class HiddenTokens:
    """A transformer that keeps the tokens after one block of its last call.

    It returns what the transformer returns without being asked for them. With a class token, the first of the tokens is
    the class token's.

    Attributes:
        tokens: (B, T, width).
    """

    tokens: Tensor

    def __init__(self, model: Callable[..., Any], block: int) -> None:
        self._model = model
        self._block = block
        self.config = config_of(model)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        output = self._model(*arguments, hidden_blocks=(self._block,), **options)
        (self.tokens,) = output.hidden
        alone = output.auxiliary is None and output.class_token is None
        return output.prediction if alone else output


class Projectors(nn.Module):
    """Projectors of hidden tokens to several teachers, with their loss.

    Args:
        config: The recipe.
        shape: The transformer.
        features: Channels of each teacher.

    Attributes:
        block: Number of the aligned block, from 1.
        grid: Rows and columns of tokens.

    Raises:
        UserError: The block does not exist or sees kept tokens only, or a class token cannot be aligned.
    """

    def __init__(self, config: HiddenAlignmentConfig, shape: TransformerShape, features: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.grid = shape.grid
        if isinstance(shape, DiTDHConfig):  # its encoder is aligned
            width, depth = shape.widths[0], shape.depths[0]
        else:
            width, depth = shape.width, shape.depth
        self.block = config.block_of(depth)
        shape.routing.check_block("alignment.block", self.block, depth, shape.token_count)
        own = config.projector
        if (token := getattr(shape, "class_token", None)) is not None:
            if list(features) != [token]:
                raise UserError(
                    f"alignment.teachers must be one of {token} channels, those of transformer.class_token, got "
                    f"{', '.join(map(str, features))}"
                )
            if own.kind == "conv":
                raise UserError(
                    "alignment.projector.kind must be mlp or linear with transformer.class_token, which has no place "
                    "on a grid, got conv"
                )
        self.projectors = nn.ModuleList(
            Projector(width, channels, own.kind, own.hidden, own.kernel) for channels in features
        )

    def flops(self) -> float:
        """Return the operations of one image in a step: for each weight and token two forward, and four backward."""
        return 6.0 * math.prod(self.grid) * sum(weight.numel() for weight in self.parameters() if weight.ndim > 1)

    def forward(self, tokens: Tensor, features: Sequence[Tensor], class_token: Tensor | None = None) -> Tensor:
        """Return the loss, 0-dim, of tokens (B, T, width) for features (B, T, D) of each teacher.

        With the teacher's class token (B, D), that of the transformer is the first of the tokens (REG).
        """
        if self.config.normalization == "zscore":
            features = [spatial_normalize(one, self.config.alpha) for one in features]
        if class_token is not None:
            features = [torch.cat((class_token[:, None], one), dim=1) for one in features]
        return mean_projection_loss([projector(tokens, self.grid) for projector in self.projectors], features)


class HiddenAlignment:
    """The alignment of a run: teachers, the images that latents were encoded from, and trained projectors.

    A mirrored latent is aligned with the features of the mirrored image. Kept features are those of all images and, in
    a second half, of all mirrored ones: a teacher does not see the mirrored grid there, so that would be an
    approximation. The teacher's grid is resampled to that of the tokens by `resample_grid`.

    Args:
        config: The recipe.
        shape: The transformer.
        latents: The latents.
        mirrored: Whether mirrored latents are used.
        training: Device and precision of the run.
        folder: The run folder.
        world: The processes of the run.

    Attributes:
        projectors: What is trained along, on the run's device.

    Raises:
        UserError: The images are not those of the latents, or a block or a teacher does not exist.
    """

    def __init__(
        self,
        config: HiddenAlignmentConfig,
        shape: TransformerShape,
        latents: LatentDataset,
        mirrored: bool,
        training: TrainingConfig,
        folder: Path,
        world: World,
    ) -> None:
        self.config = config
        self._size, self._workers = config.data.size, config.data.workers
        source = world.once(lambda: config.data.open("train", folder, "aligned images"))
        images = world.once(source.fingerprint)
        _check_images(config, latents, source, images)
        world.once(lambda: note_source(folder, source, "aligned images"))
        device = resolve_device(training.device)
        bf16 = resolve_precision(training.precision, device) == "bf16"
        with errors_name("alignment.teachers"):
            self.teachers = [
                load_teacher(
                    teacher.name,
                    input_size=teacher.input_size,
                    image_size=self._size,
                    normalization=teacher.normalization,
                    dtype=torch.bfloat16 if bf16 else torch.float32,
                ).to(device)
                for teacher in config.teachers
            ]
        self._widths = [teacher.width for teacher in self.teachers]
        self.projectors = Projectors(config, shape, self._widths).to(device)
        self._source = source
        self._caches: list[FeatureCache] = []
        if config.teachers[0].cache_features:
            name = f"{images} at {format_size(self._size)}{' and mirrored' if mirrored else ''}"
            listed = name, len(source) * (2 if mirrored else 1), self._variants
            self._keep = partial(
                keep_features, grid=shape.grid, images=listed, folder=folder, device=device, world=world
            )
        elif len(source) * 3 * num_pixels(self._size) <= IN_MEMORY_BYTES:
            self._source = InMemoryImages(source, self._size, self._workers)

    def prepare(self) -> None:
        """Compute the features that are kept; all processes call it."""
        if self.config.teachers[0].cache_features:
            pairs = zip(self.config.teachers, self.teachers, strict=True)
            self._caches = [self._keep(recipe, teacher, workers=self._workers) for recipe, teacher in pairs]

    def _variants(self, numbers: Tensor) -> Tensor:
        """Return images (n, 3, H, W) in [-1, 1]; numbers in the second half are those of mirrored images."""
        count = len(self._source)
        return flip_horizontally(load_images(self._source, numbers % count, self._size), numbers >= count)

    @property
    def workers(self) -> int:
        """Threads that decode images; 0 if kept features are read instead."""
        return 0 if self._caches else self._workers

    def load(self, indices: Tensor, mirrored: Tensor | None, images_seen: int) -> Tensor | None:
        """Return what `loss` needs of some images: kept features of all teachers (B, ΣD, h, w), or pixels.

        Args:
            indices: (B,) int64.
            mirrored: (B,) bool, true for mirrored images; None mirrors none.
            images_seen: Images before the step. None is returned where the weight is 0.
        """
        if self.config.weight_at(images_seen) == 0:
            return None
        if self._caches:
            numbers = indices if mirrored is None else indices + len(self._source) * mirrored
            return torch.cat([cache.get(numbers) for cache in self._caches], dim=1)
        pixels = load_pixels(self._source, indices, self._size)
        return pixels if mirrored is None else torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(2), pixels)

    @torch.no_grad()
    def features(self, loaded: Tensor) -> list[Tensor]:
        """Return the features (B, T, D), float32, of each teacher, from what `load` returned, on the run's device."""
        if self._caches:
            grids: Sequence[Tensor] = loaded.split(self._widths, dim=1)
        else:
            images, grid = to_tensor(loaded), self.projectors.grid
            grids = [teacher.features_at(images, grid) for teacher in self.teachers]
        return [to_tokens(grid.float()) for grid in grids]

    def loss(self, tokens: Tensor, loaded: Tensor, class_token: Tensor | None = None) -> Tensor:
        """Return minus the mean cosine, 0-dim, of projected tokens and features, from what `load` returned."""
        return self.projectors(tokens, self.features(loaded), class_token)

    def flops(self) -> float:
        """Return the operations of one image in a step, of projectors and of teachers whose features are not kept."""
        work = self.projectors.flops()
        if self._caches:
            return work
        image = torch.zeros(1, 3, *height_width(self._size), device=self.teachers[0].scale.device)
        return work + sum(count_flops(partial(teacher, image)) for teacher in self.teachers)

    def bytes(self) -> int:
        """Return the memory of teachers and resident features on the run's device."""
        teachers = sum(value.nbytes for one in self.teachers for value in (*one.parameters(), *one.buffers()))
        return teachers + sum(cache.size_bytes for cache in self._caches if cache.resident)


def _check_images(config: HiddenAlignmentConfig, latents: LatentDataset, source: ImageSource, images: str) -> None:
    """Raise UserError unless latents were encoded from these images, in this order."""
    settings = latents.settings
    if settings is None or not settings.source:
        raise UserError(
            f"alignment needs latents that record their images, which {latents.folder} does not: encode them with "
            "'vavae encode'"
        )
    if settings.image_size != config.data.size:
        raise UserError(
            f"alignment.data.size must be {format_size(settings.image_size)}, as latents were encoded, got "
            f"{format_size(config.data.size)}"
        )
    if settings.source != images:
        raise UserError(
            f"alignment.data must be the {len(latents):,} images that {latents.folder} was encoded from, with the same "
            f"options, got {len(source):,} images with another fingerprint: {config.data.images}"
        )
