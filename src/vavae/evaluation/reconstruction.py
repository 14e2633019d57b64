"""Reconstructions as a set of images to measure. Their fidelity is stored on the way, one value per image."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vavae import rng
from vavae.config.image_size import Size, height_width
from vavae.data import ImageSource, to_tensor, to_uint8
from vavae.device import InferencePrecision, autocast, resolve_precision
from vavae.errors import RunError, UserError
from vavae.evaluation.features import Block, BlockStore, StoredFeatures
from vavae.evaluation.images import SourceBlocks
from vavae.io.files import check_not_foreign, drop_drafts, read_json_object, written_whole
from vavae.io.hashing import digest, tensor_digest
from vavae.metrics import Convention, fidelity
from vavae.models import Tokenizer

_RECORD = "reconstructions.json"


def published_evaluation_crop(source: ImageSource, index: int, size: Size) -> Tensor:
    """Return an image as the published evaluation of tokenizers crops it, (3, H, W) float32 in [-1, 1].

    The image is resized until it just covers `size` (for a square, the short side becomes `size`), bilinear and
    anti-aliased. The floats are not rounded again. Then the center is cut out.
    """
    import numpy as np

    image = to_tensor(np.array(source.image(index)))[None]  # (1, 3, H, W)
    (height, width), (rows, columns) = image.shape[2:], height_width(size)
    # In whole numbers, as published: one side is as requested; the other is rounded down, and at least as requested.
    lower = rows * width < columns * height
    covering = (columns * height // width, columns) if lower else (rows, rows * width // height)
    if covering != (height, width):
        image = F.interpolate(image, size=covering, mode="bilinear", align_corners=False, antialias=True)
    top, left = round((covering[0] - rows) / 2.0), round((covering[1] - columns) / 2.0)
    return image[0, :, top : top + rows, left : left + columns]


class Originals:
    """Images with the crop of one convention.

    Args:
        source: The images.
        size: Size of the crop in pixels.
        convention: Convention of the crop.
        workers: Threads that decode images.
    """

    def __init__(self, source: ImageSource, size: Size, convention: Convention, workers: int = 4) -> None:
        self.source = source
        self.name = source.name
        self.count = len(source)
        self.size: Size | None = size
        self.convention = convention
        self._size = size
        self._strict = SourceBlocks(source, size, workers)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Return these images, (len(indices), 3, H, W) float32 in [-1, 1]."""
        if self.convention == "strict":
            return to_tensor(self._strict.pixels(indices))
        return torch.stack([published_evaluation_crop(self.source, int(i), self._size) for i in indices])

    def open(self, indices: Sequence[int]) -> Block:
        """Return the block as 8-bit pixels. Its key is their hash."""
        pixels = to_uint8(self.images(indices))
        return Block(tensor_digest(pixels), lambda batch_size: iter(pixels.split(batch_size)))


class Reconstructions:
    """Reconstructions of images: from the posterior's mean in the strict convention, from a sample as published.

    Args:
        originals: The images.
        tokenizer: The tokenizer.
        perceptual: LPIPS networks by name.
        store: Store of each image's fidelity.
        precision: Compute precision of the tokenizer.
        seed: Seed of the posterior's samples.
        folder: Folder for the reconstructions as PNGs, `000000.png`, … in the order of the images; None writes no
            images.
    """

    def __init__(
        self,
        originals: Originals,
        tokenizer: Tokenizer,
        perceptual: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
        store: BlockStore,
        precision: InferencePrecision,
        seed: int,
        folder: Path | None = None,
    ) -> None:
        self.originals = originals
        self.name = f"reconstructions of {originals.name}"
        self.count = originals.count
        self.size = originals.size
        self._tokenizer = tokenizer
        self._perceptual = perceptual
        self._store = store
        self._seed = seed
        self._folder = folder
        self._mode = resolve_precision(precision, tokenizer.device)
        sampled = () if originals.convention == "strict" else (seed,)
        self._described = digest("reconstruction", tokenizer.fingerprint(), self._mode, originals.convention, *sampled)

    def claim_folder(self) -> None:
        """Record in the folder of images which reconstructions it contains, and remove drafts of killed calls.

        Raises:
            UserError: The folder contains reconstructions by another tokenizer, of other images or with other
                settings, or other files.
        """
        if self._folder is None:
            return
        record = {"reconstructions": digest(self._described, self.originals.source.fingerprint(), self.size)}
        path = self._folder / _RECORD
        check_not_foreign(self._folder, lambda folder: path.is_file(), f"{_RECORD} that names the tokenizer")
        if path.is_file() and read_json_object(path) != record:
            raise UserError(
                f"reconstructions: {self._folder} is of another tokenizer, other images or settings; choose another "
                "folder"
            )
        drop_drafts(self._folder)
        with written_whole(path) as draft:
            draft.write_text(json.dumps(record) + "\n")

    def _file(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index:06d}.png"

    def _values_key(self, key: str) -> str:
        return digest("fidelity", key, sorted(self._perceptual))

    def open(self, indices: Sequence[int]) -> Block:
        """Return the block. Its key is a hash of tokenizer, convention and originals."""
        images = self.originals.images(indices)
        key = digest(self._described, indices[0], tensor_digest(images))

        def batches(batch_size: int) -> Iterator[Tensor]:
            values: dict[str, list[Tensor]] = {}
            for part, numbers in zip(
                images.split(batch_size), torch.tensor(list(indices)).split(batch_size), strict=True
            ):
                decoded = self._rebuild(part, numbers)
                good = decoded.flatten(1).isfinite().all(1)
                if not bool(good.all()):
                    number = int(numbers[good.cpu().logical_not()][0])
                    raise RunError(f"{self.name}: the reconstruction of image {number} is not finite")
                with torch.inference_mode():
                    found = fidelity(part.to(decoded.device), decoded, self.originals.convention, self._perceptual)
                for name, value in found.items():
                    values.setdefault(name, []).append(value.cpu())
                pixels = to_uint8(decoded).cpu()
                if self._folder is not None:
                    for index, image in zip(numbers.tolist(), pixels.numpy(), strict=True):
                        with written_whole(self._file(index)) as draft:
                            Image.fromarray(image).save(draft, format="PNG")
                yield pixels
            self._store.write(self._values_key(key), {name: torch.cat(parts) for name, parts in values.items()})

        written = self._folder is None or all(self._file(index).is_file() for index in indices)
        return Block(key, batches, complete=written and self._store.has(self._values_key(key)))

    def _rebuild(self, images: Tensor, indices: Tensor) -> Tensor:
        """Return the decoder's output for images (B, 3, H, W), not clamped, float32."""
        tokenizer = self._tokenizer
        with autocast(self._mode, tokenizer.device), torch.inference_mode():
            if self.originals.convention == "strict":
                latents = tokenizer.encode(images)
            else:
                shape = (tokenizer.latent_channels, *(side // tokenizer.factor for side in images.shape[2:]))
                noise = rng.normal(self._seed, "posterior", indices, shape, tokenizer.device)
                latents = tokenizer.encode(images, mode="sample", noise=noise)
            return tokenizer.autoencoder.decode(tokenizer.statistics.denormalize(latents)).float()

    def values(self, features: StoredFeatures) -> dict[str, Tensor]:
        """Return the fidelity of every image, (N,) float64 by name, after `extract` returned `features`."""
        parts = [self._store.read(self._values_key(key)) for key in features.keys]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
