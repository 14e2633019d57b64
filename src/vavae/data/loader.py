"""The order of images in training, and threads that load them in advance.

A position is the number of images seen before. Position p is image `permutation(epoch)[p % length]` of epoch
p // length. It does not depend on the number of processes, the batch size, or where a run was stopped.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from vavae import rng
from vavae.errors import UserError

P = TypeVar("P")
T = TypeVar("T")


class IndexStream:
    """An endless, shuffled order of images as a pure function of (seed, position).

    Every epoch visits each image once, in a permutation that depends on the seed and the epoch. All processes share one
    global order, and each takes its own slice of a batch.

    Args:
        length: Number of images.
        seed: Seed of the run.
        start: Position at which iteration begins: the number of images already seen.
        rank: This process, in [0, world).
        world: Number of processes.
    """

    def __init__(self, length: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        if length < 1:
            raise UserError("the data set is empty")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        if start < 0:
            raise ValueError(f"start {start} is negative")
        self.length = length
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world = world
        # Batches proceed through the epochs, so only the newest two orders are needed again.
        self._order = lru_cache(maxsize=2)(lambda epoch: rng.permutation(seed, f"epoch {epoch}", length))

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

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield endless batches from `start`; see `batch`."""
        position = self.start
        while True:
            yield self.batch(position, batch_size)
            position += batch_size


@dataclass(frozen=True)
class Batch(Generic[T]):
    """A batch of `BatchLoader`.

    Attributes:
        position: Global position of the batch's first image.
        indices: Indices of this process's images, (B,) int64.
        positions: Global positions of this process's images, (B,) int64; they seed everything random about the images.
        data: Result of the loading function.
    """

    position: int
    indices: Tensor
    positions: Tensor
    data: T


class BatchLoader(Generic[T]):
    """Loads the batches of an `IndexStream` in background threads and yields them in order.

    Threads suffice, since decoding and resizing in Pillow and copying in torch release the interpreter's lock.
    An error of the loading function is raised where its batch would have been yielded. Use as a context manager,
    or call `close`.

    Args:
        stream: The data order; loading begins at `stream.start`.
        load: (indices, positions) -> data; called from several threads at once.
        batch_size: Size of a batch over all processes.
        workers: Number of threads; 0 loads in the calling thread. Four batches are ready or being loaded, or one per
            thread if there are more.
    """

    def __init__(
        self, stream: IndexStream, load: Callable[[Tensor, Tensor], T], batch_size: int, workers: int = 2
    ) -> None:
        stream.batch(stream.start, batch_size)  # raises for a bad batch size here, not in a thread
        positions = itertools.count(stream.start, batch_size)
        batches = zip(positions, stream.batches(batch_size), strict=False)
        self._loaded = loaded_ahead(batches, lambda batch: load(*batch[1]), workers, max(4, workers) - 1)

    def __iter__(self) -> Iterator[Batch[T]]:
        return self

    def __next__(self) -> Batch[T]:
        (position, (indices, positions)), data = next(self._loaded)
        return Batch(position, indices, positions, data)

    def close(self) -> None:
        """Cancel batches that are not started and wait for the others."""
        self._loaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
