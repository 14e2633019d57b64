"""Writing latents: resumable shards from any number of processes, and the layout of the published extractor."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vavae.data.latent_check import CHECKED_NAME, file_sha256, file_state, remember_checked
from vavae.data.latents import (
    FORMAT,
    INDEX_NAME,
    PUBLISHED_STATISTICS_NAME,
    STATISTICS_CHUNK,
    STATISTICS_NAME,
    LatentDataset,
    LatentSettings,
    ShardRecord,
    read_header,
)
from vavae.errors import UserError
from vavae.io.files import read_json_object, save_torch, whole_folder, written_whole
from vavae.tokenizer.statistics import LatentStatistics, RunningStatistics

# Names of what is written beside finished shards.
_NOTE = re.compile(r"latents_rank\d+_shard(\d+)\.json")
# What may be left of latents of which somebody removed the shards.
LEFT_OVER = frozenset({STATISTICS_NAME, CHECKED_NAME})


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
        """Image indices in batches of at most `batch_size`, (B,) int64 each."""
        return iter(torch.arange(self.first, self.first + self.count).split(batch_size))


@dataclass(frozen=True, eq=False)
class _Note:
    """What is written beside a finished shard, so that any process of a later run knows it.

    `state` is that of the file when it had its hash; None in notes of former versions.
    """

    record: ShardRecord
    settings: dict[str, Any]
    statistics: RunningStatistics
    state: list[int] | None

    def save(self, path: Path) -> None:
        sums = {key: value.tolist() for key, value in self.statistics.to_dict().items()}
        note = {"shard": asdict(self.record), "settings": self.settings, "statistics": sums, "state": self.state}
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(note))

    @classmethod
    def load(cls, path: Path) -> "_Note | None":
        """The note in `path`, or None if it is damaged or its shard is gone: the shard is then made again."""
        try:
            note = json.loads(path.read_text())
            sums = note["statistics"]
            tensors = {key: torch.tensor(sums[key]) for key in ("images", "values")}
            tensors |= {key: torch.tensor(sums[key], dtype=torch.float64) for key in ("mean", "squares")}
            statistics = RunningStatistics.from_dict(tensors)
            loaded = cls(ShardRecord(**note["shard"]), note["settings"], statistics, note.get("state"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return loaded if (path.parent / loaded.record.file).is_file() else None


def holds_latents(folder: Path) -> bool:
    """Whether `LatentWriter` wrote latents in a folder, or a part of them: these it may replace."""
    if any(_NOTE.fullmatch(path.name) for path in folder.glob("latents_rank*.json")):
        return True
    if _format_of_index(folder / INDEX_NAME) == FORMAT:
        return True
    # A kill may come between a shard and its note.
    return any(_format_of_shard(path) == FORMAT for path in folder.glob("latents_rank*_shard*.safetensors"))


def _format_of_index(path: Path) -> Any:
    try:
        return read_json_object(path).get("format")
    except (UserError, OSError):
        return None


def _format_of_shard(path: Path) -> str | None:
    try:
        return str(read_header(path)[0]["__metadata__"]["format"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class LatentWriter:
    """Writes the latents of `total` images, shard by shard; any number of processes may share the folder.

    A shard appears whole or not at all. Shards finished by an earlier run, and unchanged since by their
    sha256, are not made again, also where the number of processes has changed.

        writer = LatentWriter(folder, len(source), settings, rank=rank, world=world)
        for shard in writer.missing():
            writer.write(shard, ((latents, flipped, labels) for indices in shard.batches(64) ...))
        # after all processes are through, in one of them:
        writer.finish()

    Args:
        folder: Where to write; made if missing.
        total: Number of images over all processes.
        settings: What the latents are made of.
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
            raise UserError("there are no images to encode")
        if shard_size < 1:
            raise UserError(f"shard_size must be at least 1, not {shard_size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        self.folder = Path(folder)
        self.total = total
        self.settings = settings
        self.rank = rank
        self.shards = [
            Shard(number, first, min(shard_size, total - first))
            for number, first in enumerate(range(0, total, shard_size))
        ]
        self._own = self.shards[rank::world]
        # As JSON gives it back, to compare with what other runs noted.
        described = asdict(settings) | {"total": total, "shard_size": shard_size}
        self._description: dict[str, Any] = json.loads(json.dumps(described))
        self.folder.mkdir(parents=True, exist_ok=True)
        for note in self._notes().values():
            for key, value in self._description.items():
                if note.settings.get(key) != value:
                    raise UserError(
                        f"{self.folder / note.record.file} was made with {key} = {note.settings.get(key)}, "
                        f"not {value}: encode into another folder, or empty this one"
                    )

    def _notes(self) -> dict[int, _Note]:
        """Notes of all finished shards, by shard number."""
        notes = {}
        for path in sorted(self.folder.glob("latents_rank*_shard*.json")):
            named = _NOTE.fullmatch(path.name)
            note = _Note.load(path) if named else None
            if named and note is not None:
                notes[int(named[1])] = note
        return notes

    def missing(self) -> list[Shard]:
        """This process's shards that are not finished, or whose files have changed since; reads the others once."""
        notes = self._notes()
        return [shard for shard in self._own if not self._is_sound(notes.get(shard.number))]

    def _is_sound(self, note: _Note | None) -> bool:
        if note is None:
            return False
        path = self.folder / note.record.file
        state = file_state(path)
        if file_sha256(path) != note.record.sha256:
            return False
        if note.state != state:  # it was copied, say
            replace(note, state=state).save(path.with_suffix(".json"))
        return True

    def write(self, shard: Shard, batches: Iterable[tuple[Tensor, Tensor | None, Tensor]]) -> None:
        """Store one shard.

        Args:
            shard: One of `missing()`.
            batches: (latents, latents of the mirrored images, labels) in the order of the shard's images:
                (B, C, h, w), the same or None, and (B,).

        Raises:
            UserError: Latents are not finite in the stored type.
        """
        tensors = self._collect(batches)
        for name, tensor in tensors.items():
            if len(tensor) != shard.count:
                raise ValueError(f"shard {shard.number} needs {shard.count} {name}, not {len(tensor)}")
            if not bool(torch.isfinite(tensor).all()):
                last = shard.first + shard.count - 1
                raise UserError(f"{name} of images {shard.first} to {last} are not finite in {self.settings.dtype}")
        statistics = RunningStatistics(tensors["latents"].shape[1])
        for chunk in tensors["latents"].split(STATISTICS_CHUNK):
            statistics.update(chunk)

        (self.folder / INDEX_NAME).unlink(missing_ok=True)  # it lists a shard that is being replaced
        for pattern in ("latents_rank*_shard{:03d}.*", ".latents_rank*_shard{:03d}.*.tmp"):
            for stale in self.folder.glob(pattern.format(shard.number)):
                stale.unlink()
        path = self.folder / f"latents_rank{self.rank:02d}_shard{shard.number:03d}.safetensors"
        metadata = {
            "format": FORMAT,
            "total_size": str(shard.count),
            "dtype": str(self.settings.torch_dtype),
            "device": "cpu",
            "first_index": str(shard.first),
            "posterior": self.settings.posterior,
            "seed": str(self.settings.seed),
            "tokenizer": self.settings.tokenizer,
        }
        with written_whole(path) as temporary:
            _save_deterministic(tensors, temporary, metadata)
            sha256 = file_sha256(temporary)
        record = ShardRecord(path.name, shard.first, shard.count, sha256)
        _Note(record, self._description, statistics, file_state(path)).save(path.with_suffix(".json"))

    def _collect(self, batches: Iterable[tuple[Tensor, Tensor | None, Tensor]]) -> dict[str, Tensor]:
        """Bring batches to the CPU one by one, so that the encoder's device holds one at a time."""
        parts: dict[str, list[Tensor]] = {"latents": [], "latents_flip": [], "labels": []}
        for latents, flipped, labels in batches:
            if (flipped is not None) != self.settings.flips:
                raise ValueError(f"settings.flips is {self.settings.flips}, but the latents say otherwise")
            parts["latents"].append(latents.detach().to("cpu", self.settings.torch_dtype))
            parts["labels"].append(labels.detach().to("cpu", torch.int64))
            if flipped is not None:
                parts["latents_flip"].append(flipped.detach().to("cpu", self.settings.torch_dtype))
        return {name: torch.cat(tensors) for name, tensors in parts.items() if tensors}

    def finish(self) -> LatentStatistics:
        """Write the index and the statistics of the whole folder; call it once, when all processes are through.

        Returns:
            Mean and standard deviation over all images, mirrored ones apart.

        Raises:
            UserError: Shards are missing.
        """
        notes = self._notes()
        missing = [shard.number for shard in self.shards if shard.number not in notes]
        if missing:
            raise UserError(f"{self.folder}: shard {missing[0]} of {len(self.shards)} is missing")
        ordered = [notes[shard.number] for shard in self.shards]
        total = RunningStatistics(ordered[0].statistics.channels)
        for note in ordered:
            total.merge(note.statistics)
        statistics = total.finalize()
        path = self.folder / STATISTICS_NAME
        with written_whole(path) as temporary:
            save_file(statistics.to_dict(), temporary)
            sha256 = file_sha256(temporary)
        index = {
            "format": FORMAT,
            "total": self.total,
            "settings": asdict(self.settings),
            "shards": [asdict(note.record) for note in ordered],
            "statistics_sha256": sha256,
        }
        with written_whole(self.folder / INDEX_NAME) as temporary:
            temporary.write_text(json.dumps(index, indent=1) + "\n")
        hashes = {note.record.file: note.record.sha256 for note in ordered} | {path.name: sha256}
        states = {note.record.file: note.state for note in ordered if note.state is not None}
        remember_checked(self.folder, hashes, states | {path.name: file_state(path)})
        return statistics


def write_published_layout(dataset: LatentDataset, folder: str | os.PathLike[str], shard_size: int = 10_000) -> None:
    """Write latents as the published extractor does: float32 shards and `latents_stats.pt`.

    Args:
        dataset: Latents with those of mirrored images, which the published training expects.
        folder: Where to write; must be empty, missing, or left by such a call that was killed.
        shard_size: Images per shard; 10,000 as published.

    Raises:
        UserError: The folder holds something else, or there are no latents of mirrored images.
    """
    if not dataset.has_flips:
        raise UserError(f"{dataset.folder} holds no latents of mirrored images, which the published training needs")

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
        batches: One per shard: latents (B, C, h, w), those of the mirrored images or None, labels (B,).
        folder: Where to write.
        statistics: Of all latents; null computes them.
    """
    running: RunningStatistics | None = None
    for number, (latents, flipped, labels) in enumerate(batches):
        tensors = {"latents": latents, "labels": labels} | ({} if flipped is None else {"latents_flip": flipped})
        metadata = {"total_size": str(len(labels)), "dtype": "torch.float32", "device": "cpu"}
        with written_whole(folder / f"latents_rank00_shard{number:03d}.safetensors") as temporary:
            _save_deterministic(tensors, temporary, metadata)
        running = running or RunningStatistics(latents.shape[1])
        for chunk in latents.split(STATISTICS_CHUNK) if statistics is None else ():
            running.update(chunk)
    if statistics is None and running is not None:
        statistics = running.finalize()
    if statistics is not None:
        write_published_statistics(folder / PUBLISHED_STATISTICS_NAME, statistics)


def write_published_statistics(path: Path, statistics: LatentStatistics) -> None:
    """Write mean and standard deviation per channel as `latents_stats.pt` of the published extractor has them."""
    save_torch({"mean": statistics.mean.view(1, -1, 1, 1), "std": statistics.std.view(1, -1, 1, 1)}, path)


def _save_deterministic(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Save a safetensors file whose bytes depend on its content only: the library leaves metadata in random order."""
    save_file(tensors, path, metadata)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(ordered.ljust(length))
