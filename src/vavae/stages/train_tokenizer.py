"""Stage 1: train a visual tokenizer that is aligned with a teacher (VA-VAE, arXiv 2501.01423)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vavae import rng
from vavae.config.image_size import format_size, height_width, num_pixels
from vavae.data import (
    ImageSource,
    IndexStream,
    InMemoryImages,
    load_batches,
    load_images,
    load_pixels,
    loaded_ahead,
    to_tensor,
    to_uint8,
)
from vavae.data.images import ImagesConfig
from vavae.data.transforms import flip_horizontally, published_random_crop
from vavae.device import autocast, fits_on, image_memory_format, resolve_device, resolve_precision, to_device
from vavae.errors import UserError
from vavae.evaluation.validation import (
    ReconstructionDistance,
    ReconstructionFrechetConfig,
    check_rhythm,
    mean_terms,
    shard_of,
)
from vavae.losses import LPIPS, ObjectiveConfig, TokenizerObjective
from vavae.models import Tokenizer
from vavae.progress import track
from vavae.report.images import image_grid
from vavae.stages.initial import load_initial
from vavae.teachers import FeatureCache, Teacher, load_teacher
from vavae.teachers.config import TeacherConfig as TeacherConfig
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics, RunningStatistics
from vavae.training.compile import compile_methods
from vavae.training.memory import Chunks
from vavae.training.optimizer import OptimizerConfig
from vavae.training.parallel import World
from vavae.training.run_folder import open_run, stream_seed
from vavae.training.throughput import StepWork, count_flops, count_peak_bytes
from vavae.training.trainer import TrainingConfig, TrainingTask

# A data set up to this size is decoded once and kept in memory.
_IN_MEMORY_BYTES = 2_000_000_000
# Pixels of one pass without gradients: 32 images of 256 px take about 5 GB in the published autoencoder.
_PIXELS_AT_ONCE = 32 * 256**2
# At most this many test images are used for the validation terms.
_VALIDATION_IMAGES = 512


@dataclass(frozen=True)
class StageConfig:
    """A later part of the run in which the alignment differs; null keeps the value.

    Attributes:
        from_images: Images seen when the stage begins.
        weight: Factor of the alignment term.
        cos_margin: Margin of the cosine loss.
        distance_margin: Margin of the distance-matrix loss.
        train_projection: Whether the projection keeps learning.
    """

    from_images: int
    weight: float | None = None
    cos_margin: float | None = None
    distance_margin: float | None = None
    train_projection: bool | None = None

    def __post_init__(self) -> None:
        if self.from_images < 0:
            raise UserError(f"stages.from_images must be at least 0, got {self.from_images}")

    def applied(self, objective: ObjectiveConfig) -> ObjectiveConfig:
        """Return the objective of this stage, given the objective before it."""
        changes = {name: value for name, value in vars(self).items() if name != "from_images" and value is not None}
        return replace(objective, alignment=replace(objective.alignment, **changes))


@dataclass(frozen=True)
class Config:
    """Train a tokenizer.

    Attributes:
        output: Run folder; a second call with the same recipe resumes the run.
        data: Training images.
        tokenizer: Shape of the autoencoder.
        initial: Starting weights: the run folder of an earlier training (for autoencoder, projection and
            discriminator), a tokenizer's folder or hub id, or a published checkpoint; null starts from random weights.
        teacher: Used when the alignment term is enabled.
        objective: All loss terms at the beginning of the run.
        stages: Later changes of the alignment, in the order of `from_images`: the three stages of the published model
            are one recipe.
        optimizer: Optimizer of autoencoder and projection.
        discriminator_optimizer: Optimizer of the discriminator.
        training: How long and how.
        compile: Compile encoder, decoder and LPIPS with torch.compile, each as one graph.
        frechet: Fréchet distance of few reconstructions, every `training.validation_images`.
    """

    output: str = "runs/tokenizer"
    data: ImagesConfig = field(default_factory=ImagesConfig)
    tokenizer: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    initial: str | None = None
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    stages: tuple[StageConfig, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", 1e-4, (0.5, 0.9)))
    discriminator_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", 1e-4, (0.5, 0.9)))
    training: TrainingConfig = field(default_factory=TrainingConfig)
    compile: bool = False
    frechet: ReconstructionFrechetConfig = field(default_factory=ReconstructionFrechetConfig)

    def __post_init__(self) -> None:
        self.data.latent_size(self.tokenizer.factor)  # refuses sizes that do not divide
        self.objective.perceptual.check_size(self.data.size)
        self.objective.adversarial.check_size(self.data.size, self.training.images)
        if self.teacher.cache_features and (self.data.crop == "random" or self.data.flip):
            raise UserError("teacher.cache_features needs data.crop center and data.flip false")
        if any(a.from_images >= b.from_images for a, b in pairwise(self.stages)):
            raise UserError("stages.from_images must rise from stage to stage")
        if self.stages and not self.objective.alignment.enabled:
            raise UserError("stages change the alignment, so objective.alignment.enabled must be true")
        if any(stage.train_projection for stage in self.stages) and not self.objective.alignment.train_projection:
            raise UserError(
                "stages.train_projection needs objective.alignment.train_projection true: a projection that is frozen "
                "at the beginning has no optimizer"
            )
        check_rhythm(self.frechet.samples, self.training.validation_images)
        if self.training.parallel == "shard":
            raise UserError("training.parallel must be replicate for a tokenizer, got shard: its state is small")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of a latent."""
        return self.tokenizer.latent_channels, *self.data.latent_size(self.tokenizer.factor)

    def stage_at(self, images_seen: int) -> int:
        """Return the number of stages that have begun."""
        return sum(images_seen >= stage.from_images for stage in self.stages)

    def objective_at(self, images_seen: int) -> ObjectiveConfig:
        """Return the objective after `images_seen` images."""
        objective = self.objective
        for stage in self.stages[: self.stage_at(images_seen)]:
            objective = stage.applied(objective)
        return objective


@dataclass(frozen=True)
class _Batch:
    positions: Tensor  # (B,) int64
    images: Tensor  # (B, 3, H, W) in [-1, 1]
    features: Tensor | None  # (B, D, h, w)


def compile_tokenizer(autoencoder: AutoencoderKL, objective: TokenizerObjective) -> None:
    """Compile the networks that take most of the time.

    The last layers of encoder and decoder stay outside the graphs: adaptive weights need the gradients of these layers
    only, and a graph computes all of its gradients or none. For the same reason the discriminator is not compiled: it
    has one backward pass for the images and one for its parameters.
    """
    compile_methods(autoencoder.encoder, "features")
    compile_methods(autoencoder.decoder, "features")
    if objective.perceptual is not None:
        compile_methods(objective.perceptual, "extract", "distance")


class TokenizerTask(TrainingTask):
    """The training of a tokenizer: networks, batches, loss, validation, previews."""

    averaged: Sequence[str] = ("autoencoder",)

    def __init__(self, config: Config, source: ImageSource, folder: Path, world: World | None = None) -> None:
        self.config = config
        self.source = source
        self.world = world or World()
        self._folder = folder
        self._stage = 0
        self.device = resolve_device(config.training.device)
        precision = resolve_precision(config.training.precision, self.device)
        self.compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.autocast = lambda: autocast(precision, self.device)
        self.memory_format = image_memory_format(precision, self.device)
        self.teacher, self.features = self._prepare_teacher(folder)
        torch.manual_seed(config.training.seed)
        self.autoencoder = AutoencoderKL.from_config(config.tokenizer)
        self.objective = TokenizerObjective(
            config.objective, config.tokenizer.latent_channels, self.teacher.width if self.teacher else None
        )
        for module in (self.autoencoder, self.objective):
            module.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.modules: Mapping[str, nn.Module] = {"autoencoder": self.autoencoder, "objective": self.objective}
        if config.compile:
            compile_tokenizer(self.autoencoder, self.objective)

    def begin(self) -> str | None:
        if self.config.initial is None:
            return None
        return load_initial(self.config.initial, self.autoencoder, self.objective)

    def _prepare_teacher(self, folder: Path) -> tuple[Teacher | None, FeatureCache | None]:
        config = self.config
        if not config.objective.alignment.enabled:
            return None, None
        teacher = load_teacher(
            config.teacher.name,
            input_size=config.teacher.input_size,
            image_size=config.data.size,
            normalization=config.teacher.normalization,
            dtype=self.compute_dtype,
        ).to(self.device)
        if not config.teacher.cache_features:
            return teacher, None
        images = f"{self.world.once(self.source.fingerprint)} at {format_size(config.data.size)}"
        kept = Path(config.teacher.features_folder or folder / "teacher-features")
        open_cache = partial(FeatureCache, kept, teacher, config.latent_shape[1:], images, len(self.source))
        cache = open_cache()
        load = partial(load_images, self.source, size=config.data.size)
        self.world.once(lambda: cache.fill(load, workers=config.data.workers))
        if not self.world.first:
            cache = open_cache()
        wanted = config.teacher.features_on_device
        # A quarter, where latents may take half: networks and activations need the rest.
        if wanted or (wanted is None and fits_on(self.device, cache.size_bytes, 1 / 4)):
            cache.to_device(self.device)
        return teacher, cache

    def optimizers(self) -> dict[str, tuple[OptimizerConfig, list[nn.Parameter]]]:
        trained = [*self.autoencoder.parameters(), *self.objective.projection_parameters()]
        recipes = {"autoencoder": (self.config.optimizer, trained)}
        discriminator = self.objective.discriminator_parameters()
        if discriminator:
            recipes["discriminator"] = (self.config.discriminator_optimizer, discriminator)
        return recipes

    def batches(self, start: int, data_order: int) -> Iterator[_Batch]:
        training = self.config.training
        seed = stream_seed(training.seed, data_order)
        stream = IndexStream(len(self.source), seed, start, self.world.rank, self.world.size)
        with closing(load_batches(stream, self._load, training.batch_size, self.config.data.workers)) as batches:
            for batch in batches:
                pixels, features = batch.data
                images = to_tensor(to_device(pixels, self.device))
                if self.config.data.flip:
                    mask = rng.uniform(training.seed, "flip", batch.positions, device=self.device) < 0.5
                    images = flip_horizontally(images, mask)
                if self.features is not None and self.features.resident:
                    features = self.features.get(batch.indices)
                yield _Batch(batch.positions, images, None if features is None else features.to(self.device).float())

    def _load(self, indices: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        size, seed = self.config.data.size, self.config.training.seed
        if self.config.data.crop == "center":
            pixels = load_pixels(self.source, indices, size)
        else:
            places = zip(indices.tolist(), positions.tolist(), strict=True)
            crops = [published_random_crop(self.source.image(i), size, seed, position) for i, position in places]
            pixels = torch.from_numpy(np.stack([np.array(crop) for crop in crops]))
        if self.features is None or self.features.resident:  # resident features are read when the batch is made
            return pixels, None
        return pixels, self.features.get(indices)

    def step(self, batch: _Batch, images_seen: int, scale: float) -> dict[str, Tensor]:
        self._enter_stage(images_seen)
        seed = self.config.training.seed
        noise = rng.normal(seed, "posterior", batch.positions, self.config.latent_shape, self.device)
        features = batch.features
        if self.teacher is not None and features is None:
            features = self.teacher.features_at(batch.images, self.config.latent_shape[1:]).float()
        return self.objective.accumulate_gradients(
            self.autoencoder,
            batch.images.contiguous(memory_format=self.memory_format),
            noise,
            features,
            images_seen,
            compute_dtype=self.compute_dtype,
            gradient_scale=scale,
            average=self.world.average if self.world.size > 1 else None,
        )

    def _enter_stage(self, images_seen: int) -> None:
        stage = self.config.stage_at(images_seen)
        if stage != self._stage:
            self._stage = stage
            self.objective.config = self.config.objective_at(images_seen)
            assert self.objective.alignment is not None
            self.objective.alignment.config = self.objective.config.alignment
            self.objective.alignment.linear_proj.requires_grad_(self.objective.config.alignment.train_projection)

    def phase(self, images_seen: int) -> int:
        return 2 * self.config.stage_at(images_seen) + self.objective.adversarial_active(images_seen)

    def prepare_validation(self) -> None:
        """Open the test images; if a distance is asked for, load the feature network and run it on them."""
        _ = self._validation
        if self.config.frechet.samples:
            _ = self._distance

    @torch.no_grad()
    def validate(self, states: Mapping[str, Mapping[str, Tensor]], at_once: int | None = None) -> dict[str, Tensor]:
        """Return the live model's terms on test images and, if asked for, the averaged model's Fréchet distance."""
        terms = self._validation_terms(at_once)
        if self.config.frechet.samples:
            terms["frechet"] = self._distance(self.averaged_model(states["autoencoder"]))
        return terms

    @cached_property
    def _distance(self) -> ReconstructionDistance:
        frechet, data = self.config.frechet, self.config.data
        return ReconstructionDistance(frechet, self._validation, data.size, self.device, self.world, data.workers)

    def _portions(self, at_once: int | None) -> Chunks:
        """Return the chunks for work without gradients: the images of a training step, or fewer large images."""
        share = self.config.training.batch_size // self.world.size
        return Chunks(min(at_once or share, max(1, _PIXELS_AT_ONCE // num_pixels(self.config.data.size))))

    def _validation_terms(self, at_once: int | None) -> dict[str, Tensor]:
        """Return the live model's mean terms on test images; the processes share them."""
        data = self.config.data

        def measure(part: tuple[Tensor]) -> dict[str, Tensor]:
            images = load_images(self._validation, part[0], data.size, data.workers).to(self.device)
            features = None
            if self.teacher is not None:
                features = self.teacher.features_at(images, self.config.latent_shape[1:]).float()
            return self.objective.evaluate(self.autoencoder, images, features, compute_dtype=self.compute_dtype)

        self.autoencoder.eval()
        own = shard_of(_VALIDATION_IMAGES, len(self._validation), self.world)
        terms = mean_terms(self._portions(at_once), own, measure)
        self.autoencoder.train()
        return terms

    @cached_property
    def _validation(self) -> ImageSource:
        return self.world.once(lambda: self.config.data.open("test", self._folder, "validation"))

    def _imagined(self, count: int, compute_dtype: torch.dtype = torch.float32) -> Callable[[], object]:
        """Return a training step of `count` images with discriminator and without teacher, for FakeTensorMode."""
        config, start = self.config, self.config.objective.adversarial.start_images
        autoencoder = AutoencoderKL.from_config(config.tokenizer)
        perceptual = LPIPS(config.objective.perceptual.network) if config.objective.perceptual.weight > 0 else None
        width = self.teacher.width if self.teacher is not None else None
        objective = TokenizerObjective(config.objective, config.tokenizer.latent_channels, width, perceptual)

        def step() -> object:
            images = torch.empty(count, 3, *height_width(config.data.size)).contiguous(
                memory_format=torch.channels_last
            )
            noise = torch.empty(count, *config.latent_shape)
            features = None if width is None else torch.empty(count, width, *config.latent_shape[1:])
            return objective.accumulate_gradients(
                autoencoder, images, noise, features, start, compute_dtype=compute_dtype
            )

        return step

    @cached_property
    def _work(self) -> StepWork:
        """FLOPs of an image, counted with fake tensors; for the teacher, with one real image."""
        with FakeTensorMode():
            flops = count_flops(self._imagined(1))
        if self.teacher is not None and self.features is None:
            teacher, real = self.teacher, torch.zeros(1, 3, *height_width(self.config.data.size), device=self.device)
            flops += count_flops(lambda: teacher.features_at(real, self.config.latent_shape[1:]))
        return StepWork(flops)

    def step_bytes(self, images: int) -> int:
        """Estimate the peak memory of one step with fake tensors on a CPU, not compiled, plus frozen networks."""
        frozen = [module for module in (self.teacher, self.objective.perceptual) if module is not None]
        weights = [weight for module in frozen for weight in (*module.parameters(), *module.buffers())]
        with FakeTensorMode():
            step = count_peak_bytes(self._imagined(images, self.compute_dtype))
        kept = self.features.size_bytes if self.features is not None and self.features.resident else 0
        return step + kept + sum(weight.nbytes for weight in weights)

    def work(self) -> StepWork:
        return self._work

    @torch.inference_mode()
    def preview(self, states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        """Write eight training images over their reconstructions."""
        images = to_tensor(load_pixels(self.source, range(min(8, len(self.source))), self.config.data.size))
        model = self.averaged_model(states["autoencoder"])
        with self.autocast():
            rebuilt = model.decode(model.encode(images.to(self.device)).mode()).float().clamp(-1, 1)
        both = torch.cat([images, rebuilt.cpu()])
        image_grid(to_uint8(both).numpy(), columns=len(images)).save(path)

    def averaged_model(self, state: Mapping[str, Tensor]) -> AutoencoderKL:
        """Return an autoencoder in eval mode with the given weights."""
        model = AutoencoderKL.from_config(self.config.tokenizer)
        model.load_state_dict(dict(state))
        return model.eval().to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    @torch.inference_mode()
    def statistics(self, model: AutoencoderKL, at_once: int | None = None) -> LatentStatistics:
        """Return mean and standard deviation per channel of one posterior sample of every training image.

        The processes share the images. `at_once`, as for `validate`, changes rounding only: the sums are in float64.
        """
        config, portions = self.config, self._portions(at_once)
        running = RunningStatistics(config.tokenizer.latent_channels)

        def sample(part: tuple[Tensor, Tensor]) -> Tensor:
            indices, pixels = part
            noise = rng.normal(config.training.seed, "statistics", indices, config.latent_shape, self.device)
            with self.autocast():
                posterior = model.encode(to_tensor(pixels.to(self.device)))
            return posterior.sample(noise=noise)

        batches = torch.arange(len(self.source)).split(portions.size)[self.world.rank :: self.world.size]
        with track("latent statistics", sum(map(len, batches)), "images") as bar:
            load = partial(load_pixels, self.source, size=config.data.size)
            for loaded in loaded_ahead(batches, load, config.data.workers):
                for _, latents in portions.over(loaded, sample):
                    running.update(latents)
                    bar.advance(len(latents))
        whole = RunningStatistics(config.tokenizer.latent_channels)
        for part in self.world.gather(running):
            whole.merge(part)
        return whole.finalize()


def run(config: Config, any_recipe: bool = False) -> Tokenizer:
    """Train to the end and write the tokenizer to `<output>/tokenizer`.

    Args:
        config: The recipe.
        any_recipe: As for `open_run`.

    Raises:
        UserError: The images, the teacher or the recipe are wrong.
        KeyboardInterrupt: A stop was asked for; the state is saved.
    """
    with open_run(config, "tokenizer", any_recipe=any_recipe) as run:
        if run.finished:
            return Tokenizer.from_pretrained(run.result, run.device)
        # The first process lists and checks the images for all: a set may have millions, and each node its own cache.
        source = run.world.once(lambda: config.data.open("train", run.folder))
        run.record_data(lambda: {"data.images": source.fingerprint()})
        if len(source) * 3 * num_pixels(config.data.size) <= _IN_MEMORY_BYTES and config.data.crop == "center":
            source = InMemoryImages(source, config.data.size, config.data.workers)
        task = TokenizerTask(config, source, run.folder, run.world)
        trainer = run.train(task, "tokenizer")
        model = task.averaged_model(trainer.averaged_state("autoencoder"))
        provenance = {
            "images": f"{source.name}, {len(source):,} images of {format_size(config.data.size)} px",
            "teacher": config.teacher.name if config.objective.alignment.enabled else "none",
            **run.provenance(trainer),
        }
        tokenizer = Tokenizer(model, task.statistics(model, trainer.at_once), provenance)
        run.finish(tokenizer.save_pretrained)
        return tokenizer
