"""Work on a batch in parts that fit into memory.

`MicroBatch` is for training steps: its size is saved in the run folder, since a resumed run must add up the same parts.
`Chunks` is for work without gradients, whose results do not depend on the parts.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vavae.errors import UserError, memory_ran_out
from vavae.io.files import read_json_object, write_json

T = TypeVar("T")


def batch_length(batch: Any) -> int:
    """Return the number of images of a batch, a dataclass or tuple: the length of its first tensor."""
    members = vars(batch).values() if dataclasses.is_dataclass(batch) else batch
    return next(len(member) for member in members if isinstance(member, Tensor))


def slice_batch(batch: Any, start: int, size: int) -> Any:
    """Return images [start, start + size) of a batch; members that are not tensors stay as they are."""

    def part(member: Any) -> Any:
        return member[start : start + size] if isinstance(member, Tensor) else member

    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **{name: part(member) for name, member in vars(batch).items()})
    return tuple(part(member) for member in batch)


def split_batch(batch: Any, size: int) -> Iterator[Any]:
    """Yield parts of at most `size` images of a batch, a dataclass or tuple whose tensors begin with the images."""
    for start in range(0, batch_length(batch), size):
        yield slice_batch(batch, start, size)


class Chunks:
    """Work without gradients in parts of a batch, halved whenever memory runs out.

    Args:
        size: Images per part to begin with.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def over(self, batch: Any, work: Callable[[Any], T]) -> Iterator[tuple[Any, T]]:
        """Yield (part, work(part)) for parts that cover `batch`, in order.

        Args:
            batch: As for `split_batch`.
            work: Computes the result of a part; it is called again with a smaller one if memory ran out.

        Raises:
            RuntimeError, MemoryError: A single image does not fit, or `work` failed otherwise.
        """
        done, length = 0, batch_length(batch)
        while done < length:
            part = slice_batch(batch, done, self.size)
            images = batch_length(part)
            result = self._try(part, images, work)
            if result is None:
                self.size = -(-images // 2)
                _empty_cache()
                continue
            yield part, result[0]
            done += images

    def _try(self, part: Any, images: int, work: Callable[[Any], T]) -> tuple[T] | None:
        """Return (work(part),), or None if memory ran out. The error, and the memory it holds, does not leave here."""
        try:
            return (work(part),)
        except (RuntimeError, MemoryError) as error:
            if images == 1 or not memory_ran_out(error):
                raise
            return None


class MicroBatch:
    """How many images of a batch one training step works on at once, found by halving and saved in the run folder.

    A resumed run reads the saved size, since the order of sums would differ otherwise.

    Args:
        folder: The run folder.
        given: The recipe's number, which is never halved; None begins with the whole batch.

    Attributes:
        size: Images per part; None is the whole batch.

    Raises:
        UserError: The saved size cannot be read.
    """

    def __init__(self, folder: Path, given: int | None) -> None:
        self._path = folder / "micro_batch.json"
        self._fixed = given is not None
        self.size = _read_size(self._path) if given is None and self._path.exists() else given

    def split(self, batch: Any) -> Iterator[tuple[Any, float]]:
        """Yield parts of a batch, and the share of its images that each has."""
        length = batch_length(batch)
        for part in split_batch(batch, self.size or length):
            yield part, batch_length(part) / length

    def halve(self, length: int) -> bool:
        """Take half of what did not fit of a batch of `length`; False if a single image, or the given size, did not."""
        tried = min(self.size or length, length)
        if tried == 1 or self._fixed:
            return False
        self.size = -(-tried // 2)
        write_json(self._path, {"micro_batch": self.size})
        _empty_cache()
        return True


def _read_size(path: Path) -> int:
    try:
        size = read_json_object(path).get("micro_batch")
    except UserError:
        size = None
    if type(size) is not int or size < 1:
        raise UserError(f"{path}: is damaged; remove it, and the run finds the micro-batch again")
    return size


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
