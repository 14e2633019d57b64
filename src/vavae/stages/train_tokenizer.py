"""Stage 1: train a visual tokenizer that is aligned with a teacher (VA-VAE, arXiv 2501.01423)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vavae import rng
from vavae.config.image_size import format_size, height_width, num_pixels
from vavae.data import (
    ImageSource,
    IndexStream,
    InMemoryImages,
    hub_dataset,
    load_batches,
    load_images,
    load_pixels,
    loaded_ahead,
    to_tensor,
    to_uint8,
)
from vavae.data.images import evenly_spaced, note_source
from vavae.data.transforms import flip_horizontally, published_random_crop
from vavae.device import autocast, image_memory_format, resolve_device, resolve_precision, to_device
from vavae.evaluation.validation import ReconstructionDistance, mean_terms, shard_of
from vavae.losses import TokenizerObjective
from vavae.models import RepresentationAutoencoder, Tokenizer
from vavae.models.representation import Autoencoder, saved_part
from vavae.progress import track
from vavae.report.images import image_grid
from vavae.stages.costs import TokenizerCosts
from vavae.stages.encode import check_grid
from vavae.stages.initial import load_initial
from vavae.stages.kept_features import IN_MEMORY_BYTES, keep_features
from vavae.stages.tokenizer_config import Config as Config
from vavae.stages.tokenizer_config import StageConfig as StageConfig
from vavae.teachers import FeatureCache, LatentEncoder, Teacher, load_teacher
from vavae.teachers.config import TeacherConfig as TeacherConfig
from vavae.tokenizer import AutoencoderKL, LatentStatistics, RunningStatistics
from vavae.training.compile import compile_methods
from vavae.training.memory import Chunks
from vavae.training.optimizer import OptimizerConfig
from vavae.training.parallel import World
from vavae.training.run_folder import Run, open_run, stream_seed
from vavae.training.throughput import StepWork, count_flops
from vavae.training.trainer import TrainingTask

# Pixels of one pass without gradients: 32 images of 256 px take about 5 GB in the published autoencoder.
_PIXELS_AT_ONCE = 32 * 256**2
# At most this many test images are used for the validation terms.
_VALIDATION_IMAGES = 512
# Images for the latent statistics of a model that is written during training, as many as the published ones took.
_QUICK_STATISTICS_IMAGES = 10_000


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch."""

    positions: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, of the images in the source
    images: Tensor  # (B, 3, H, W) in [-1, 1]
    features: Tensor | None  # (B, D, h, w) of the teacher; the latents of a representation autoencoder


def compile_tokenizer(autoencoder: Autoencoder, objective: TokenizerObjective) -> None:
    """Compile the networks that take most of the time.

    The last layers of encoder and decoder stay outside the graphs: adaptive weights need the gradients of these layers
    only, and a graph computes all of its gradients or none. For the same reason the discriminator is not compiled: it
    has one backward pass for the images and one for its parameters.
    """
    if isinstance(autoencoder, AutoencoderKL):
        compile_methods(autoencoder.encoder, "features")
    compile_methods(autoencoder.decoder, "features")
    if objective.perceptual is not None:
        compile_methods(objective.perceptual, "extract", "distance")


def optimizers(
    config: Config, autoencoder: nn.Module, objective: TokenizerObjective
) -> dict[str, tuple[OptimizerConfig, list[nn.Parameter]]]:
    """Return name -> recipe and parameters of the optimizers of a tokenizer's training."""
    trained = [*autoencoder.parameters(), *objective.projection_parameters()]
    recipes = {"autoencoder": (config.optimizer, trained)}
    discriminator = objective.discriminator_parameters()
    if discriminator:
        recipes["discriminator"] = (config.discriminator_optimizer, discriminator)
    return recipes


class TokenizerTask(TrainingTask):
    """The training of a tokenizer: networks, batches, loss, validation, previews."""

    averaged: Sequence[str] = ("autoencoder",)
    pictures = "reconstructions"

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
        self.teacher = self._load_teacher()
        torch.manual_seed(config.training.seed)
        self.autoencoder = self._new_autoencoder()
        channels, grid = self.autoencoder.latent_channels, config.data.latent_size(config.factor)
        check_grid(self.autoencoder, grid, config.data.size)
        self.latent_shape = (channels, *grid)
        self.objective = TokenizerObjective(config.objective, channels, self.teacher.width if self.teacher else None)
        for module in (self.autoencoder, self.objective):
            module.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.modules: Mapping[str, nn.Module] = {"autoencoder": self.autoencoder, "objective": self.objective}
        self.features: FeatureCache | None = None
        if config.compile:
            compile_tokenizer(self.autoencoder, self.objective)

    def begin(self) -> str | None:
        if self.config.initial is None:
            return None
        return load_initial(self.config.initial, self.autoencoder, self.objective)

    def prepare(self) -> None:
        self.features = self._cached_features()

    @property
    def needs_teacher(self) -> bool:
        """Whether the recipe uses the teacher."""
        return self.config.representation is not None or self.config.objective.alignment.enabled

    @property
    def feature_grid(self) -> tuple[int, int]:
        """Rows and columns of the teacher's features."""
        return self.latent_shape[1], self.latent_shape[2]

    def _load_teacher(self) -> Teacher | None:
        config = self.config
        if not self.needs_teacher:
            return None
        return load_teacher(
            config.teacher.name,
            input_size=config.teacher.input_size,
            image_size=config.data.size,
            normalization=config.teacher.normalization,
            dtype=self.compute_dtype,
        ).to(self.device)

    def _new_autoencoder(self) -> Autoencoder:
        """Return an autoencoder with fresh weights, on the CPU but for its teacher."""
        config = self.config
        if config.representation is None:
            return AutoencoderKL(config.tokenizer)
        assert self.teacher is not None
        return config.representation.build(self.teacher)

    def _cached_features(self) -> FeatureCache | None:
        """Return the features of all images, or the latents that they are; None if they are not kept."""
        config = self.config
        if self.teacher is None or not config.teacher.cache_features:
            return None
        encoder = self.autoencoder.encoder
        teacher = encoder if isinstance(encoder, LatentEncoder) else self.teacher
        images = f"{self.world.once(self.source.fingerprint)} at {format_size(config.data.size)}"
        listed = images, len(self.source), partial(load_images, self.source, size=config.data.size)
        grid, workers = self.feature_grid, config.data.workers
        return keep_features(config.teacher, teacher, grid, listed, self._folder, self.device, self.world, workers)

    def optimizers(self) -> dict[str, tuple[OptimizerConfig, list[nn.Parameter]]]:
        return optimizers(self.config, saved_part(self.autoencoder), self.objective)

    def batches(self, start: int, data_order: int) -> Iterator[Batch]:
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
                features = None if features is None else features.to(self.device).float()
                yield Batch(batch.positions, batch.indices, images, features)

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

    def step(self, batch: Batch, images_seen: int, scale: float) -> dict[str, Tensor]:
        self._enter_stage(images_seen)
        seed, positions = self.config.training.seed, batch.positions
        noise = rng.normal(seed, "posterior", positions, self.latent_shape, self.device)
        features, latents = batch.features, None
        if isinstance(self.autoencoder, RepresentationAutoencoder):
            noise = noise * self.autoencoder.noise_scale(rng.uniform(seed, "noise scale", positions, (), self.device))
            features, latents = None, features
        elif self.teacher is not None and features is None:
            features = self._run_teacher(batch.images)
        return self.objective.accumulate_gradients(
            self.autoencoder,
            batch.images.contiguous(memory_format=self.memory_format),
            noise,
            features,
            images_seen,
            latents=latents,
            augmentation=self._augmentation(positions),
            compute_dtype=self.compute_dtype,
            gradient_scale=scale,
            average=self.world.average if self.world.size > 1 else None,
        )

    def _run_teacher(self, images: Tensor) -> Tensor:
        assert self.teacher is not None
        return self.teacher.features_at(images, self.feature_grid).float()

    def _augmentation(self, positions: Tensor) -> Tensor | None:
        """Return the random numbers of the discriminator's augmentation, (3, B, 5), if it is on."""
        if not self.config.objective.adversarial.augment:
            return None
        return rng.uniform(self.config.training.seed, "augmentation", positions, (3, 5), self.device).transpose(0, 1)

    def _enter_stage(self, images_seen: int) -> None:
        stage = self.config.stage_at(images_seen)
        if stage != self._stage:
            self._stage = stage
            self.objective.config = self.config.objective_at(images_seen)
            assert self.objective.alignment is not None
            self.objective.alignment.config = self.objective.config.alignment
            self.objective.alignment.linear_proj.requires_grad_(self.objective.config.alignment.train_projection)

    def phase(self, images_seen: int) -> int:
        started = (self.objective.discriminator_active(images_seen), self.objective.adversarial_active(images_seen))
        return 3 * self.config.stage_at(images_seen) + sum(started)

    def prepare_validation(self) -> None:
        """Open the test images; if a distance is asked for, load the feature network and run it on them."""
        _ = self._validation
        if self.config.frechet.samples:
            _ = self._distance

    @torch.no_grad()
    def validate(self, states: Mapping[str, Mapping[str, Tensor]], at_once: int | None = None) -> dict[str, Tensor]:
        """Return the averaged model's terms on test images and, if asked for, its Fréchet distance."""
        model = self.averaged_model(states["autoencoder"])
        terms = self._validation_terms(model, at_once)
        if self.config.frechet.samples:
            terms["frechet"] = self._distance(model)
        return terms

    @cached_property
    def _distance(self) -> ReconstructionDistance:
        frechet, data = self.config.frechet, self.config.data
        return ReconstructionDistance(frechet, self._validation, data.size, self.device, self.world, data.workers)

    def _portions(self, at_once: int | None) -> Chunks:
        """Return the chunks for work without gradients: the images of a training step, or fewer large images."""
        share = self.config.training.batch_size // self.world.size
        return Chunks(min(at_once or share, max(1, _PIXELS_AT_ONCE // num_pixels(self.config.data.size))))

    def _validation_terms(self, model: Autoencoder, at_once: int | None) -> dict[str, Tensor]:
        """Return a model's mean terms on test images; the processes share them."""
        data = self.config.data

        def measure(part: tuple[Tensor]) -> dict[str, Tensor]:
            images = load_images(self._validation, part[0], data.size, data.workers).to(self.device)
            features = None
            if self.teacher is not None and self.objective.alignment is not None:
                features = self._run_teacher(images)
            return self.objective.evaluate(model, images, features, compute_dtype=self.compute_dtype)

        own = shard_of(_VALIDATION_IMAGES, len(self._validation), self.world)
        return mean_terms(self._portions(at_once), own, measure)

    @cached_property
    def _validation(self) -> ImageSource:
        source = self.world.once(lambda: self.config.data.open("test", what="validation"))
        self.world.once(lambda: note_source(self._folder, source, "validation"))
        return source

    @cached_property
    def _costs(self) -> TokenizerCosts:
        precision = resolve_precision(self.config.training.precision, self.device)
        return TokenizerCosts(self.config, self.teacher.width if self.teacher is not None else None, precision)

    @cached_property
    def _work(self) -> StepWork:
        """FLOPs of an image; the teacher's are counted with a real one."""
        flops = self._costs.flops()
        if self.teacher is not None and self.features is None:
            teacher, real = self.teacher, torch.zeros(1, 3, *height_width(self.config.data.size), device=self.device)
            flops += count_flops(lambda: teacher(real))
        return StepWork(flops)

    def step_bytes(self, images: int) -> int:
        frozen = [*self.objective.frozen.values(), *([] if self.teacher is None else [self.teacher])]
        weights = [weight for module in frozen for weight in (*module.parameters(), *module.buffers())]
        kept = self.features.size_bytes if self.features is not None and self.features.resident else 0
        return self._costs.step_bytes(images) + kept + sum(weight.nbytes for weight in weights)

    def work(self, images_seen: int | None = None) -> StepWork:
        return self._work

    @torch.inference_mode()
    def preview(self, states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        """Write eight training images over their reconstructions."""
        images = to_tensor(load_pixels(self.source, range(min(8, len(self.source))), self.config.data.size))
        model = self.averaged_model(states["autoencoder"])
        with self.autocast():
            rebuilt = model.decode(model.latents(images.to(self.device))).float().clamp(-1, 1)
        both = torch.cat([images, rebuilt.cpu()])
        image_grid(to_uint8(both).numpy(), columns=len(images)).save(path)

    def averaged_model(self, state: Mapping[str, Tensor]) -> Autoencoder:
        """Return an autoencoder in eval mode with the given weights."""
        model = self._new_autoencoder()
        model.load_state_dict(dict(state))
        return model.eval().to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def model(
        self, states: Mapping[str, Mapping[str, Tensor]], provenance: dict[str, Any], at_once: int, quick: bool
    ) -> Tokenizer:
        config, model = self.config, self.averaged_model(states["autoencoder"])
        initial = {} if config.initial is None else {"initial": config.initial}
        statistics = self.statistics(model, at_once, _QUICK_STATISTICS_IMAGES if quick else None)
        return Tokenizer(model, statistics, {**self.facts(), **initial, **provenance})

    def facts(self) -> dict[str, str]:
        """Return images and teacher for the model card."""
        config, source = self.config, self.source
        dataset = hub_dataset(config.data.images)
        return {
            "images": f"{source.name}, {len(source):,} images of {format_size(config.data.size)} px",
            **({} if dataset is None else {"dataset": dataset}),
            "teacher": config.teacher.name if self.teacher is not None else "none",
        }

    @torch.inference_mode()
    def statistics(self, model: Autoencoder, at_once: int | None = None, most: int | None = None) -> LatentStatistics:
        """Return mean and standard deviation of one posterior sample of every training image.

        They are per channel; of a representation autoencoder per channel and position, of its latents, which are read
        if they are kept.

        The processes share the images. `at_once`, as for `validate`, changes rounding only: the sums are in float64.
        `most` takes that many images, evenly spread.
        """
        config, portions = self.config, self._portions(at_once)
        shape = (self.latent_shape[0], model.latent_grid)
        running = RunningStatistics(*shape)
        sampled = not isinstance(model, RepresentationAutoencoder)
        kept = None if sampled else self.features

        def sample(part: tuple[Tensor, Tensor]) -> Tensor:
            indices, pixels = part
            if kept is not None:
                return pixels.float()
            seed = config.training.seed
            noise = rng.normal(seed, "statistics", indices, self.latent_shape, self.device) if sampled else None
            with self.autocast():
                return model.latents(to_tensor(pixels.to(self.device)), noise)

        count = len(self.source)
        indices = evenly_spaced(min(count, most or count), count)
        batches = indices.split(portions.size)[self.world.rank :: self.world.size]
        with track("latent statistics", sum(map(len, batches)), "images") as bar:
            load = partial(load_pixels, self.source, size=config.data.size) if kept is None else kept.get
            for loaded in loaded_ahead(batches, load, config.data.workers):
                for _, latents in portions.over(loaded, sample):
                    running.update(latents)
                    bar.advance(len(latents))
        whole = RunningStatistics(*shape)
        for part in self.world.gather(running):
            whole.merge(part)
        return whole.finalize()


def training_images(config: Config, run: Run) -> ImageSource:
    """Open the images of a run and record what they are; a small set is decoded once."""
    # The first process lists and checks the images for all: a set may have millions, and each node its own cache.
    source = run.world.once(lambda: config.data.open("train", run.folder))
    run.record_data(lambda: {"data.images": source.fingerprint()})
    run.world.once(lambda: note_source(run.folder, source))
    if len(source) * 3 * num_pixels(config.data.size) <= IN_MEMORY_BYTES and config.data.crop == "center":
        return InMemoryImages(source, config.data.size, config.data.workers)
    return source


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
        task = TokenizerTask(config, training_images(config, run), run.folder, run.world)
        return run.train(task, "tokenizer")
