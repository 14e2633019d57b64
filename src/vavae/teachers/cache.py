"""Features of a fixed list of images, computed once and read from disk.

The teacher costs more than the tokenizer that it helps to train. If the images are the same in every epoch (center
crop, no flips), so are its features. They are stored in blocks of consecutive images. Each block is a safetensors file
that is written completely or not at all, so a stopped run resumes with the next block.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
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

_BLOCK_BYTES = 64 << 20
_IN_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class _Settings:
    """All that the features depend on; their hash names the folder."""

    teacher: str
    image_set: str
    count: int
    shape: tuple[int, int, int]
    dtype: str
    block_size: int


class FeatureCache:
    """Feature grids of images 0 ... count - 1, at one grid size.

    Args:
        folder: Parent folder. The features go into a subfolder named by a hash of all that they depend on: weights,
            preprocessing and precision of the teacher, images, grid, stored dtype.
        teacher: Computes missing features, on its own device.
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
        teacher: Teacher,
        grid: tuple[int, int],
        image_set: str,
        count: int,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        shape = (teacher.width, int(grid[0]), int(grid[1]))
        image_bytes = shape[0] * shape[1] * shape[2] * dtype.itemsize
        block_size = max(1, _BLOCK_BYTES // image_bytes)
        stored = str(dtype).removeprefix("torch.")
        settings = _Settings(teacher.fingerprint(), image_set, count, shape, stored, block_size)
        key = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder) / f"{Path(teacher.name).name}-{key}"
        self.count = count
        self.dtype = dtype
        self._settings = settings
        self._teacher = teacher
        self._grid = (int(grid[0]), int(grid[1]))
        self._block_size = block_size
        self._blocks: list[Tensor] | None = None
        self.resident = False

    @property
    def size_bytes(self) -> int:
        """Size of all features in bytes."""
        channels, height, width = self._settings.shape
        return self.count * channels * height * width * self.dtype.itemsize

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
            missing = [start for start in self._starts() if not self._block_path(start).is_file()]
            done = self.count - sum(self._block_length(start) for start in missing)
            if not missing:
                return
            description = f"features of {self._teacher.name}"
            batches = (batch for start in missing for batch in self._indices(start).split(batch_size))
            with (
                track(description, self.count, unit="images", start=done) as bar,
                closing(loaded_ahead(batches, load, workers)) as loaded,
            ):
                for start in missing:
                    self._write_block(start, islice(loaded, -(-self._block_length(start) // batch_size)), bar.advance)

    def to_device(self, device: torch.device | str) -> None:
        """Keep all features (`size_bytes`) in the memory of `device`, where `get` then returns them.

        Raises:
            UserError: A block is missing or damaged.
        """
        whole = torch.empty((self.count, *self._settings.shape), dtype=self.dtype, device=device)
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
        features = torch.empty((len(wanted), *self._settings.shape), dtype=self.dtype)
        number = wanted // self._block_size
        for block in number.unique().tolist():
            rows = (number == block).nonzero().squeeze(1)
            features[rows] = self._blocks[block][wanted[rows] - block * self._block_size]
        return features

    def _starts(self) -> range:
        return range(0, self.count, self._block_size)

    def _block_length(self, start: int) -> int:
        return min(self._block_size, self.count - start)

    def _indices(self, start: int) -> Tensor:
        return torch.arange(start, start + self._block_length(start))

    def _block_path(self, start: int) -> Path:
        return self.folder / f"{start:09d}.safetensors"

    def _write_block(self, start: int, loaded: Iterator[tuple[Tensor, Tensor]], advance: Callable[[int], None]) -> None:
        """Write the block that starts with image `start`; `loaded` yields its batches (indices, images)."""
        indices = self._indices(start)
        features = torch.empty((len(indices), *self._settings.shape), dtype=self.dtype)
        device = next(self._teacher.parameters()).device
        for batch, images in loaded:
            computed = self._teacher.features_at(to_device(images, device), self._grid)
            features[batch - start] = computed.to("cpu", self.dtype)
            advance(len(batch))
        if not torch.isfinite(features).all():
            raise UserError(
                f"features of {self._teacher.name} must be finite, got others for images {start} to "
                f"{start + len(indices) - 1} as {self._settings.dtype}"
            )
        path = self._block_path(start)
        with written_whole(path) as temporary:
            save_file({"features": features}, temporary, metadata={"settings": json.dumps(asdict(self._settings))})

    def _open(self) -> list[Tensor]:
        """Return the blocks, mapped into memory."""
        blocks = []
        for start in self._starts():
            path = self._block_path(start)
            try:
                block = load_file(path)["features"]
            except FileNotFoundError as error:
                raise UserError(f"teacher features {path} are missing; call `fill` first") from error
            except (SafetensorError, OSError, KeyError) as error:
                raise UserError(f"teacher features {path} are damaged ({error}); delete the file") from error
            if block.shape != (self._block_length(start), *self._settings.shape) or block.dtype != self.dtype:
                raise UserError(f"teacher features {path} are damaged (wrong shape); delete the file")
            blocks.append(block)
        return blocks
