"""A batch in parts that fit into memory."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
        chosen = [v[first : first + size] if isinstance(v, Tensor) else v for v in _members(batch)]
        if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            names = [field.name for field in dataclasses.fields(batch)]
            yield dataclasses.replace(batch, **dict(zip(names, chosen, strict=True)))
        else:
            yield tuple(chosen)


def _members(batch: Any) -> list[Any]:
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return list(batch)


class MicroBatch:
    """How many images of a batch are worked on at once, found by halving and remembered in the run folder.

    A resumed run uses what was found, as the order of sums would differ otherwise.

    Args:
        folder: The run folder.
        given: The recipe's number; None begins with the whole batch.
    """

    def __init__(self, folder: Path, given: int | None) -> None:
        self._path = folder / "micro_batch.json"
        self.size = given
        if given is None and self._path.exists():
            self.size = int(json.loads(self._path.read_text())["micro_batch"])

    def halve(self, length: int) -> bool:
        """Take half of what did not fit, of a batch of `length`; False where a single image did not fit."""
        tried = min(self.size or length, length)
        if tried == 1:
            return False
        self.size = -(-tried // 2)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({"micro_batch": self.size}) + "\n")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True
