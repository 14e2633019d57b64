"""A Fréchet distance of few samples while training goes on: to see a run improve, not to compare it with others."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vavae.data import load_pixels, to_uint8
from vavae.errors import UserError
from vavae.metrics import FeatureNetwork, RunningMoments, feature_moments, load_feature_network
from vavae.pretrained import Generator, SamplingConfig
from vavae.stages.images import ImagesConfig
from vavae.stages.sample import choose_labels
from vavae.training.parallel import World
from vavae.training.precision import autocast

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
        batch_size: Samples drawn at once.
    """

    samples: int = 0
    network: str = "inception"
    reference: str = "demo"
    steps: int = 50
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.samples < 0 or self.samples == 1:
            raise UserError(f"frechet.samples: {self.samples} samples have no covariance; at least 2, or 0 for none")
        if self.steps < 2 or self.batch_size < 1:
            raise UserError("frechet: at least 2 steps and a batch_size of 1")


class SampleDistance:
    """Measures generators against one reference, whose features are computed once.

    Args:
        config: What to measure.
        image_size: Side of the images.
        device: Where the network runs.
        precision: In which samples are drawn; decoder and network compute in float32.
        world: The processes that share the samples.
    """

    def __init__(
        self,
        config: FrechetConfig,
        image_size: int,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        world: World,
    ) -> None:
        self.config = config
        self.precision = precision
        self.world = world
        self._network: FeatureNetwork = load_feature_network(config.network, device)
        self._real = self._reference(image_size)

    def _reference(self, size: int) -> RunningMoments:
        if self.config.reference.endswith(".npz"):
            return RunningMoments.load(self.config.reference)
        source = ImagesConfig(self.config.reference, size, limit=_REFERENCE_IMAGES).open("train")
        own = torch.from_numpy(np.arange(len(source))[self.world.rank :: self.world.size])
        parts = own.split(self.config.batch_size)
        return self._together(load_pixels(source, part, size) for part in parts)

    def _together(self, batches: Iterator[Tensor]) -> RunningMoments:
        parts = self.world.gather(feature_moments(self._network, batches))
        for part in parts[1:]:
            parts[0].merge(part)
        return parts[0]

    @torch.inference_mode()
    def __call__(self, generator: Generator, seed: int) -> Tensor:
        """Distance of its samples, 0-dim and equal in all processes, which must all call it.

        Sample i is a function of (seed, i), however many processes there are.
        """
        labels = choose_labels(self.config.samples, generator.num_classes, "random", seed)
        sampling = SamplingConfig(steps=self.config.steps, shift=generator.sampling.shift)
        device = generator.tokenizer.device
        own = range(self.world.rank, self.config.samples, self.world.size)

        def batches() -> Iterator[Tensor]:
            for first in range(0, len(own), self.config.batch_size):
                indices = own[first : first + self.config.batch_size]
                with autocast(self.precision, device):
                    latents = generator.latents([labels[i] for i in indices], seed, indices, sampling)
                yield to_uint8(generator.tokenizer.decode(latents.float()))

        drawn = self._together(batches())
        if len(drawn.mean) != len(self._real.mean):
            raise UserError(
                f"frechet.reference: {self.config.reference} holds {len(self._real.mean)} features, "
                f"{self.config.network} has {len(drawn.mean)}"
            )
        return torch.tensor(drawn.distance(self._real), device=device)
