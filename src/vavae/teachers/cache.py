"""Features of a fixed list of images, computed once and read from disk.

The teacher costs more than the tokenizer that it helps to train. If the images are the same in every epoch (center
crop, no flips), so are its features. They are stored in blocks of consecutive images. Each block is a safetensors file
that is written completely or not at all, so a stopped run resumes with the next block.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vavae.data.loader import loaded_ahead
from vavae.device import to_device
from vavae.errors import UserError
from vavae.io.files import drop_drafts, written_whole
from vavae.progress import track
from vavae.teachers.base import Teacher
from vavae.teachers.latent import LatentEncoder

_BLOCK_BYTES = 64 << 20
_IN_MEMORY_BYTES = 1 << 30


class FeatureCache:
    """Feature grids of images 0 ... count - 1, at one grid size.

    Args:
        folder: Parent folder. The features go into a subfolder named by a hash of all that they depend on: weights,
            preprocessing and precision of the teacher, images, grid, stored dtype.
        teacher: Computes missing features, or the latents that it is, on its own device.
        grid: (h, w) that the features are resampled to.
        image_set: Fingerprint of the list of images and their preprocessing; it must change with them.
        count: Number of images.
        dtype: Dtype on disk: `torch.float16`, `torch.bfloat16` or `torch.float32`.

    Attributes:
        resident: Whether `to_device` has put the features into a device's memory.
    """

    def __init__(
        self,
        folder: str | Path,
        teacher: Teacher | LatentEncoder,
        grid: tuple[int, int],
        image_set: str,
        count: int,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        self._grid = (int(grid[0]), int(grid[1]))
        self._shape = (teacher.width, *self._grid)
        self._block_size = max(1, _BLOCK_BYTES // (math.prod(self._shape) * dtype.itemsize))
        # All that the features depend on; their hash names the folder.
        settings = {
            "teacher": teacher.fingerprint(),
            "image_set": image_set,
            "count": count,
            "shape": self._shape,
            "dtype": str(dtype).removeprefix("torch."),
            "block_size": self._block_size,
        }
        self._settings = json.dumps(settings)
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder) / f"{Path(teacher.name).name}-{key}"
        self.count = count
        self.dtype = dtype
        self.resident = False
        self._teacher = teacher
        self._ranges = [range(s, min(s + self._block_size, count)) for s in range(0, count, self._block_size)]
        self._blocks: list[Tensor] | None = None

    @property
    def size_bytes(self) -> int:
        """Size of all features in bytes."""
        return self.count * math.prod(self._shape) * self.dtype.itemsize

    def fill(self, load: Callable[[Tensor], Tensor], batch_size: int = 64, workers: int = 0) -> None:
        """Compute missing blocks; a second process waits for the first.

        Args:
            load: Indices (n,) int64 -> images (n, 3, H, W) in [-1, 1]; called from several threads at once.
            batch_size: Images per call of the teacher.
            workers: Threads that load images ahead of the teacher; 0 loads in the calling thread.

        Raises:
            UserError: Features are not finite in the stored dtype.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._blocks = None
        with FileLock(self.folder / ".lock"):
            drop_drafts(self.folder)
            missing = [images for images in self._ranges if not self._path(images).is_file()]
            if not missing:
                return
            done = self.count - sum(map(len, missing))
            numbers = (torch.arange(images.start, images.stop) for images in missing)
            batches = (batch for some in numbers for batch in some.split(batch_size))
            with (
                track(f"features of {self._teacher.name}", self.count, unit="images", start=done) as bar,
                closing(loaded_ahead(batches, load, workers)) as loaded,
            ):
                for images in missing:
                    self._write_block(images, islice(loaded, -(-len(images) // batch_size)), bar.advance)

    def to_device(self, device: torch.device | str) -> None:
        """Keep all features (`size_bytes`) in the memory of `device`, where `get` then returns them.

        Raises:
            UserError: A block is missing or damaged.
        """
        whole = torch.empty((self.count, *self._shape), dtype=self.dtype, device=device)
        blocks = self._open()
        for target, block in zip(whole.split([len(block) for block in blocks]), blocks, strict=True):
            target.copy_(block)
        self._blocks = [whole]
        self.resident = True

    def get(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return features of the images `indices` (n,), in that order: (n, D, h, w) in the stored dtype.

        They are on the CPU, or on the device given to `to_device`.

        Raises:
            IndexError: An index is outside the list.
            UserError: A block is missing (`fill` has not finished) or damaged.
        """
        wanted = torch.as_tensor(indices, dtype=torch.int64).cpu()
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.count):
            raise IndexError(f"indices must be in [0, {self.count})")
        if self._blocks is None:
            blocks = self._open()
            self._blocks = [torch.cat(blocks)] if self.size_bytes <= _IN_MEMORY_BYTES else blocks
        if len(self._blocks) == 1:
            return self._blocks[0][wanted.to(self._blocks[0].device)]
        features = torch.empty((len(wanted), *self._shape), dtype=self.dtype)
        number = wanted // self._block_size
        for block in number.unique().tolist():
            rows = (number == block).nonzero().squeeze(1)
            features[rows] = self._blocks[block][wanted[rows] - block * self._block_size]
        return features

    def _path(self, images: range) -> Path:
        return self.folder / f"{images.start:09d}.safetensors"

    def _write_block(
        self, images: range, loaded: Iterator[tuple[Tensor, Tensor]], advance: Callable[[int], None]
    ) -> None:
        """Write the block of some images; `loaded` yields its batches (indices, images)."""
        features = torch.empty((len(images), *self._shape), dtype=self.dtype)
        device = next(self._teacher.parameters()).device
        for batch, pixels in loaded:
            computed = self._teacher.features_at(to_device(pixels, device), self._grid)
            features[batch - images.start] = computed.to("cpu", self.dtype)
            advance(len(batch))
        if not torch.isfinite(features).all():
            raise UserError(
                f"features of {self._teacher.name} must be finite, got others for images {images.start} to "
                f"{images.stop - 1} as {str(self.dtype).removeprefix('torch.')}"
            )
        with written_whole(self._path(images)) as temporary:
            save_file({"features": features}, temporary, metadata={"settings": self._settings})

    def _open(self) -> list[Tensor]:
        """Return the blocks, mapped into memory."""
        blocks = []
        for images in self._ranges:
            path = self._path(images)
            try:
                block = load_file(path)["features"]
            except FileNotFoundError as error:
                raise UserError(f"teacher features {path} are missing; call `fill` first") from error
            except (SafetensorError, OSError, KeyError) as error:
                raise UserError(f"teacher features {path} are damaged ({error}); delete the file") from error
            if block.shape != (len(images), *self._shape) or block.dtype != self.dtype:
                raise UserError(f"teacher features {path} are damaged (wrong shape); delete the file")
            blocks.append(block)
        return blocks
