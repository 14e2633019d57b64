"""A Fréchet distance of few samples while training goes on: to see a run improve, not to compare it with others."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vavae.config.image_size import Size
from vavae.data import ImageSource, load_pixels, to_tensor, to_uint8
from vavae.data.images import ImagesConfig, evenly_spaced
from vavae.device import Compute, autocast
from vavae.errors import UserError
from vavae.metrics import FeatureNetwork, RunningMoments, load_feature_network, moments_of
from vavae.models import Generator, SamplingConfig
from vavae.models.sampling import choose_labels
from vavae.tokenizer import AutoencoderKL
from vavae.training.memory import Chunks
from vavae.training.parallel import World

_REFERENCE_IMAGES = 10_000


@dataclass(frozen=True)
class FrechetConfig:
    """Samples of the averaged model against real images, at each validation.

    Few samples bias the distance upwards: compare it within one run only.

    Attributes:
        samples: How many to draw, with random labels and without guidance; 0 measures nothing.
        network: Feature network: `inception`, or `teacher:NAME`.
        reference: Real images as in `data.images` (at most 10,000 are used), or an npz of their statistics, as
            `vavae evaluate --save_reference` writes it.
        steps: Grid points of the solver.
        batch_size: Samples drawn at once; halved where memory runs out.
    """

    samples: int = 0
    network: str = "inception"
    reference: str = "demo"
    steps: int = 50
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check(self.samples, self.batch_size)
        if self.steps < 2:
            raise UserError(f"frechet.steps: {self.steps} is less than 2")


@dataclass(frozen=True)
class ReconstructionFrechetConfig:
    """Reconstructions of test images by the averaged model against these images, at each validation.

    Few samples bias the distance upwards: compare it within one run only.

    Attributes:
        samples: How many test images, evenly spread over the set; 0 measures nothing.
        network: Feature network: `inception`, or `teacher:NAME`.
        batch_size: Images reconstructed at once; halved where memory runs out.
    """

    samples: int = 0
    network: str = "inception"
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check(self.samples, self.batch_size)


def _check(samples: int, batch_size: int) -> None:
    if samples < 0 or samples == 1:
        raise UserError(f"frechet.samples: {samples} samples have no covariance; at least 2, or 0 for none")
    if batch_size < 1:
        raise UserError(f"frechet.batch_size: {batch_size} is not positive")


def check_rhythm(samples: int, validation_images: int | None) -> None:
    """A UserError for a Fréchet distance that is asked for but would never be measured."""
    if samples and validation_images is None:
        raise UserError("frechet.samples: needs training.validation_images, which says how often to measure")


def shard_of(most: int, length: int, world: World) -> Tensor:
    """Which of `length` images this process validates on: its share of at most `most` that are spread evenly.

    Processes that compute in step must take the same number, so all have as many; none where they are too few.
    """
    count = min(most, length) // world.size
    return evenly_spaced(count * world.size, length)[world.rank :: world.size]


def mean_terms(
    portions: Chunks, own: Tensor, measure: Callable[[tuple[Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Means over the images numbered `own` of the terms that `measure` returns of a part of them."""
    sums: dict[str, Tensor] = {}
    for (part,), terms in portions.over((own,), measure):
        for name, value in terms.items():
            sums[name] = sums.get(name, value.new_zeros(())) + value * (len(part) / len(own))
    return sums


class _Moments:
    """Moments of a network's features of the images of all processes, in parts that fit into memory."""

    def __init__(self, network: str, batch_size: int, device: torch.device, world: World) -> None:
        self._network: FeatureNetwork = load_feature_network(network, device)
        self._portions = Chunks(batch_size)
        self._world = world

    def __call__(self, pixels: Callable[[Tensor], Tensor], own: Tensor) -> RunningMoments:
        """Of `pixels(indices)`; every process must call it, with at least one index of its own."""
        features = (found for _, found in self._portions.over((own,), lambda part: self._network(pixels(part[0]))))
        parts = self._world.gather(moments_of(features))
        for part in parts[1:]:
            parts[0].merge(part)
        return parts[0]


class SampleDistance:
    """Measures generators against one reference, whose features are computed once.

    Args:
        config: What to measure.
        image_size: Of the images.
        device: Where the network runs.
        precision: In which samples are drawn; decoder and network compute in float32.
        world: The processes that share the samples.
    """

    def __init__(
        self,
        config: FrechetConfig,
        image_size: Size,
        device: torch.device,
        precision: Compute,
        world: World,
    ) -> None:
        self.config = config
        self.precision = precision
        self.world = world
        self._moments = _Moments(config.network, config.batch_size, device, world)
        self._real = self._reference(image_size)

    def _reference(self, size: Size) -> RunningMoments:
        if self.config.reference.endswith(".npz"):
            return RunningMoments.load(self.config.reference)
        data = ImagesConfig(self.config.reference, size, limit=_REFERENCE_IMAGES)
        source = self.world.once(lambda: data.open("train", what="frechet.reference"))
        own = torch.arange(len(source))[self.world.rank :: self.world.size]
        return self._moments(lambda indices: load_pixels(source, indices, size, data.workers), own)

    @torch.inference_mode()
    def __call__(self, generator: Generator, seed: int) -> Tensor:
        """Distance of its samples, 0-dim and equal in all processes, which must all call it.

        Sample i is a function of (seed, i), however many processes there are.
        """
        labels = choose_labels(self.config.samples, generator.num_classes, "random", seed)
        sampling = SamplingConfig(steps=self.config.steps, shift=generator.sampling.shift)
        device = generator.tokenizer.device
        own = torch.arange(self.config.samples)[self.world.rank :: self.world.size]

        def drawn_pixels(own: Tensor) -> Tensor:
            indices = own.tolist()
            with autocast(self.precision, device):
                latents = generator.latents([labels[i] for i in indices], seed, indices, sampling)
            return to_uint8(generator.tokenizer.decode(latents.float()))

        drawn = self._moments(drawn_pixels, own)
        if len(drawn.mean) != len(self._real.mean):
            raise UserError(
                f"frechet.reference: {self.config.reference} holds {len(self._real.mean)} features, "
                f"{self.config.network} has {len(drawn.mean)}"
            )
        return torch.tensor(drawn.distance(self._real), device=device)


class ReconstructionDistance:
    """Measures tokenizers on some images of one set, whose features are computed once.

    Args:
        config: What to measure.
        source: The images.
        image_size: Their size.
        device: Where the network and the tokenizers run, in float32.
        world: The processes that share the images.
        workers: Threads that decode images.

    Raises:
        UserError: There are too few images.
    """

    def __init__(
        self,
        config: ReconstructionFrechetConfig,
        source: ImageSource,
        image_size: Size,
        device: torch.device,
        world: World,
        workers: int = 4,
    ) -> None:
        count = min(config.samples, len(source))
        if count < max(2, world.size):
            raise UserError(f"frechet.samples: {count} test images are too few for {world.size} processes, or for any")
        self.config = config
        self.source = source
        self.image_size = image_size
        self.device = device
        self.world = world
        self._workers = workers
        self._own = evenly_spaced(count, len(source))[world.rank :: world.size]
        self._moments = _Moments(config.network, config.batch_size, device, world)
        self._real = self._moments(self._pixels, self._own)

    def _pixels(self, indices: Tensor) -> Tensor:
        return load_pixels(self.source, indices, self.image_size, self._workers)

    @torch.inference_mode()
    def __call__(self, model: AutoencoderKL) -> Tensor:
        """Distance of its reconstructions from the posterior's mean, 0-dim and equal in all processes.

        All processes must call it, with the same model.
        """

        def rebuilt(indices: Tensor) -> Tensor:
            images = to_tensor(self._pixels(indices).to(self.device))
            return to_uint8(model.decode(model.encode(images).mode()))

        return torch.tensor(self._moments(rebuilt, self._own).distance(self._real), device=self.device)
