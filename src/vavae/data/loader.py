"""The order of images in training, and threads that load them in advance.

A position is the number of images seen before. Position p is image `permutation(epoch)[p % length]` of epoch
p // length. It does not depend on the number of processes, the batch size, or where a run was stopped.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from vavae import rng
from vavae.errors import UserError

P = TypeVar("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class IndexStream:
    """An endless, shuffled order of images as a pure function of (seed, position).

    Every epoch visits each image once, in a permutation that depends on the seed and the epoch. All processes share one
    global order, and each takes its own slice of a batch.
    """

    length: int  # number of images
    seed: int
    start: int = 0  # position at which iteration begins: the number of images already seen
    rank: int = 0  # this process, in [0, world)
    world: int = 1  # number of processes

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError("the data set is empty")

    @cached_property
    def _order(self) -> Callable[[int], Tensor]:
        """The permutation of an epoch. Batches proceed through the epochs, so only the newest two are needed again."""
        return lru_cache(maxsize=2)(lambda epoch: rng.permutation(self.seed, f"epoch {epoch}", self.length))

    def at(self, positions: Tensor) -> Tensor:
        """Return the image indices at the given positions, (N,) int64 -> (N,) int64."""
        indices = torch.empty_like(positions)
        epochs = torch.div(positions, self.length, rounding_mode="floor")
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            indices[here] = self._order(epoch)[positions[here] - epoch * self.length]
        return indices

    def batch(self, position: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return this process's share of the batch that begins at `position`.

        Args:
            position: Global position of the batch's first image.
            batch_size: Size of the batch over all processes.

        Returns:
            (image_indices, positions), both (batch_size / world,) int64.

        Raises:
            UserError: The batch cannot be divided evenly over the processes.
        """
        if batch_size < 1 or batch_size % self.world:
            raise UserError(f"batch_size {batch_size} cannot be divided evenly over {self.world} processes")
        share = batch_size // self.world
        first = position + self.rank * share
        positions = torch.arange(first, first + share, dtype=torch.int64)
        return self.at(positions), positions


@dataclass(frozen=True)
class Batch(Generic[T]):
    """A batch of `load_batches`."""

    position: int  # global position of the batch's first image
    indices: Tensor  # indices of this process's images, (B,) int64
    # Global positions of this process's images, (B,) int64; they seed everything random about the images.
    positions: Tensor
    data: T  # result of the loading function


def load_batches(
    stream: IndexStream, load: Callable[[Tensor, Tensor], T], batch_size: int, workers: int = 2
) -> Generator[Batch[T], None, None]:
    """Load the batches of an `IndexStream` from `stream.start` in threads, and yield them in order, without end.

    Threads suffice, since decoding and resizing in Pillow and copying in torch release the interpreter's lock.
    Closing the generator cancels batches that are not started, and waits for the others.

    Args:
        stream: The data order.
        load: (indices, positions) -> data. Its error is raised when its batch would be yielded.
        batch_size: Size of a batch over all processes.
        workers: Number of threads; 0 loads in the calling thread. Four batches are ready or being loaded, or one per
            thread if there are more.
    """
    batches = ((start, *stream.batch(start, batch_size)) for start in itertools.count(stream.start, batch_size))
    with closing(loaded_ahead(batches, lambda batch: load(*batch[1:]), workers, max(4, workers) - 1)) as loaded:
        for batch, data in loaded:
            yield Batch(*batch, data)


def loaded_ahead(
    parts: Iterable[P], load: Callable[[P], T], workers: int, ahead: int | None = None
) -> Generator[tuple[P, T], None, None]:
    """Yield (part, load(part)) for each part in order, loaded in advance by threads.

    Parts are taken when they are needed, so their number is not limited.

    Args:
        parts: The parts to load, for example indices of batches.
        load: Loading function, called from several threads. Its error is raised when its part would be yielded.
        workers: Number of threads; 0 loads in the calling thread.
        ahead: Number of parts that are ready or being loaded when one is yielded; None means one per thread.
    """
    if workers == 0:
        yield from ((part, load(part)) for part in parts)
        return
    ahead = workers if ahead is None else ahead
    waiting: deque[tuple[P, Future[T]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="load")
    try:
        for part in parts:
            waiting.append((part, pool.submit(load, part)))
            if len(waiting) > ahead:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
