"""Several processes on one evaluation, as `torchrun` starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

# Before there is a group, as in `vavae.training.parallel`: otherwise torch keeps the group, and its threads outlive it.
import torch.distributed.nn

from vavae.training.precision import resolve_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that share an evaluation; they need one file system.

    Attributes:
        rank: Number of this process.
        world: Number of processes.
        local_rank: Number of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process adds up, prints and writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order; waits for all."""
        if self.world == 1:
            return [value]
        found: list[T | None] = [None] * self.world
        dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]  # every place is filled

    def device(self, name: str) -> torch.device:
        """The device of this process: `cuda` and `auto` give each process of a machine a GPU of its own."""
        device = resolve_device(name)
        if self.world > 1 and device.type == "cuda" and device.index is None:
            device = torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return device


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` started, through gloo; one process where nobody did.

    Within another such block, the processes are those that have joined already.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if world == 1:
        yield Processes()
        return
    if dist.is_initialized():
        yield Processes(dist.get_rank(), world, local_rank)
        return
    # The first process adds up alone while the others wait: t-SNE of many latents takes its time.
    dist.init_process_group("gloo", timeout=timedelta(hours=12))
    try:
        yield Processes(dist.get_rank(), world, local_rank)
    finally:
        dist.destroy_process_group()
