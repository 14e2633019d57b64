"""Sets of images to measure: image sources, folders of samples, npz files, samples of a generator, decoded latents."""

import math
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
from vavae.evaluation.features import Block, ImageSet
from vavae.io.hashing import digest, tensor_digest
from vavae.metrics.npz import STATISTICS, check_unpacked
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.models.sampling import draw


def one_part(data: ImagesConfig) -> bool:
    """Return whether training and test part are the same images, since no test part exists and none are held out.

    Raises:
        UserError: A Hugging Face set cannot be opened.
    """
    return data.holdout == 0 and not has_part(data.images, "test")


def pixel_block(pixels: Tensor) -> Block:
    """Return the block of these pixels (B, H, W, 3) uint8. Its key is their hash."""
    return Block(tensor_digest(pixels), lambda part: pixels[part])


def source_images(source: ImageSource, size: Size, workers: int = 4) -> ImageSet:
    """Return the images of a source with ADM's center crop."""
    return ImageSet(
        source.name, len(source), size, lambda indices: pixel_block(load_pixels(source, indices, size, workers))
    )


def array_images(pixels: NDArray[np.uint8], name: str, passed_over: Mapping[str, int]) -> ImageSet:
    """Return the images of an array (N, H, W, 3) uint8, which may be mapped from a file, neither cropped nor resized.

    Raises:
        UserError: The array has another shape or type.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise UserError(f"{name}: images must be (N, H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")

    def block(indices: range) -> Block:
        return pixel_block(torch.from_numpy(np.array(pixels[indices.start : indices.stop])))

    return ImageSet(name, len(pixels), size_of(*pixels.shape[1:3]), block, Found(name, passed_over))


def folder_images(folder: str | Path) -> ImageSet:
    """Return the samples in a folder, which have one size and are neither cropped nor resized.

    All images in the folder and below count, in natural order, except the grid that `vavae sample` writes.

    Raises:
        UserError: There are fewer than two images, or (when they are read) they differ in size.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder or npz of samples; 'vavae sample' writes one")
    files, passed_over = sample_files(root)
    if len(files) < 2:
        raise UserError(f"{folder} must have at least 2 samples, got {len(files)}")
    name, shape = printable(str(folder)), _read_pixels(files[0]).shape

    def block(indices: range) -> Block:
        with ThreadPoolExecutor(4) as pool:
            arrays = list(pool.map(_read_pixels, files[indices.start : indices.stop]))
        if any(array.shape != shape for array in arrays):
            raise UserError(f"{name}: its images differ in size")
        return pixel_block(torch.from_numpy(np.stack(arrays)))

    return ImageSet(name, len(files), size_of(*shape[:2]), block, Found(f"folder {root}", passed_over))


def sample_files(root: Path) -> tuple[list[Path], Counter[str]]:
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


def _read_pixels(file: Path) -> NDArray[np.uint8]:
    with reading(f"image {file}"):
        return np.asarray(read_rgb(file))


def generated_images(
    generator: Generator,
    labels: Sequence[int],
    seed: int,
    sampling: SamplingConfig,
    precision: InferencePrecision,
    fingerprint: str,
) -> ImageSet:
    """Return samples of a generator, numbered from 0 and drawn when they are needed."""
    mode = resolve_precision(precision, generator.tokenizer.device)
    described = digest("samples", fingerprint, to_plain(sampling), seed, mode)

    def block(indices: range) -> Block:
        own = [labels[i] for i in indices]

        def pixels(part: slice) -> Tensor:
            return torch.from_numpy(draw(generator, own[part], list(indices[part]), seed, sampling, precision))

        return Block(digest(described, indices.start, own), pixels)

    return ImageSet("samples", len(labels), generator.image_size, block)


def decoded_images(tokenizer: Tokenizer, latents: Tensor, precision: InferencePrecision, name: str) -> ImageSet:
    """Return the decodings of normalized latents, (N, C, h, w)."""
    mode = resolve_precision(precision, tokenizer.device)
    described = digest("decoded", tokenizer.fingerprint(), mode)

    def block(indices: range) -> Block:
        own = latents[indices.start : indices.stop]

        def pixels(part: slice) -> Tensor:
            with autocast(mode, tokenizer.device):
                decoded = tokenizer.decode(own[part]).float()
            return to_uint8(decoded).cpu()

        return Block(digest(described, tensor_digest(own)), pixels)

    size = scale_size((latents.shape[2], latents.shape[3]), tokenizer.factor)
    return ImageSet(name, len(latents), size, block)


def npz_images(path: str | Path) -> ImageSet | None:
    """Return the images `arr_0` of an npz file, which are read when they are needed; None without such an array.

    An uncompressed array is mapped into memory in place; a compressed one is unpacked into a temporary file first.

    Raises:
        UserError: The file is missing, damaged, not an npz, or unpacks to far more than it takes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "arr_0.npy" not in archive.namelist():
                return None
            pixels = _map_array(Path(path), archive, archive.getinfo("arr_0.npy"))
    except Exception as error:  # a damaged archive raises a dozen kinds of errors
        if fault_number(error) in DISK_FAULTS:  # of the temporary folder
            raise
        raise UserError(f"{path}: cannot be read as npz ({one_line(error)})") from error
    others = Counter(f"array {name}" for name in names if name not in ("arr_0", *STATISTICS))
    return array_images(pixels, str(path), others)


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
    with tempfile.TemporaryDirectory() as folder:  # a mapped file stays readable after its removal
        if member.compress_type == zipfile.ZIP_STORED:
            with path.open("rb") as file:
                file.seek(member.header_offset + 26)  # lengths of name and extra field in the local header
                name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
            header += member.header_offset + 30 + name_length + extra_length
        else:
            path = Path(archive.extract(member, folder))
        return np.memmap(path, dtype=dtype, mode="r", offset=header, shape=shape, order="F" if fortran else "C")
