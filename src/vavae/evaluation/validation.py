"""Fréchet distance of few samples during training. It shows whether a run improves; other runs are not comparable."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vavae.config.image_size import Size, format_size, height_width
from vavae.data import ImageSource, load_pixels, to_tensor, to_uint8
from vavae.data.images import ImagesConfig, evenly_spaced
from vavae.data.sources import DEMO_SIDE
from vavae.device import Compute, autocast
from vavae.errors import UserError, errors_name
from vavae.evaluation.generation import read_statistics
from vavae.metrics import RunningMoments, load_feature_network, moments_of
from vavae.models import Generator, SamplingConfig
from vavae.models.representation import Autoencoder
from vavae.models.sampling import choose_labels
from vavae.training.memory import Chunks
from vavae.training.parallel import World

_REFERENCE_IMAGES = 10_000


@dataclass(frozen=True)
class FrechetConfig:
    """Distance of samples of the averaged model to real images, at each validation.

    Few samples bias the distance upwards: compare it only within one run.

    Attributes:
        samples: Number of samples, with random labels and without guidance; 0 measures nothing.
        network: Feature network: `inception`, or `teacher:NAME`.
        reference: Real images as in `data.images` (at most 10,000 are used), or an npz of their statistics, as
            `vavae evaluate --save_reference` writes it.
        steps: Grid points of the solver.
        batch_size: Samples per batch; halved if memory runs out.
    """

    samples: int = 0
    network: str = "inception"
    reference: str = "demo"
    steps: int = 50
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check(self.samples, self.batch_size)
        if self.steps < 2:
            raise UserError(f"frechet.steps must be at least 2, got {self.steps}")


@dataclass(frozen=True)
class ReconstructionFrechetConfig:
    """Distance of reconstructions by the averaged model to the test images, at each validation.

    Few samples bias the distance upwards: compare it only within one run.

    Attributes:
        samples: Number of test images, evenly spread over the set; 0 measures nothing.
        network: Feature network: `inception`, or `teacher:NAME`.
        batch_size: Images per batch; halved if memory runs out.
    """

    samples: int = 0
    network: str = "inception"
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check(self.samples, self.batch_size)


def _check(samples: int, batch_size: int) -> None:
    if samples < 0 or samples == 1:
        raise UserError(f"frechet.samples must be 0 (off) or at least 2, got {samples}")
    if batch_size < 1:
        raise UserError(f"frechet.batch_size must be at least 1, got {batch_size}")


def check_rhythm(samples: int, validation_images: int | None) -> None:
    """Raise UserError for a Fréchet distance that is requested but would never be measured."""
    if samples and validation_images is None:
        raise UserError("frechet.samples needs training.validation_images, the interval between measurements")


def check_best(best: str | None, validation_images: int | None, terms: Sequence[str], distance: bool) -> None:
    """Raise UserError if `training.best` names a number that the run does not measure.

    Args:
        best: The recipe's value.
        validation_images: The interval between measurements; None measures nothing.
        terms: What the stage measures on its validation data.
        distance: Whether a Fréchet distance is measured too.
    """
    if best is None:
        return
    if validation_images is None:
        raise UserError("training.best needs training.validation_images, the interval between measurements")
    known = [f"val/{name}" for name in (*terms, *(["frechet"] if distance else []))]
    if best not in known:
        measured = ", ".join(known) or "nothing: give validation_latents or frechet.samples"
        raise UserError(f"training.best must be a number that this recipe measures ({measured}), got {best}")


def shard_of(most: int, length: int, world: World) -> Tensor:
    """Return the images out of `length` that this process validates on: its share of at most `most`, evenly spread.

    All have equally many, so that the mean over processes is the mean over images, or none if there are too few.
    """
    count = min(most, length) // world.size
    return evenly_spaced(count * world.size, length)[world.rank :: world.size].contiguous()


def mean_terms(chunks: Chunks, own: Tensor, measure: Callable[[tuple[Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the means over the images `own` of the terms that `measure` returns for parts of them."""
    sums: dict[str, Tensor] = {}
    for (part,), terms in chunks.over((own,), measure):
        for name, value in terms.items():
            sums[name] = sums.get(name, value.new_zeros(())) + value * (len(part) / len(own))
    return sums


class _Moments:
    """Moments of a network's features over the images of all processes, in parts that fit into memory."""

    def __init__(self, network: str, batch_size: int, device: torch.device, world: World) -> None:
        self.network = load_feature_network(network, device)
        self._chunks = Chunks(batch_size)
        self._world = world

    def __call__(self, pixels: Callable[[Tensor], Tensor], own: Tensor) -> RunningMoments:
        """Return the moments over `pixels(indices)`. Every process must call it, with at least one index in `own`."""
        features = (found for _, found in self._chunks.over((own,), lambda part: self.network(pixels(part[0]))))
        parts = self._world.gather(moments_of(features))
        for part in parts[1:]:
            parts[0].merge(part)
        return parts[0]


class SampleDistance:
    """Distance of generators to one reference, whose features are computed once.

    The decoder and the network compute in float32.
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
            network = self._moments.network
            statistics = read_statistics(self.config.reference, [network]).get(network.name)
            if statistics is None:
                raise UserError(
                    f"frechet.reference must be statistics (mu, sigma) of the network {network.name}, got "
                    f"{self.config.reference}"
                )
            return statistics.pool
        if self.config.reference == "demo" and max(height_width(size)) > DEMO_SIDE:
            raise UserError(
                f"frechet.reference must be images for training at {format_size(size)}, got demo, whose images have "
                f"{DEMO_SIDE} px: name a set of images, or an npz that 'vavae evaluate --save_reference' writes"
            )
        data = ImagesConfig(self.config.reference, size, limit=_REFERENCE_IMAGES)
        with errors_name("frechet.reference"):
            source = self.world.once(lambda: data.open("train", what="frechet.reference"))
        own = torch.arange(len(source))[self.world.rank :: self.world.size]
        return self._moments(lambda indices: load_pixels(source, indices, size, data.workers), own)

    @torch.inference_mode()
    def __call__(self, generator: Generator, seed: int) -> Tensor:
        """Return the distance of the generator's samples, 0-dim and equal in all processes. All must call it.

        Sample i is a function of (seed, i), whatever the number of processes.
        """
        labels = choose_labels(self.config.samples, generator.num_classes, "random", seed)
        drawing = generator.with_sampling(SamplingConfig(steps=self.config.steps, shift=generator.sampling.shift))
        device = generator.tokenizer.device
        own = torch.arange(self.config.samples)[self.world.rank :: self.world.size]

        def drawn_pixels(own: Tensor) -> Tensor:
            indices = own.tolist()
            with autocast(self.precision, device):
                latents = drawing.latents([labels[i] for i in indices], seed, indices)
            return to_uint8(generator.tokenizer.decode(latents.float()))

        return torch.tensor(self._moments(drawn_pixels, own).distance(self._real), device=device)


class ReconstructionDistance:
    """Distance of tokenizers' reconstructions to some images of one set, whose features are computed once.

    The network and the tokenizers compute in float32.

    Raises:
        UserError: There are fewer images than processes, or fewer than 2.
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
            raise UserError(
                f"frechet.samples: at least {max(2, world.size)} test images are needed ({world.size} processes), "
                f"got {count}"
            )
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
    def __call__(self, model: Autoencoder) -> Tensor:
        """Return the distance of reconstructions from the posterior's mean, 0-dim and equal in all processes.

        All processes must call it with the same model.
        """

        def rebuilt(indices: Tensor) -> Tensor:
            images = to_tensor(self._pixels(indices).to(self.device))
            return to_uint8(model.decode(model.latents(images)))

        return torch.tensor(self._moments(rebuilt, self._own).distance(self._real), device=self.device)
