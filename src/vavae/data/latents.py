"""Latents on disk: written once by an encoder, read many times by transformer training.

A folder of latents holds safetensors shards `latents_rank{RR}_shard{SSS}.safetensors` with the tensors

    latents       (n, C, h, w)    of the images
    latents_flip  (n, C, h, w)    of the mirrored images, if wanted
    labels        (n,) int64

which is the layout of the published extractor, and beside them `index.json` (settings, and count and sha256 of
each shard), `statistics.safetensors` (mean and standard deviation per channel) and `checked.json` (which files are
known to have their sha256). Folders of the published extractor, with `latents_stats.pt` and no index, are read too.
"""

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from vavae.config.image_size import Size, as_size
from vavae.data.latent_check import check_files
from vavae.errors import UserError, one_line
from vavae.io.files import UNFINISHED, read_json_object
from vavae.tokenizer.statistics import LatentStatistics, RunningStatistics

INDEX_NAME = "index.json"
STATISTICS_NAME = "statistics.safetensors"
PUBLISHED_STATISTICS_NAME = "latents_stats.pt"
FORMAT = "vavae latents 1"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Statistics add up in pieces of this many images, so that they do not depend on the encoder's batch size.
STATISTICS_CHUNK = 256


@dataclass(frozen=True)
class LatentSettings:
    """What latents are made of; two parts of one folder must agree in all of it.

    Attributes:
        image_size: Of the encoded images in pixels: one number for squares, else (height, width).
        posterior: "sample" stores one sample of the posterior per image, as published; "mean" stores its mean.
        seed: Seed of the posterior samples.
        dtype: Type in which latents are stored.
        flips: Whether the latents of mirrored images are stored beside the others.
        tokenizer: Fingerprint of the tokenizer.
        source: Fingerprint of the images.
        class_names: One name per class.
    """

    image_size: Size
    posterior: Literal["sample", "mean"] = "sample"
    seed: int = 0
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    flips: bool = True
    tokenizer: str = ""
    source: str = ""
    class_names: tuple[str, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return _DTYPES[self.dtype]


@dataclass(frozen=True)
class ShardRecord:
    """A shard as the index lists it: file name, index of the first image, number of images, sha256."""

    file: str
    first: int
    count: int
    sha256: str


class _MappedShard:
    """A shard whose tensors lie in the file's pages: opening it reads the header only.

    Raises:
        UserError: The file is missing, cut off, or not a shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            header, begin, size = read_header(path)
            self.format: str | None = header.get("__metadata__", {}).get("format")
            # A private mapping (nothing is ever written to the file), which keeps no file descriptor open.
            content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            self.latents = _view(content, header["latents"], begin)
            self.flipped = _view(content, header["latents_flip"], begin) if "latents_flip" in header else None
            self.labels = _view(content, header["labels"], begin).to(torch.int64)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(f"latent shard {path} is missing or damaged: {error}") from error
        shapes = {tuple(t.shape) for t in (self.latents, self.flipped) if t is not None}
        if self.latents.ndim != 4 or len(shapes) != 1 or self.labels.shape != self.latents.shape[:1]:
            raise UserError(f"latent shard {path} is damaged: latents and labels differ in shape")

    def __len__(self) -> int:
        return len(self.labels)


def read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Header of a safetensors file, where its data begins, and the size of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError("the header is cut off")
        header = json.loads(file.read(length))
    begin = 8 + length
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if begin + end != size:
        raise ValueError(f"{size} bytes, not the {begin + end} its header announces")
    return header, begin, size


def _view(content: Tensor, entry: dict[str, Any], begin: int) -> Tensor:
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}
    if entry["dtype"] not in names:
        raise ValueError(f"type {entry['dtype']} is not one of {', '.join(names)}")
    first, last = entry["data_offsets"]
    return content[begin + first : begin + last].view(names[entry["dtype"]]).view(entry["shape"])


def _as_array(tensor: Tensor) -> NDArray[np.integer]:
    """The same memory as integers of the same width, since numpy has no bfloat16."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.itemsize]).numpy()


class LatentDataset:
    """All latents of a folder, in the order of the images (in order of file name where there is no index).

    Shards are mapped into memory, not read: opening costs milliseconds, and each latent is read once it is asked for.

    Args:
        folder: A folder written by `LatentWriter` or by the published extractor.

    Attributes:
        folder: The folder.
        settings: What the latents are made of; None for a folder without an index.
        labels: (N,) int64.
        shape: (C, h, w).
        has_flips: Whether latents of mirrored images are stored.

    Raises:
        UserError: There are no shards, or one is missing or damaged; the message names the file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"no such folder of latents: {self.folder}")
        if (self.folder / UNFINISHED).is_file():
            raise UserError(f"{self.folder} was not written to its end: write it again")
        self.settings: LatentSettings | None = None
        self._records: list[ShardRecord] = []
        self._hashes: dict[str, str] = {}
        if (self.folder / INDEX_NAME).is_file():
            self.settings, self._records, self._hashes = self._read_index()
            paths = [self.folder / record.file for record in self._records]
        else:
            paths = sorted(self.folder.glob("latents*.safetensors"))
        if not paths:
            raise UserError(
                f"no latent shards (latents_rank*_shard*.safetensors) in {self.folder}; 'vavae convert' writes them "
                "from .npy files of EDM2 and REPA"
            )
        self._shards = [_MappedShard(path) for path in paths]
        first = self._shards[0]
        if not self._records and first.format == FORMAT:
            raise UserError(f"{self.folder} was not encoded to its end: run the encoder again")
        for shard in self._shards[1:]:
            same = shard.latents.shape[1:] == first.latents.shape[1:] and shard.latents.dtype == first.latents.dtype
            if not same or (shard.flipped is None) != (first.flipped is None):
                raise UserError(f"latent shard {shard.path} differs in shape or type from {first.path.name}")
        for shard, record in zip(self._shards, self._records, strict=False):
            if len(shard) != record.count:
                raise UserError(f"latent shard {shard.path} holds {len(shard)} images, not {record.count}")
        channels, height, width = first.latents.shape[1:]
        self.shape: tuple[int, int, int] = (channels, height, width)
        self.dtype = first.latents.dtype
        self.has_flips = first.flipped is not None
        self.labels = torch.cat([shard.labels for shard in self._shards])
        self._ends = torch.tensor([len(shard) for shard in self._shards]).cumsum(0)
        self._starts = torch.cat((torch.zeros(1, dtype=torch.int64), self._ends[:-1]))
        self._arrays = (
            [_as_array(shard.latents) for shard in self._shards],
            [_as_array(shard.flipped) for shard in self._shards if shard.flipped is not None],
        )
        self._statistics: LatentStatistics | None = None

    def _read_index(self) -> tuple[LatentSettings, list[ShardRecord], dict[str, str]]:
        """Settings, shards, and the sha256 of each file that has one."""
        path = self.folder / INDEX_NAME
        index = read_json_object(path)
        try:
            known = {field.name for field in fields(LatentSettings)}
            stored = {key: value for key, value in index["settings"].items() if key in known}
            stored["class_names"] = tuple(stored["class_names"])
            stored["image_size"] = as_size("image_size", stored["image_size"])
            settings = LatentSettings(**stored)
            records = [ShardRecord(**record) for record in index["shards"]]
            hashes = {record.file: record.sha256 for record in records}
            if "statistics_sha256" in index:  # former versions did not note it
                hashes[STATISTICS_NAME] = index["statistics_sha256"]
            return settings, records, hashes
        except (KeyError, TypeError, UserError) as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class; empty where the folder does not say."""
        return self.settings.class_names if self.settings is not None else ()

    @property
    def num_classes(self) -> int:
        """Number of class names; where there are none, the largest label + 1."""
        return len(self.class_names) or int(self.labels.max()) + 1

    @property
    def statistics(self) -> LatentStatistics:
        """Channel statistics stored beside the shards; computed over all latents where none are."""
        if self._statistics is None:
            ours, published = self.folder / STATISTICS_NAME, self.folder / PUBLISHED_STATISTICS_NAME
            try:
                if ours.is_file():
                    self._statistics = LatentStatistics.from_dict(load_file(ours))
                elif published.is_file():
                    stored = torch.load(published, map_location="cpu", weights_only=True)
                    self._statistics = LatentStatistics.from_dict(stored)
            except Exception as error:
                name = ours if ours.is_file() else published
                reason = one_line(error)[:200]  # torch explains over many lines
                raise UserError(f"latent statistics {name} cannot be read: {reason}") from error
        if self._statistics is None:
            running = RunningStatistics(self.shape[0])
            for shard in self._shards:
                for chunk in shard.latents.split(STATISTICS_CHUNK):
                    running.update(chunk)
            self._statistics = running.finalize()
        if self._statistics.channels != self.shape[0]:
            raise UserError(
                f"{self.folder}: {self._statistics.channels} channel statistics for {self.shape[0]} channels"
            )
        return self._statistics

    def get(self, indices: Tensor, flip_mask: Tensor | None = None, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Latents and labels of some images.

        Args:
            indices: (B,) int64, each in [0, len(self)).
            flip_mask: (B,) bool: where true, the latent of the mirrored image; None for none of them.
            normalize: Apply (z - mean) / std per channel, as the transformer is trained on.

        Returns:
            (latents (B, C, h, w) float32, labels (B,) int64).
        """
        indices = indices.to("cpu", torch.int64)
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < len(self)):
            raise IndexError(f"indices must be in [0, {len(self)})")
        latents = self._gather(indices, self._flips(indices, flip_mask)).to(torch.float32)
        return (self.statistics.normalize(latents) if normalize else latents), self.labels[indices]

    def _flips(self, indices: Tensor, flip_mask: Tensor | None) -> Tensor:
        if flip_mask is None:
            return torch.zeros(len(indices), dtype=torch.bool)
        flips = flip_mask.to("cpu", torch.bool)
        if not self.has_flips and bool(flips.any()):
            raise UserError(f"{self.folder} holds no latents of mirrored images: encode with flips, or train without")
        return flips

    def _gather(self, indices: Tensor, flips: Tensor) -> Tensor:
        """Raw latents in their stored type."""
        numbers = torch.searchsorted(self._ends, indices, right=True)
        local = indices - self._starts[numbers]
        latents = torch.empty((len(indices), *self.shape), dtype=self.dtype)
        if len(indices):
            # Plain copies, image after image: several times faster than indexing with tensors, shard by shard.
            places = zip(numbers.tolist(), local.tolist(), flips.tolist(), strict=True)
            parts = [self._arrays[flip][number][index] for number, index, flip in places]
            np.concatenate(parts, out=_as_array(latents).reshape(-1, *self.shape[1:]))
        return latents

    def to_device(self, device: torch.device | str) -> "ResidentLatents":
        """A copy of everything in the memory of `device`, in the stored type, for sets that fit."""

        def copy(parts: list[Tensor]) -> Tensor:
            whole = torch.empty((len(self), *self.shape), dtype=self.dtype, device=device)
            for target, part in zip(whole.split([len(part) for part in parts]), parts, strict=True):
                target.copy_(part)
            return whole

        plain = copy([shard.latents for shard in self._shards])
        flips = [shard.flipped for shard in self._shards if shard.flipped is not None]
        flipped = copy(flips) if flips else None
        return ResidentLatents(plain, flipped, self.labels.to(device), self.statistics)

    def fingerprint(self) -> str:
        """A hex digest of the shards: of their sha256 where there is an index, else of their names and sizes."""
        if self._records:
            parts = [record.sha256 for record in self._records]
        else:
            parts = [f"{shard.path.name} {shard.path.stat().st_size}" for shard in self._shards]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def verify(self) -> None:
        """Compare the files with the sha256 in the index: once, and again those that changed or were copied.

        Folders without an index have nothing to compare with.

        Raises:
            UserError: A file is damaged or missing; the message names it.
        """
        check_files(self.folder, self._hashes)


@dataclass(frozen=True, eq=False)
class ResidentLatents:
    """Latents in the memory of one device, with the same `get` as `LatentDataset`.

    Attributes:
        latents: (N, C, h, w) in the stored type.
        flipped: The same of mirrored images, or None.
        labels: (N,) int64.
        statistics: Channel statistics.
    """

    latents: Tensor
    flipped: Tensor | None
    labels: Tensor
    statistics: LatentStatistics

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, indices: Tensor, flip_mask: Tensor | None = None, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """See `LatentDataset.get`; results lie on the device."""
        indices = indices.to(self.labels.device)
        latents = self.latents[indices].to(torch.float32)
        if flip_mask is not None:
            if self.flipped is None:
                raise UserError("there are no latents of mirrored images: encode with flips, or train without")
            mask = flip_mask.to(latents.device, torch.bool).view(-1, 1, 1, 1)
            latents = torch.where(mask, self.flipped[indices].to(torch.float32), latents)
        return (self.statistics.normalize(latents) if normalize else latents), self.labels[indices]
