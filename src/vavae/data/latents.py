"""Latents on disk: written once by an encoder, read many times by transformer training.

A folder of latents holds safetensors shards `latents_rank{RR}_shard{SSS}.safetensors` with the tensors

    latents       (n, C, h, w)    of the images
    latents_flip  (n, C, h, w)    of the mirrored images, if wanted
    labels        (n,) int64

which is the layout of the published extractor, and, for transformers that denoise a class token along,

    class_token       (n, D) float32   a teacher's feature of each image
    class_token_flip  (n, D) float32   and of the mirrored image

`statistics.safetensors` holds mean and standard deviation per channel,
or per channel and position. `index.json` holds the settings, name, number of images and sha256 of each shard, and which
files have been compared with their sha256. Folders of the published extractor, with `latents_stats.pt` and without an
index, are read too.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from vavae.config.image_size import Size, as_size
from vavae.data.loader import loaded_ahead
from vavae.device import Compute
from vavae.errors import UserError, one_line
from vavae.io.files import UNFINISHED, check_hash, read_json_object, write_json
from vavae.progress import track
from vavae.tokenizer.statistics import LatentStatistics, RunningStatistics

INDEX_NAME = "index.json"
STATISTICS_NAME = "statistics.safetensors"
PUBLISHED_STATISTICS_NAME = "latents_stats.pt"
FORMAT = "vavae latents 2"
SUMS = "statistics."  # begins the names of tensors with sums per position
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Fewer bytes are hashed in about a second, so no bar is shown for them.
_WORTH_SHOWING = 1e9
_COLUMNS = frozenset({"latents", "latents_flip", "class_token", "class_token_flip"})


@dataclass(frozen=True)
class LatentSettings:
    """Settings of an encoder; all shards of a folder have the same.

    Attributes:
        image_size: Size of the encoded images in pixels: one number for squares, else (height, width).
        posterior: "sample" stores one sample of the posterior per image, as published; "mean" stores its mean.
        seed: Seed of the posterior samples.
        dtype: Data type of the stored latents.
        flips: Whether the latents of mirrored images are stored too.
        tokenizer: Fingerprint of the tokenizer.
        source: Fingerprint of the images.
        class_names: One name per class.
        statistics: Mean and standard deviation "channel" by channel, or for every "position" of a channel too.
        class_token: Fingerprint of the teacher whose class tokens are stored; None stores none.
        precision: Precision in which the tokenizer computed.
    """

    image_size: Size
    posterior: Literal["sample", "mean"] = "sample"
    seed: int = 0
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    flips: bool = True
    tokenizer: str = ""
    source: str = ""
    class_names: tuple[str, ...] = ()
    statistics: Literal["channel", "position"] = "channel"
    class_token: str | None = None
    precision: Compute = "fp32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch data type."""
        return _DTYPES[self.dtype]


@dataclass(frozen=True)
class ShardRecord:
    """Entry of a shard in the index: file name, index of the first image, number of images, `content_sha256`."""

    file: str
    first: int
    count: int
    sha256: str


class MappedShard:
    """A shard whose tensors are mapped from the file. Opening it reads the header only.

    Attributes:
        path: The file.
        metadata: Text metadata of the safetensors header.
        latents: (n, C, h, w).
        flipped: (n, C, h, w), latents of the mirrored images, or None.
        labels: (n,) int64.
        tensors: All tensors of the file by name.
        class_channels: D of the class tokens; None if there are none.
        sums: `RunningStatistics.to_dict` of the latents if they are per position; empty if they are in `metadata`.

    Raises:
        UserError: The file is missing, cut off, or not a shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.latents, self.flipped = self.tensors["latents"], self.tensors.get("latents_flip")
            self.labels = self.tensors["labels"].to(torch.int64)
        except KeyError as error:
            raise UserError(f"latent shard {path} is damaged: it must have {error.args[0]}") from error
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"latent shard {path} is missing or damaged: {error}") from error
        self.sums = {name.removeprefix(SUMS): value for name, value in self.tensors.items() if name.startswith(SUMS)}
        kinds = {(tensor.shape, tensor.dtype) for tensor in (self.latents, self.flipped) if tensor is not None}
        known = self.latents.ndim == 4 and self.latents.dtype in _DTYPES.values()
        if not known or len(kinds) != 1 or self.labels.shape != self.latents.shape[:1]:
            raise UserError(
                f"latent shard {path} is damaged: it must have latents (n, C, h, w) of type {', '.join(_DTYPES)}, "
                "mirrored ones of the same shape and type, and labels (n,)"
            )
        token = self.tensors.get("class_token")
        self.class_channels = None if token is None else token.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    def kind(self) -> tuple[object, ...]:
        """Return what is equal in all shards of a folder: shape and type of latents and tokens, and mirrored or not."""
        return self.latents.shape[1:], self.latents.dtype, self.flipped is None, self.class_channels

    def sha256(self) -> str:
        """Read all tensors and return the shard's `content_sha256`."""
        return content_sha256(self.tensors, {key: text for key, text in self.metadata.items() if key != "sha256"})


def content_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the hexadecimal sha256 of metadata, and of names, types, shapes and bytes of tensors on the CPU.

    The sha256 of the file would differ from run to run, since safetensors writes metadata in random order.
    """
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def add_to_statistics(statistics: RunningStatistics, latents: Tensor) -> None:
    """Add (B, C, h, w) latents in chunks of 256 images, so that the sums do not depend on the encoder's batch size."""
    for chunk in latents.split(256):
        statistics.update(chunk)


def _as_array(tensor: Tensor) -> NDArray[np.integer]:
    """View a tensor as integers of the same width, since numpy has no bfloat16."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.itemsize]).numpy()


class LatentDataset(Dataset[tuple[Tensor, int]]):
    """All latents of a folder, in the order of the images, or of the file names without an index.

    Shards are mapped into memory, so opening takes milliseconds and a latent is read when it is used. torch's
    `DataLoader` takes it: item i is latent i, normalized, (C, h, w) float32, and its class.

    Args:
        folder: A folder written by `LatentWriter` or by the published extractor.

    Attributes:
        folder: The folder.
        settings: Settings of the encoder; None for a folder without an index.
        labels: (N,) int64.
        shape: (C, h, w).
        has_flips: Whether latents of mirrored images are stored.
        class_channels: D, channels of the class tokens; None if there are none.
        nbytes: Size of latents and class tokens in bytes.

    Raises:
        UserError: The folder has no shards, or one is missing or damaged; the message names the file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder of latents; 'vavae encode' writes one")
        if (self.folder / UNFINISHED).is_file():
            raise UserError(f"{self.folder} was not written to its end: write it again")
        self.settings: LatentSettings | None = None
        self._records: list[ShardRecord] = []
        self._index: dict[str, Any] = {}
        if (self.folder / INDEX_NAME).is_file():
            self._index = read_json_object(self.folder / INDEX_NAME)
            self.settings, self._records = self._parse_index()
            paths = [self.folder / record.file for record in self._records]
        else:
            paths = sorted(self.folder.glob("latents*.safetensors"))
        if not paths:
            raise UserError(
                f"no latent shards (latents_rank*_shard*.safetensors) in {self.folder}; 'vavae convert' writes them "
                "from .npy files of EDM2 and REPA"
            )
        self._shards = [MappedShard(path) for path in paths]
        first = self._shards[0]
        if not self._records and first.metadata.get("format") == FORMAT:
            raise UserError(f"{self.folder} was not encoded to its end: run the encoder again")
        for shard in self._shards:
            if shard.kind() != first.kind():
                raise UserError(f"latent shard {shard.path} differs in shape or type from {first.path.name}")
        for shard, record in zip(self._shards, self._records, strict=False):
            if len(shard) != record.count:
                raise UserError(
                    f"latent shard {shard.path} must have {record.count} images, got {len(shard)}; encode again"
                )
        channels, height, width = first.latents.shape[1:]
        self.shape: tuple[int, int, int] = (channels, height, width)
        self.dtype = first.latents.dtype
        self.has_flips = first.flipped is not None
        self.labels = torch.cat([shard.labels for shard in self._shards])
        self._ends = torch.tensor([len(shard) for shard in self._shards]).cumsum(0)
        self._starts = torch.cat((torch.zeros(1, dtype=torch.int64), self._ends[:-1]))
        self.class_channels: int | None = first.class_channels
        self._columns = {
            name: [shard.tensors[name] for shard in self._shards] for name in _COLUMNS & first.tensors.keys()
        }
        self._arrays = {name: [_as_array(part) for part in parts] for name, parts in self._columns.items()}
        self._resident: dict[str, Tensor] = {}  # the columns in the memory of a device
        self.nbytes = sum(part.nbytes for parts in self._columns.values() for part in parts)

    def _parse_index(self) -> tuple[LatentSettings, list[ShardRecord]]:
        path, form = self.folder / INDEX_NAME, self._index.get("format")
        if form != FORMAT:
            raise UserError(f"{path}: format must be {FORMAT}, got {form}; encode again")
        try:
            known = {field.name for field in fields(LatentSettings)}
            stored = {key: value for key, value in self._index["settings"].items() if key in known}
            stored["class_names"] = tuple(stored["class_names"])
            stored["image_size"] = as_size("image_size", stored["image_size"])
            return LatentSettings(**stored), [ShardRecord(**record) for record in self._index["shards"]]
        except (KeyError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        latents, labels = self.get(torch.tensor([index]))
        return latents[0], int(labels[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return LatentDataset, (self.folder,)  # a started worker maps the files again

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class; empty for a folder without an index."""
        return self.settings.class_names if self.settings is not None else ()

    @property
    def num_classes(self) -> int:
        """Number of class names, or the largest label + 1 if there are none."""
        return len(self.class_names) or int(self.labels.max()) + 1

    @cached_property
    def statistics(self) -> LatentStatistics:
        """Channel statistics, read from the folder, or computed over all latents if it has none."""
        ours, published = self.folder / STATISTICS_NAME, self.folder / PUBLISHED_STATISTICS_NAME
        path = ours if ours.is_file() else published
        if not path.is_file():
            running = RunningStatistics(self.shape[0])
            for shard in self._shards:
                add_to_statistics(running, shard.latents)
            return running.finalize()
        try:
            stored = load_file(path) if path == ours else torch.load(path, map_location="cpu", weights_only=True)
            statistics = LatentStatistics.from_dict(stored)
        except Exception as error:
            # Messages of torch have many lines.
            raise UserError(f"latent statistics {path} cannot be read: {one_line(error)[:200]}") from error
        if statistics.channels != self.shape[0]:
            raise UserError(f"{self.folder}: {statistics.channels} channel statistics for {self.shape[0]} channels")
        if statistics.grid not in (None, tuple(self.shape[1:])):
            raise UserError(f"{path}: must be for latents of {self.shape[1:]}, got {statistics.grid}")
        return statistics

    def get(self, indices: Tensor, flip_mask: Tensor | None = None, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Return latents and labels of some images.

        Args:
            indices: (B,) int64, each in [0, len(self)).
            flip_mask: (B,) bool; true takes the latent of the mirrored image. None takes no mirrored image.
            normalize: Apply (z - mean) / std per channel, the input of the transformer.

        Returns:
            (latents (B, C, h, w) float32, labels (B,) int64).
        """
        latents = self._gather("latents", indices, flip_mask).to(torch.float32)
        labels = self.labels[indices.to("cpu", torch.int64)]
        return (self.statistics.normalize(latents) if normalize else latents), labels

    def class_tokens(self, indices: Tensor, flip_mask: Tensor | None = None) -> Tensor:
        """Return the class tokens of some images, or of the mirrored images where the mask is true: (B, D) float32."""
        return self._gather("class_token", indices, flip_mask)

    def _gather(self, column: str, indices: Tensor, flip_mask: Tensor | None) -> Tensor:
        """Return rows of a column (B, ...), mirrored ones where the mask is true, in their stored type."""
        indices = indices.to("cpu", torch.int64)
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < len(self)):
            raise IndexError(f"indices must be in [0, {len(self)})")
        flips = torch.zeros(len(indices), dtype=torch.bool) if flip_mask is None else flip_mask.to("cpu", torch.bool)
        if not self.has_flips and bool(flips.any()):
            raise UserError(f"{self.folder} has no latents of mirrored images: encode with flips, or train without")
        if self._resident:
            rows = self._resident[column][indices]
            if not flips.any():
                return rows
            mask = flips.to(rows.device).view(-1, *[1] * (rows.ndim - 1))
            return torch.where(mask, self._resident[f"{column}_flip"][indices], rows)
        numbers = torch.searchsorted(self._ends, indices, right=True)
        local = indices - self._starts[numbers]
        first = self._columns[column][0]
        rows = first.new_empty(len(indices), *first.shape[1:])
        if len(indices):
            # One plain copy per image is several times faster than indexing each shard with a tensor.
            sources = (self._arrays[column], self._arrays.get(f"{column}_flip", []))
            places = zip(numbers.tolist(), local.tolist(), flips.tolist(), strict=True)
            parts = [sources[flip][number][index] for number, index, flip in places]
            np.concatenate(parts, out=_as_array(rows).reshape(-1, *first.shape[2:]))
        return rows

    def to_device(self, device: torch.device | str) -> "LatentDataset":
        """Return the folder with its latents, labels and class tokens in the memory of `device`, in the stored type."""

        def copy(parts: list[Tensor]) -> Tensor:
            whole = torch.empty((len(self), *parts[0].shape[1:]), dtype=parts[0].dtype, device=device)
            for target, part in zip(whole.split([len(part) for part in parts]), parts, strict=True):
                target.copy_(part)
            return whole

        resident = object.__new__(LatentDataset)  # the folder is not read again
        columns = {name: copy(parts) for name, parts in self._columns.items()}
        vars(resident).update(vars(self), _resident=columns, labels=self.labels.to(device), statistics=self.statistics)
        return resident

    def fingerprint(self) -> str:
        """Return a hex digest of the sha256 of the shards, or of their names and sizes without an index."""
        if self._records:
            parts = [record.sha256 for record in self._records]
        else:
            parts = [f"{shard.path.name} {shard.path.stat().st_size}" for shard in self._shards]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def verify(self) -> None:
        """Compare shards and statistics with the sha256 in the index.

        The index records the state of each shard that was compared, so it is compared again only if it was changed or
        copied. Folders without an index are not checked.

        Raises:
            UserError: A file is damaged or missing; the message names it.
        """
        if not self._records:
            return
        check_hash(self.folder / STATISTICS_NAME, self._index.get("statistics_sha256"), "encode again")
        former = self._index.get("checked")
        checked: dict[str, list[int]] = dict(former) if isinstance(former, dict) else {}
        # States are taken before a file is read, so that a later change is noticed.
        states = {record.file: _file_state(self.folder / record.file) for record in self._records}
        pairs = zip(self._shards, self._records, strict=True)
        unknown = [(shard, record) for shard, record in pairs if checked.get(record.file) != states[record.file]]
        size = sum(states[record.file][0] for _, record in unknown)
        try:
            with track("checking latents", len(unknown), "files") if size >= _WORTH_SHOWING else nullcontext() as bar:
                for (shard, record), found in loaded_ahead(unknown, lambda pair: pair[0].sha256(), workers=4):
                    if found != record.sha256:
                        raise UserError(f"{shard.path}: damaged: its hash is not the recorded one; encode again")
                    checked[record.file] = states[record.file]
                    if bar is not None:
                        bar.advance()
        finally:
            if unknown:
                with suppress(OSError):  # a folder that cannot be written is compared at each start
                    write_json(self.folder / INDEX_NAME, self._index | {"checked": checked}, indent=1)


def _file_state(path: Path) -> list[int]:
    """Return size and times of change in ns. The second time (ctime) differs for a copy that keeps the first."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
