"""Sets of images to measure: image sources, folders of samples, npz files, samples of a generator, decoded latents."""

import math
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vavae.config import to_plain
from vavae.config.image_size import Size, scale_size, size_of
from vavae.data import ImageSource, has_part, load_pixels, read_rgb, to_uint8
from vavae.data.folders import images_below
from vavae.data.found import Found
from vavae.data.images import ImagesConfig
from vavae.data.readable import reading
from vavae.device import InferencePrecision, autocast, resolve_precision
from vavae.errors import DISK_FAULTS, UserError, fault_number, one_line, printable
from vavae.evaluation.features import Block
from vavae.io.hashing import digest, tensor_digest
from vavae.metrics.npz import STATISTICS, check_unpacked
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.models.sampling import draw


def one_part(data: ImagesConfig) -> bool:
    """Return whether training and test part are the same images: there is no test part, and none are held out.

    Raises:
        UserError: A Hugging Face set cannot be opened.
    """
    return data.holdout == 0 and not has_part(data.images, "test")


class SourceBlocks:
    """Images of a source, with ADM's center crop.

    Args:
        source: The images.
        size: Size of the crop in pixels.
        workers: Threads that decode images.
    """

    def __init__(self, source: ImageSource, size: Size, workers: int = 4) -> None:
        self.source = source
        self.name = source.name
        self.count = len(source)
        self.size: Size | None = size
        self._workers = workers

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Return the pixels of these images, (len(indices), H, W, 3) uint8."""
        assert self.size is not None
        return load_pixels(self.source, indices, self.size, self._workers)

    def open(self, indices: Sequence[int]) -> Block:
        """Return the block. Its key is the hash of its pixels."""
        return _block_of(self.pixels(indices))


class ArrayBlocks:
    """Images of an array, which may be a file mapped into memory; neither cropped nor resized.

    Args:
        pixels: (N, H, W, 3) uint8.
        name: Name of the file.
        passed_over: Number of other arrays in the file by name.

    Attributes:
        found: Where the images are, and what was passed over.

    Raises:
        UserError: The array has another shape or type.
    """

    def __init__(self, pixels: NDArray[np.uint8], name: str, passed_over: Mapping[str, int] = MappingProxyType({})):
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
            raise UserError(f"{name}: images must be (N, H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
        self._pixels = pixels
        self.name = name
        self.found = Found(name, passed_over)
        self.count = len(pixels)
        self.size: Size | None = size_of(*pixels.shape[1:3])

    def open(self, indices: Sequence[int]) -> Block:
        """Return the block. Its key is the hash of its pixels."""
        return _block_of(torch.from_numpy(np.array(self._pixels[indices[0] : indices[-1] + 1])))


class FileBlocks:
    """Sample files of one size, neither cropped nor resized.

    Args:
        folder: Folder of the samples. All images in it and below count, in natural order, except the grid that
            `vavae sample` writes.

    Attributes:
        found: Where the images are, and what was passed over.

    Raises:
        UserError: There are fewer than two images, or (when they are read) they differ in size.
    """

    def __init__(self, folder: str | Path) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"no such folder or npz of samples: {folder}")
        files, passed_over = _sample_files(root)
        self.found = Found(f"folder {root}", passed_over)
        if len(files) < 2:
            raise UserError(f"{folder}: at least 2 samples are needed")
        self.files = files
        self.name = printable(str(folder))
        self.count = len(files)
        self._shape = _pixels_of(files[0]).shape
        self.size: Size | None = size_of(*self._shape[:2])

    def open(self, indices: Sequence[int]) -> Block:
        """Return the block. Its key is the hash of its pixels."""
        with ThreadPoolExecutor(4) as pool:
            arrays = list(pool.map(lambda i: _pixels_of(self.files[i]), indices))
        if any(array.shape != self._shape for array in arrays):
            raise UserError(f"{self.name}: its images differ in size")
        return _block_of(torch.from_numpy(np.stack(arrays)))


def _sample_files(root: Path) -> tuple[list[Path], Counter[str]]:
    """Return all images in a folder and below, in natural order (2 before 10), and the other files by reason."""
    passed: Counter[str] = Counter()
    try:
        files = list(images_below(root, passed))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
    grid = root / "grid.png"
    if grid in files:
        files.remove(grid)
        passed["grid.png, as vavae sample writes it"] += 1
    return sorted(files, key=lambda file: _natural(file.relative_to(root).as_posix())), passed


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return the sort key of a name in which numbers are compared as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _pixels_of(file: Path) -> NDArray[np.uint8]:
    with reading(f"image {file}"):
        return np.asarray(read_rgb(file))


def _block_of(pixels: Tensor) -> Block:
    return Block(tensor_digest(pixels), lambda batch_size: iter(pixels.split(batch_size)))


class GeneratorBlocks:
    """Samples of a generator, numbered from 0 and drawn when they are needed.

    Args:
        generator: The generator.
        labels: Class of each sample.
        seed: Seed of the noise.
        sampling: Settings of sampling.
        precision: Compute precision of the transformer.
        fingerprint: `generator.fingerprint()`.
    """

    def __init__(
        self,
        generator: Generator,
        labels: Sequence[int],
        seed: int,
        sampling: SamplingConfig,
        precision: InferencePrecision,
        fingerprint: str,
    ) -> None:
        self.name = "samples"
        self.count = len(labels)
        self.size: Size | None = generator.image_size
        self._generator = generator
        self._labels = labels
        self._seed = seed
        self._sampling = sampling
        self._precision = precision
        mode = resolve_precision(precision, generator.tokenizer.device)
        self._described = digest("samples", fingerprint, to_plain(sampling), seed, mode)

    def open(self, indices: Sequence[int]) -> Block:
        """Return the block. Its key is a hash of all that determines its pixels."""
        labels = [self._labels[i] for i in indices]

        def batches(batch_size: int) -> Iterator[Tensor]:
            for start in range(0, len(indices), batch_size):
                numbers = list(indices[start : start + batch_size])
                chosen = labels[start : start + batch_size]
                pixels = draw(self._generator, chosen, numbers, self._seed, self._sampling, self._precision)
                yield torch.from_numpy(pixels)

        return Block(digest(self._described, indices[0], labels), batches)


class LatentBlocks:
    """Decodings of latents.

    Args:
        tokenizer: Tokenizer that decodes.
        latents: (N, C, h, w), normalized.
        precision: Compute precision of the tokenizer.
        name: Name of the set, for messages.
    """

    def __init__(self, tokenizer: Tokenizer, latents: Tensor, precision: InferencePrecision, name: str) -> None:
        self.name = name
        self.count = len(latents)
        self.size: Size | None = scale_size((latents.shape[2], latents.shape[3]), tokenizer.factor)
        self._tokenizer = tokenizer
        self._latents = latents
        self._mode = resolve_precision(precision, tokenizer.device)
        self._described = digest("decoded", tokenizer.fingerprint(), self._mode)

    def open(self, indices: Sequence[int]) -> Block:
        """Return the block. Its key is a hash of tokenizer and latents."""
        latents = self._latents[indices[0] : indices[-1] + 1]

        def batches(batch_size: int) -> Iterator[Tensor]:
            for part in latents.split(batch_size):
                with autocast(self._mode, self._tokenizer.device):
                    decoded = self._tokenizer.decode(part).float()
                yield to_uint8(decoded).cpu()

        return Block(digest(self._described, tensor_digest(latents)), batches)


def npz_images(path: str | Path) -> ArrayBlocks | None:
    """Return the images `arr_0` of an npz file, which are read as they are needed, or None if it has none.

    An uncompressed array is mapped into memory where it is; a compressed one is unpacked into a temporary file first.

    Raises:
        UserError: The file is missing, damaged, not an npz, or unpacks to far more than it takes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "arr_0.npy" not in archive.namelist():
                return None
            pixels = _map_array(Path(path), archive, archive.getinfo("arr_0.npy"))
    except Exception as error:  # a damaged archive fails in a dozen ways: compression, headers, sizes
        if fault_number(error) in DISK_FAULTS:  # where it is unpacked
            raise
        raise UserError(f"{path}: cannot be read as npz ({one_line(error)})") from error
    others = Counter(f"array {name}" for name in names if name not in ("arr_0", *STATISTICS))
    return ArrayBlocks(pixels, str(path), others)


def _map_array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[np.uint8]:
    """Map an .npy member of a zip file into memory."""
    check_unpacked(member)
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        header = stream.tell()
    if dtype.hasobject:
        raise ValueError("arr_0 must be a plain array, got Python objects")
    if header + math.prod(shape) * dtype.itemsize != member.file_size:
        raise ValueError(f"arr_0 has {member.file_size:,} bytes, which its shape {shape} does not fit")
    with tempfile.TemporaryDirectory() as folder:  # it may go while the file is mapped
        if member.compress_type == zipfile.ZIP_STORED:
            with path.open("rb") as file:
                file.seek(member.header_offset + 26)  # lengths of name and extra field in the local header
                name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
            header += member.header_offset + 30 + name_length + extra_length
        else:
            path = Path(archive.extract(member, folder))
        return np.memmap(path, dtype=dtype, mode="r", offset=header, shape=shape, order="F" if fortran else "C")
