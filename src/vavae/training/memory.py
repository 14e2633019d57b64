"""A batch in parts that fit into memory."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vavae.errors import UserError, memory_ran_out
from vavae.io.files import written_whole

T = TypeVar("T")


def batch_length(batch: Any) -> int:
    """Number of images of a batch: the length of its tensors."""
    for value in _members(batch):
        if isinstance(value, Tensor):
            return len(value)
    raise TypeError(f"{type(batch).__name__} holds no tensor")


def split_batch(batch: Any, size: int) -> Iterator[Any]:
    """Parts of at most `size` images; what is no tensor goes into each part as it is.

    Args:
        batch: A dataclass or tuple whose tensors all have the images as their first dimension.
        size: Images per part.
    """
    length = batch_length(batch)
    if size >= length:
        yield batch
        return
    for first in range(0, length, size):
        yield _part(batch, first, size)


def _part(batch: Any, first: int, size: int) -> Any:
    chosen = [v[first : first + size] if isinstance(v, Tensor) else v for v in _members(batch)]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch)]
        return dataclasses.replace(batch, **dict(zip(names, chosen, strict=True)))
    return tuple(chosen)


def _members(batch: Any) -> list[Any]:
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return list(batch)


class Chunks:
    """Work without gradients in parts of a batch, halved whenever memory runs out.

    Args:
        size: Images per part to begin with.
        halve: Whether to halve. Not where processes must compute in step: one that began anew would leave the others
            waiting.
    """

    def __init__(self, size: int, halve: bool = True) -> None:
        self.size = size
        self._halve = halve

    def over(self, batch: Any, work: Callable[[Any], T]) -> Iterator[tuple[Any, T]]:
        """(part, work(part)) for parts that cover `batch`, in order.

        Args:
            batch: As for `split_batch`.
            work: What is computed of a part; it is called again with less where memory ran out.

        Raises:
            RuntimeError, MemoryError: A single image does not fit, or `work` failed otherwise.
        """
        done, length = 0, batch_length(batch)
        while done < length:
            part = _part(batch, done, self.size)
            images = batch_length(part)
            result = self._tried(part, images, work)
            if result is None:
                self.size = -(-images // 2)
                _free()
                continue
            yield part, result[0]
            done += images

    def _tried(self, part: Any, images: int, work: Callable[[Any], T]) -> tuple[T] | None:
        """What `work` returns; None where it is to be tried with less. The error, and what it holds, ends here."""
        try:
            return (work(part),)
        except (RuntimeError, MemoryError) as error:
            if images == 1 or not self._halve or not memory_ran_out(error):
                raise
            return None


class MicroBatch:
    """How many images of a batch are worked on at once, found by halving and remembered in the run folder.

    A resumed run uses what was found, as the order of sums would differ otherwise.

    Args:
        folder: The run folder.
        given: The recipe's number; None begins with the whole batch.

    Raises:
        UserError: What was remembered cannot be read.
    """

    def __init__(self, folder: Path, given: int | None) -> None:
        self._path = folder / "micro_batch.json"
        self.size = given
        if given is None and self._path.exists():
            self.size = _remembered(self._path)

    def halve(self, length: int) -> bool:
        """Take half of what did not fit, of a batch of `length`; False where a single image did not fit."""
        tried = min(self.size or length, length)
        if tried == 1:
            return False
        self.size = -(-tried // 2)
        with written_whole(self._path) as temporary:
            temporary.write_text(json.dumps({"micro_batch": self.size}) + "\n")
        _free()
        return True


def _remembered(path: Path) -> int:
    try:
        size = json.loads(path.read_text())["micro_batch"]
    except (ValueError, KeyError, TypeError):
        size = None
    if type(size) is not int or size < 1:
        raise UserError(f"{path}: is damaged; remove it, and the micro-batch is found anew")
    return size


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
