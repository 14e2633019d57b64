"""Compute the images of the page: samples, reconstructions and interpolations.

studio = Studio(Tokenizer.from_pretrained("demo"), Generator.from_pretrained("demo"))
images = studio.sample([3, 3], seed=0)                 # (2, H, W, 3) uint8
frames = studio.between_images(cat, dog, side=32)       # (9, 32, 32, 3) uint8
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vavae.config.image_size import height_width, size_of
from vavae.data import center_crop, to_tensor, to_uint8
from vavae.device import InferencePrecision, autocast, resolve_precision
from vavae.errors import RunError, UserError
from vavae.flow import DETERMINISTIC_SOLVERS
from vavae.flow.guidance import GuidanceKind
from vavae.metrics import psnr, ssim
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.report.pca import pca_maps

LARGEST_SIDE = 1024
MOST_IMAGES = 64
_SSIM_WINDOW = 11
_DECODED_PIXELS = 4 * 256**2  # in one batch: a large decoder needs 150 MB for 256 × 256 pixels


def _no_tick() -> None:
    pass


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """An image and its reconstruction.

    Attributes:
        original: (H, W, 3) uint8, the cropped image.
        image: (H, W, 3) uint8, decoded from the mean of the posterior.
        difference: (H, W, 3) uint8, the absolute difference times four.
        latent: (h, w, 3) uint8, the latent's three principal components as colors.
        latent_shape: Channels, height and width of the latent.
        psnr: In dB, of images in [-1, 1].
        ssim: None for images smaller than its window of 11 pixels.
    """

    original: NDArray[np.uint8]
    image: NDArray[np.uint8]
    difference: NDArray[np.uint8]
    latent: NDArray[np.uint8]
    latent_shape: tuple[int, int, int]
    psnr: float
    ssim: float | None


class Studio:
    """A tokenizer and, if there is one, the generator on its latents.

    Args:
        tokenizer: Makes reconstructions and interpolations of images.
        generator: Makes samples and interpolations of noise; None for a tokenizer alone.
        precision: Compute precision of the transformer.
        source: Folder or hub id of the model, for the commands and the code that the page shows.
        name: A short name for titles; by default the source.
        weak_source: Folder or hub id of the generator's weak model, if it has one.

    The methods call `tick` before each step of the solver and each batch that is decoded; an exception in it ends them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Generator | None = None,
        precision: InferencePrecision = "fp32",
        source: str = "demo",
        name: str | None = None,
        weak_source: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.generator = generator
        self.precision = resolve_precision(precision, tokenizer.device)
        self.source = source
        self.name = name or source
        self.weak_source = weak_source

    @property
    def kind(self) -> Literal["Generator", "Tokenizer"]:
        """The class that reads the model."""
        return "Tokenizer" if self.generator is None else "Generator"

    @property
    def side(self) -> int:
        """Longer side of the generator's images in pixels; 256, as published, for a tokenizer alone."""
        return 256 if self.generator is None else max(height_width(self.generator.image_size))

    @property
    def guidance_kinds(self) -> list[GuidanceKind]:
        """Kinds of guidance that the generator can take."""
        kinds: list[GuidanceKind] = ["cfg", "zero_star"]
        if self.generator is None or self.weak_source:
            return kinds
        config = self.generator.config
        if config.auxiliary_block is not None:
            kinds.append("internal")
        if config.routing.drops_paths:
            kinds.append("path_drop")
        return kinds

    def weak_model_for(self, sampling: SamplingConfig) -> str | None:
        """Return `weak_source` if these settings use it."""
        return None if sampling.guidance is None else self.weak_source

    def sample(
        self,
        labels: Sequence[int],
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        tick: Callable[[], None] = _no_tick,
    ) -> NDArray[np.uint8]:
        """Draw samples 0, 1, … of `seed`, one per label.

        Args:
            labels: Class of each sample.
            seed: Seed of the noise.
            sampling: Settings; None takes the generator's own.
            tick: See `Studio`.

        Returns:
            (B, H, W, 3) uint8.

        Raises:
            UserError: No generator, no labels, more labels than `MOST_IMAGES`, or a label out of range.
            RunError: A sample is not finite.
        """
        generator = self._generator()
        if not 1 <= len(labels) <= MOST_IMAGES:
            raise UserError(f"images must be from 1 to {MOST_IMAGES}, got {len(labels)}")
        return self._drawn(generator, labels, seed, sampling, tick)

    def reconstruct(self, image: Image.Image, side: int, tick: Callable[[], None] = _no_tick) -> Reconstruction:
        """Encode and decode an image, cropped to the shape of the generator's images (a tokenizer alone: a square).

        Args:
            image: An image of any size.
            side: Longer side of the crop, in pixels.
            tick: See `Studio`.

        Raises:
            UserError: `side` is not a multiple of the tokenizer's factor, or too large.
            RunError: The reconstruction is not finite.
        """
        original = self._pixels(image, side)
        tensor = to_tensor(original[None])
        latents = self.tokenizer.encode(tensor)
        tick()
        decoded = self._decode(latents).cpu()
        rebuilt = to_uint8(decoded).numpy()[0]
        difference = np.abs(rebuilt.astype(np.int16) - original.astype(np.int16))
        return Reconstruction(
            original,
            rebuilt,
            np.clip(4 * difference, 0, 255).astype(np.uint8),
            pca_maps(latents.permute(0, 2, 3, 1).cpu().numpy())[0],
            (latents.shape[1], latents.shape[2], latents.shape[3]),
            float(psnr(decoded, tensor)),
            float(ssim(decoded, tensor)) if min(original.shape[:2]) >= _SSIM_WINDOW else None,
        )

    def between_images(
        self,
        first: Image.Image,
        second: Image.Image,
        side: int,
        count: int = 9,
        tick: Callable[[], None] = _no_tick,
    ) -> NDArray[np.uint8]:
        """Decode latents on the straight line between the latents of two images, cropped as by `reconstruct`.

        Returns:
            (count, H, W, 3) uint8.

        Raises:
            UserError: `side` is not a multiple of the tokenizer's factor or too large, or `count` is out of range.
            RunError: A decoded image is not finite.
        """
        _check_count(count)
        pair = to_tensor(np.stack([self._pixels(image, side) for image in (first, second)]))
        start, end = self.tokenizer.encode(pair)
        weights = torch.linspace(0, 1, count, device=start.device)[:, None, None, None]
        return self._decoded(start + weights * (end - start), tick)

    def between_seeds(
        self,
        label: int,
        first: int,
        second: int,
        count: int = 9,
        sampling: SamplingConfig | None = None,
        tick: Callable[[], None] = _no_tick,
    ) -> NDArray[np.uint8]:
        """Draw samples from noise on the great circle between the noise of two seeds.

        On a straight line the norm of the noise would be smaller than in training. The ends are the first samples of
        the two seeds.

        Returns:
            (count, H, W, 3) uint8.

        Raises:
            UserError: No generator, a label or `count` out of range, or a stochastic solver, which adds noise.
            RunError: A sample is not finite.
        """
        _check_count(count)
        generator = self._generator()
        if (sampling or generator.sampling).solver not in DETERMINISTIC_SOLVERS:
            raise UserError(f"solver must be one of {', '.join(DETERMINISTIC_SOLVERS)} between two seeds")
        start, end = (generator.noise([0], seed)[0] for seed in (first, second))
        more = {"noise": spherical(start, end, count)}
        tokens = [generator.class_noise([0], seed) for seed in (first, second)]
        if tokens[0] is not None and tokens[1] is not None:
            more["class_noise"] = spherical(tokens[0][0], tokens[1][0], count)
        return self._drawn(generator, [label] * count, first, sampling, tick, **more)

    def _generator(self) -> Generator:
        if self.generator is None:
            raise UserError("a tokenizer alone cannot draw samples; give a generator")
        return self.generator

    def _drawn(
        self,
        generator: Generator,
        labels: Sequence[int],
        seed: int,
        sampling: SamplingConfig | None,
        tick: Callable[[], None],
        **more: Any,
    ) -> NDArray[np.uint8]:
        drawing = generator.with_sampling(sampling or generator.sampling)
        with autocast(self.precision, self.tokenizer.device):
            latents = drawing.latents(labels, seed, callback=lambda *_: tick(), **more)
        with autocast("fp32" if self.precision == "bf16" else self.precision, self.tokenizer.device):
            return self._decoded(latents, tick)

    def _decoded(self, latents: Tensor, tick: Callable[[], None]) -> NDArray[np.uint8]:
        pixels = latents.shape[2] * latents.shape[3] * self.tokenizer.factor**2
        images = []
        for part in latents.float().split(max(1, _DECODED_PIXELS // pixels)):
            tick()
            images.append(to_uint8(self._decode(part)).cpu().numpy())
        return np.concatenate(images)

    def _decode(self, latents: Tensor) -> Tensor:
        images = self.tokenizer.decode(latents)
        if not bool(images.isfinite().all()):
            raise RunError("the tokenizer's decoder returns numbers that are not finite: check its weights")
        return images

    def _pixels(self, image: Image.Image, side: int) -> NDArray[np.uint8]:
        factor = self.tokenizer.factor
        if side < factor or side % factor or side > LARGEST_SIDE:
            raise UserError(f"side must be a multiple of {factor} from {factor} to {LARGEST_SIDE}, got {side}")
        height, width = (1, 1) if self.generator is None else height_width(self.generator.image_size)
        shape = (side * length / max(height, width) for length in (height, width))
        size = size_of(*(max(1, round(length / factor)) * factor for length in shape))
        return np.asarray(center_crop(image.convert("RGB"), size))


def _check_count(count: int) -> None:
    if not 2 <= count <= MOST_IMAGES:
        raise UserError(f"images must be from 2 to {MOST_IMAGES}, got {count}")


def spherical(start: Tensor, end: Tensor, count: int) -> Tensor:
    """Return `count` points on the great circle from `start` to `end`, both included: (count, *start.shape).

    sin((1 − w) θ) / sin θ · start + sin(w θ) / sin θ · end, with θ the angle between the two (Shoemake 1985).
    """
    # Near angle 0 the arc cosine of a rounded cosine has an error of 3e-4 in float32; the arc tangent is exact.
    first, last = start / start.norm(), end / end.norm()
    angle = 2 * torch.atan2((first - last).norm(), (first + last).norm())
    weights = torch.linspace(0, 1, count, dtype=start.dtype, device=start.device).view(-1, *[1] * start.ndim)
    if torch.sin(angle) < 1e-4:  # equal noise
        return start + weights * (end - start)
    return (torch.sin((1 - weights) * angle) * start + torch.sin(weights * angle) * end) / torch.sin(angle)
