"""Reconstructions as a set of images to measure. Their fidelity is stored on the way, one value per image."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vavae import rng
from vavae.config.image_size import Size, height_width
from vavae.data import ImageSource, load_pixels, to_tensor, to_uint8
from vavae.device import Compute, InferencePrecision, autocast, resolve_precision
from vavae.errors import RunError, UserError
from vavae.evaluation.features import Block, BlockStore, ImageSet, StoredFeatures
from vavae.evaluation.images import pixel_block
from vavae.io.files import check_not_foreign, drop_drafts, read_json_object, write_json, written_whole
from vavae.io.hashing import digest, tensor_digest
from vavae.metrics import Convention, fidelity
from vavae.models import Tokenizer
from vavae.training.parallel import World

_RECORD = "reconstructions.json"


def published_evaluation_crop(source: ImageSource, index: int, size: Size) -> Tensor:
    """Return an image as the published evaluation of tokenizers crops it, (3, H, W) float32 in [-1, 1].

    The image is resized until it just covers `size` (for a square, the short side becomes `size`), bilinear and
    anti-aliased. The floats are not rounded again. Then the center is cut out.
    """
    image = to_tensor(np.array(source.image(index)))[None]  # (1, 3, H, W)
    (height, width), (rows, columns) = image.shape[2:], height_width(size)
    # In whole numbers, as published: one side is as requested; the other is rounded down, and at least as requested.
    lower = rows * width < columns * height
    covering = (columns * height // width, columns) if lower else (rows, rows * width // height)
    if covering != (height, width):
        image = F.interpolate(image, size=covering, mode="bilinear", align_corners=False, antialias=True)
    top, left = round((covering[0] - rows) / 2.0), round((covering[1] - columns) / 2.0)
    return image[0, :, top : top + rows, left : left + columns]


@dataclass(frozen=True)
class EvaluationContext:
    """Settings that all measurements of an evaluation share."""

    store: BlockStore  # store of the features, and of each image's fidelity
    processes: World  # processes that share the work
    batch_size: int
    precision: InferencePrecision  # compute precision of the tokenizer
    seed: int = 0  # seed of the posterior's samples and of the bootstrap
    bootstrap: int = 0  # repetitions for intervals; 0 for no intervals
    workers: int = 4  # threads that decode images
    # Opens the store of the original images' features, if it is another one.
    originals: Callable[[], AbstractContextManager[BlockStore]] | None = None
    # Folder for the reconstructions as PNGs, `strict/000000.png`, … in order; None writes no images.
    images: Path | None = None


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Images and their reconstructions, from the posterior's mean (strict) or from a sample of it (published)."""

    tokenizer: Tokenizer
    source: ImageSource
    size: Size  # size of the crop in pixels
    convention: Convention  # convention of crop, reconstruction and fidelity
    perceptual: Mapping[str, Callable[[Tensor, Tensor], Tensor]]  # LPIPS networks by name
    work: EvaluationContext

    @property
    def folder(self) -> Path | None:
        """Folder of the PNGs of this convention."""
        return None if self.work.images is None else self.work.images / self.convention

    @cached_property
    def _mode(self) -> Compute:
        return resolve_precision(self.work.precision, self.tokenizer.device)

    @cached_property
    def _described(self) -> str:
        """Hash of all that determines reconstructions, except the images."""
        sampled = () if self.convention == "strict" else (self.work.seed,)
        return digest("reconstruction", self.tokenizer.fingerprint(), self._mode, self.convention, *sampled)

    def _load(self, indices: range) -> Tensor:
        """Return images with the crop of the convention, (len(indices), 3, H, W) float32 in [-1, 1]."""
        if self.convention == "strict":
            return to_tensor(load_pixels(self.source, indices, self.size, self.work.workers))
        return torch.stack([published_evaluation_crop(self.source, index, self.size) for index in indices])

    def originals(self) -> ImageSet:
        """Return the images as 8-bit pixels."""
        return ImageSet(
            self.source.name, len(self.source), self.size, lambda indices: pixel_block(to_uint8(self._load(indices)))
        )

    def images(self) -> ImageSet:
        """Return the reconstructions. Computing their pixels also stores their fidelity and writes PNGs."""
        return ImageSet(f"reconstructions of {self.source.name}", len(self.source), self.size, self._block)

    def _block(self, indices: range) -> Block:
        """Return a block of reconstructions. Its key is a hash of tokenizer, convention and originals."""
        images = self._load(indices)
        key = digest(self._described, indices.start, tensor_digest(images))
        values: dict[str, list[Tensor]] = defaultdict(list)

        def pixels(part: slice) -> Tensor:
            original, numbers = images[part], indices[part]
            decoded = self._rebuild(original, torch.tensor(numbers))
            good = decoded.flatten(1).isfinite().all(1)
            if not bool(good.all()):
                number = numbers[int(good.logical_not().nonzero()[0])]
                raise RunError(f"{self.source.name}: the reconstruction of image {number} is not finite")
            with torch.inference_mode():
                found = fidelity(original.to(decoded.device), decoded, self.convention, self.perceptual)
            for name, value in found.items():
                values[name].append(value.cpu())
            stored = to_uint8(decoded).cpu()
            if self.folder is not None:
                for number, image in zip(numbers, stored.numpy(), strict=True):
                    with written_whole(self._file(number)) as draft:
                        Image.fromarray(image).save(draft, format="PNG")
            if numbers.stop == indices.stop:
                self.work.store.write(self._values_key(key), {name: torch.cat(parts) for name, parts in values.items()})
            return stored

        written = self.folder is None or all(self._file(number).is_file() for number in indices)
        return Block(key, pixels, complete=written and self.work.store.has(self._values_key(key)))

    def _rebuild(self, images: Tensor, indices: Tensor) -> Tensor:
        """Return the decoder's output for images (B, 3, H, W), not clamped, float32."""
        tokenizer = self.tokenizer
        with autocast(self._mode, tokenizer.device), torch.inference_mode():
            if self.convention == "strict":
                latents = tokenizer.encode(images)
            else:
                shape = (tokenizer.latent_channels, *(side // tokenizer.factor for side in images.shape[2:]))
                noise = rng.normal(self.work.seed, "posterior", indices, shape, tokenizer.device)
                latents = tokenizer.encode(images, mode="sample", noise=noise)
            return tokenizer.autoencoder.decode(tokenizer.statistics.denormalize(latents)).float()

    def _file(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{index:06d}.png"

    def _values_key(self, key: str) -> str:
        return digest("fidelity", key, sorted(self.perceptual))

    def values(self, features: StoredFeatures) -> dict[str, Tensor]:
        """Return the fidelity of every image, (N,) float64 by name, after `extract` returned `features`."""
        parts = [self.work.store.read(self._values_key(key)) for key in features.keys]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def claim_folder(self) -> None:
        """Record in the folder of images which reconstructions it contains, and remove drafts of killed calls.

        Raises:
            UserError: The folder contains reconstructions by another tokenizer, of other images or with other
                settings, or other files.
        """
        if self.folder is None:
            return
        record = {"reconstructions": digest(self._described, self.source.fingerprint(), self.size)}
        path = self.folder / _RECORD
        check_not_foreign(self.folder, lambda folder: path.is_file(), f"{_RECORD} that names the tokenizer")
        if path.is_file() and read_json_object(path) != record:
            raise UserError(
                f"reconstructions: {self.folder} is of another tokenizer, other images or settings; choose another "
                "folder"
            )
        drop_drafts(self.folder)
        write_json(path, record)
