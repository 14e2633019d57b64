"""Write latents: resumable shards from any number of processes, and the layout of the published extractor.

Each shard holds its own settings, statistics and sha256 in the metadata of its header, so a shard that was renamed to
its final name is complete, and a later run needs nothing else to continue.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vavae.data.latents import (
    FORMAT,
    INDEX_NAME,
    PUBLISHED_STATISTICS_NAME,
    STATISTICS_NAME,
    SUMS,
    LatentDataset,
    LatentSettings,
    MappedShard,
    ShardRecord,
    add_to_statistics,
    content_sha256,
)
from vavae.errors import UserError
from vavae.io.files import read_json_object, save_torch, sha256_file, whole_folder, write_json, written_whole
from vavae.tokenizer.statistics import LatentStatistics, RunningStatistics

_SHARDS = "latents_rank*_shard*.safetensors"
_COLUMNS = ("latents", "latents_flip", "labels", "class_token", "class_token_flip")
# Settings that old shards do not have, with the only value that there was.
_FORMER = {"statistics": "channel", "precision": "fp32"}
# Settings whose values are fingerprints.
_OTHERS = {"source": "other images (data)", "tokenizer": "another tokenizer", "class_token": "another class_token"}
# Files that may remain in a folder whose shards were removed.
LEFT_OVER = frozenset({STATISTICS_NAME})


@dataclass(frozen=True)
class Shard:
    """A contiguous range of images that is encoded and stored together.

    Attributes:
        number: Number of the shard, over all processes.
        first: Index of its first image.
        count: Number of its images.
    """

    number: int
    first: int
    count: int

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Return image indices in batches of at most `batch_size`, (B,) int64 each."""
        return iter(torch.arange(self.first, self.first + self.count).split(batch_size))


@dataclass(frozen=True, eq=False)
class _Finished:
    """A shard that is on disk: its file, and what its metadata holds."""

    shard: MappedShard
    number: int
    settings: dict[str, Any]
    statistics: RunningStatistics
    sha256: str

    @classmethod
    def load(cls, path: Path) -> "_Finished | None":
        """Open a shard; return None if it is damaged or was written by another program."""
        try:
            shard = MappedShard(path)
            stored = shard.metadata
            if stored["format"] != FORMAT:
                return None
            texts = {} if shard.sums else json.loads(stored["statistics"])
            sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in texts.items()}
            statistics = RunningStatistics.from_dict(shard.sums or sums)
            return cls(shard, int(stored["shard"]), dict(json.loads(stored["settings"])), statistics, stored["sha256"])
        except (UserError, ValueError, KeyError, TypeError, AttributeError):
            return None


def holds_latents(folder: Path) -> bool:
    """Return whether `LatentWriter` wrote latents to a folder, so that it may replace them."""
    with suppress(UserError, OSError):
        if read_json_object(folder / INDEX_NAME).get("format") == FORMAT:
            return True
    return any(_Finished.load(path) for path in folder.glob(_SHARDS))


class LatentWriter:
    """Writes the latents of `total` images shard by shard. Any number of processes may share the folder.

    A shard appears whole or not at all. Shards of an earlier run that still have their sha256 are kept, also if the
    number of processes has changed.

        writer = LatentWriter(folder, len(source), settings, rank=rank, world=world)
        for shard in writer.missing():
            writer.write(shard, ((latents, flipped, labels) for indices in shard.batches(64) ...))
        # after all processes have ended, in one of them:
        writer.finish()

    Args:
        folder: Output folder; made if missing.
        total: Number of images over all processes.
        settings: Settings of the encoder.
        shard_size: Images per shard.
        rank: This process.
        world: Number of processes.

    Raises:
        UserError: The folder holds latents made with other settings.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        total: int,
        settings: LatentSettings,
        shard_size: int = 4096,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if total < 1:
            raise UserError("images: there are none to encode")
        if shard_size < 1:
            raise UserError(f"shard_size must be at least 1, got {shard_size}")
        self.folder = Path(folder)
        self.total = total
        self.settings = settings
        self.rank = rank
        starts = range(0, total, shard_size)
        self.shards = [Shard(n, first, min(shard_size, total - first)) for n, first in enumerate(starts)]
        self._own = self.shards[rank::world]
        # Through JSON, to compare with the metadata of other shards.
        self._description = json.loads(json.dumps(asdict(settings) | {"total": total, "shard_size": shard_size}))
        for key, value in _FORMER.items():
            if self._description[key] == value:
                del self._description[key]
        self.folder.mkdir(parents=True, exist_ok=True)
        for finished in self._finished().values():
            former, present = _FORMER | finished.settings, _FORMER | self._description
            for key in present:
                if former.get(key) != present[key]:
                    raise UserError(
                        f"{finished.shard.path} was made with {_difference(key, former.get(key), present[key])}: "
                        "encode into another folder, or empty this one"
                    )

    def _finished(self) -> dict[int, _Finished]:
        """Return the finished shards by their number. A shard under the name of another one does not count."""
        found = {}
        for path in sorted(self.folder.glob(_SHARDS)):
            finished = _Finished.load(path)
            if finished is not None and path.stem.endswith(f"_shard{finished.number:03d}"):
                found[finished.number] = finished
        return found

    def missing(self) -> list[Shard]:
        """Return the shards of this process that are not finished or not sound. This reads its finished shards."""
        finished, own = self._finished(), {shard.number for shard in self._own}
        sound = {number for number, one in finished.items() if number in own and one.shard.sha256() == one.sha256}
        return [shard for shard in self._own if shard.number not in sound]

    def write(self, shard: Shard, batches: Iterable[tuple[Tensor | None, ...]]) -> None:
        """Store one shard.

        Args:
            shard: One of `missing()`.
            batches: (latents, latents of the mirrored images, labels) in the order of the shard's images:
                (B, C, h, w), the same or None, and (B,). With `settings.class_token` two more, the class tokens of the
                images and of the mirrored ones: (B, D), and the same or None.

        Raises:
            UserError: Latents are not finite in the stored type.
        """
        tensors = self._collect(batches)
        for name, tensor in tensors.items():
            if len(tensor) != shard.count:
                raise ValueError(f"shard {shard.number} needs {shard.count} {name}, not {len(tensor)}")
            if not bool(torch.isfinite(tensor).all()):
                last = shard.first + shard.count - 1
                stored = str(tensor.dtype).removeprefix("torch.")
                raise UserError(f"{name} of images {shard.first} to {last} are not finite in {stored}")
        channels, *grid = tensors["latents"].shape[1:]
        per_position = self.settings.statistics == "position"
        statistics = RunningStatistics(channels, (grid[0], grid[1]) if per_position else None)
        add_to_statistics(statistics, tensors["latents"])
        if per_position:  # too large for the header
            tensors |= {SUMS + name: value for name, value in statistics.to_dict().items()}
        (self.folder / INDEX_NAME).unlink(missing_ok=True)  # it lists the shard that is replaced
        for pattern in ("latents_rank*_shard{:03d}.*", ".latents_rank*_shard{:03d}.*.tmp"):
            for stale in self.folder.glob(pattern.format(shard.number)):
                stale.unlink()
        path = self.folder / f"latents_rank{self.rank:02d}_shard{shard.number:03d}.safetensors"
        metadata = {
            "format": FORMAT,
            "total_size": str(shard.count),
            "dtype": str(self.settings.torch_dtype),
            "device": "cpu",
            "shard": str(shard.number),
            "settings": json.dumps(self._description),
        }
        if not per_position:
            sums = {key: value.tolist() for key, value in statistics.to_dict().items()}
            metadata["statistics"] = json.dumps(sums)
        with written_whole(path) as temporary:
            save_file(tensors, temporary, metadata | {"sha256": content_sha256(tensors, metadata)})

    def _collect(self, batches: Iterable[tuple[Tensor | None, ...]]) -> dict[str, Tensor]:
        """Move batches to the CPU one by one, so that the encoder's device holds one at a time."""
        settings = self.settings
        types = {"latents": settings.torch_dtype, "labels": torch.int64}
        types |= {"latents_flip": settings.torch_dtype} if settings.flips else {}
        if settings.class_token is not None:
            types |= {"class_token": torch.float32} | ({"class_token_flip": torch.float32} if settings.flips else {})
        parts: dict[str, list[Tensor]] = {name: [] for name in types}
        for batch in batches:
            given = {name: value for name, value in zip(_COLUMNS, batch, strict=False) if value is not None}
            if given.keys() != types.keys():
                raise ValueError(f"batches must be {', '.join(types)} by their settings, got {', '.join(given)}")
            for name, value in given.items():
                parts[name].append(value.detach().to("cpu", types[name]))
        return {name: torch.cat(tensors).contiguous() for name, tensors in parts.items() if tensors}

    def finish(self) -> LatentStatistics:
        """Write the index and the statistics of the whole folder. Call it once, after all processes have ended.

        Returns:
            Mean and standard deviation over all images, without the mirrored ones.

        Raises:
            UserError: Shards are missing.
        """
        finished = self._finished()
        missing = [shard.number for shard in self.shards if shard.number not in finished]
        if missing:
            raise UserError(f"{self.folder}: shard {missing[0]} of {len(self.shards)} is missing")
        total = RunningStatistics(finished[0].statistics.channels, finished[0].statistics.grid)
        records = []
        for shard in self.shards:
            stored = finished[shard.number]
            total.merge(stored.statistics)
            records.append(asdict(ShardRecord(stored.shard.path.name, shard.first, shard.count, stored.sha256)))
        statistics = total.finalize()
        with written_whole(self.folder / STATISTICS_NAME) as temporary:
            save_file(statistics.to_dict(), temporary)
        index = {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "shards": records,
            "statistics_sha256": sha256_file(self.folder / STATISTICS_NAME),
        }
        write_json(self.folder / INDEX_NAME, index, indent=1)
        return statistics


def write_published_layout(dataset: LatentDataset, folder: str | os.PathLike[str], shard_size: int = 10_000) -> None:
    """Write latents as the published extractor does: float32 shards and `latents_stats.pt`.

    Args:
        dataset: Latents of images and of mirrored images; class tokens are left out.
        folder: Output folder; must be empty, missing, or left by such a call that was killed.
        shard_size: Images per shard; 10,000 as published.

    Raises:
        UserError: The folder has other content, or the latents of mirrored images are missing.
    """
    if not dataset.has_flips:
        raise UserError(f"{dataset.folder} has no latents of mirrored images, which the published training needs")

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for indices in torch.arange(len(dataset)).split(shard_size):
            latents, labels = dataset.get(indices, normalize=False)
            flipped, _ = dataset.get(indices, torch.ones(len(indices), dtype=torch.bool), normalize=False)
            yield latents, flipped, labels

    with whole_folder(Path(folder)):
        write_shards(batches(), Path(folder), dataset.statistics)


def write_shards(
    batches: Iterable[tuple[Tensor, Tensor | None, Tensor]], folder: Path, statistics: LatentStatistics | None = None
) -> None:
    """Write float32 shards and `latents_stats.pt` in the layout of the published extractor.

    Args:
        batches: One per shard: latents (B, C, h, w), latents of the mirrored images or None, labels (B,).
        folder: Output folder.
        statistics: Statistics of all latents; None computes them.
    """
    running: RunningStatistics | None = None
    for number, (latents, flipped, labels) in enumerate(batches):
        tensors = {"latents": latents, "labels": labels} | ({} if flipped is None else {"latents_flip": flipped})
        metadata = {"total_size": str(len(labels)), "dtype": "torch.float32", "device": "cpu"}
        with written_whole(folder / f"latents_rank00_shard{number:03d}.safetensors") as temporary:
            save_file(tensors, temporary, metadata)
        running = running or RunningStatistics(latents.shape[1])
        if statistics is None:
            add_to_statistics(running, latents)
    if running is not None:
        write_published_statistics(folder / PUBLISHED_STATISTICS_NAME, statistics or running.finalize())


def write_published_statistics(path: Path, statistics: LatentStatistics) -> None:
    """Write mean and standard deviation, (1, C, 1, 1) or (1, C, h, w), in the form of `latents_stats.pt`."""
    shape = (1, statistics.channels, *(statistics.grid or (1, 1)))
    save_torch({"mean": statistics.mean.view(shape), "std": statistics.std.view(shape)}, path)


def _difference(key: str, former: Any, present: Any) -> str:
    """Return in words that a setting of a shard differs."""
    if key in _OTHERS:
        return _OTHERS[key]
    names = {"image_size": "data.size", "total": "number of images"}
    return f"{names.get(key, key)} {former}, not {present}"
