"""The processes of one run: who they are, and the little they tell each other.

`torchrun` starts them; without it there is one. All agree on the batch, so each sees its own slice of it, and
gradients are averaged in one pass over flat buffers.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Imported before there is a group: its functions keep the default group of that moment as a default argument, and
# torch imports it by itself when it first needs `torch._dynamo`. A group that is kept is not taken down, and a thread
# of it that lets go of a last tensor while the interpreter ends aborts the process.
import torch.distributed.nn
from torch import Tensor

from vavae.device import resolve_device
from vavae.errors import UserError
from vavae.training.signals import ended_by_second_signal

T = TypeVar("T")

# Gradients are averaged in flat buffers of about this size, after the backward pass: large enough to fill a link.
_BUCKET_BYTES = 64 * 2**20
# One process may work alone for hours (statistics, t-SNE, a report) while the others wait for it.
_PATIENCE = timedelta(days=2)
# In a step, and while a checkpoint's parts are written, a process that is silent for this long is given up. Validations
# are shared, and a checkpoint is written beside the steps: at most a compilation, a preview or a snapshot of the
# averages keeps one alone, for minutes.
_STEP_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """The processes of a run; the default is one process alone.

    Attributes:
        rank: This process, in [0, size).
        size: Number of processes.
        host: Group for numbers and objects in host memory that one process may be long about; None is the default
            group, which the steps use.
        saving: Group for the thread that writes checkpoints, which must not meet the other's messages.
    """

    rank: int = 0
    size: int = 1
    host: dist.ProcessGroup | None = None
    saving: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, logs and writes shared files."""
        return self.rank == 0

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over processes, in place; tensors of several types may be mixed."""
        if self.size == 1:
            return
        pending = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in pending:
            work.wait()
            flat.div_(self.size)
            parts = flat.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)])

    def average(self, tensor: Tensor) -> Tensor:
        """Mean of `tensor` over processes, as a new tensor."""
        mean = tensor.detach().clone(memory_format=torch.contiguous_format)
        self.average_([mean])
        return mean

    @torch.no_grad()
    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.broadcast(flat, 0)
            parts = flat.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)])

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process. All must call it, within the patience of a step."""
        if self.size == 1:
            return flag
        shared = torch.tensor([int(flag)])
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared.item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.host)

    def once(self, action: Callable[[], T]) -> T:
        """What `action` returns in the first process, given to all.

        An error of the first process ends all of them: there as itself, elsewhere as a silent exit, so that a
        user's mistake is reported once.
        """
        if self.size == 1:
            return action()
        told: list[Any] = [None, 1]  # the result, and with which code the others leave
        try:
            if self.first:
                told = [action(), 0]
        except UserError:
            told[1] = 2
            raise
        finally:
            dist.broadcast_object_list(told, 0, group=self.host)
        if told[1]:
            raise SystemExit(told[1])
        return told[0]

    def each(self, action: Callable[[], T]) -> T:
        """What `action` returns in this process; all must call it.

        An error of any process ends all of them: there as itself, elsewhere as a silent exit.
        """
        made: list[T] = []
        fine: list[bool] = []
        try:
            made.append(action())
        finally:
            fine = self.gather(bool(made))
        if not all(fine):
            raise SystemExit(1)
        return made[0]

    def gather(self, value: T) -> list[T]:
        """`value` of every process, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.host)
        return found


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors grouped by type and device, in order, up to `_BUCKET_BYTES` a group."""
    buckets: list[list[Tensor]] = []
    latest: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], int]] = {}
    for tensor in tensors:
        key = tensor.dtype, tensor.device
        bucket, size = latest.get(key, ([], _BUCKET_BYTES))
        if size >= _BUCKET_BYTES:
            bucket, size = [], 0
            buckets.append(bucket)
        bucket.append(tensor)
        latest[key] = bucket, size + tensor.nbytes
    return buckets


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a part of `tensor` only (a DTensor)."""
    # The module takes most of a second to import, and who has a DTensor has imported it.
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, gathered from all processes, which must all call it; any other as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def to_local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@contextmanager
def sharing_processes() -> Iterator[World]:
    """Join the processes that `torchrun` started, through gloo, to share files and numbers but no tensors.

    Without torchrun, one process alone. Within another such block, the processes are those that have joined already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
    elif dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
    else:
        with ended_by_second_signal():
            dist.init_process_group("gloo", timeout=_PATIENCE)
            try:
                yield World(dist.get_rank(), dist.get_world_size())
            finally:
                dist.destroy_process_group()


@contextmanager
def processes(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started to train together; one process alone without it.

    Args:
        device: As in a recipe. A GPU run talks through NCCL, a CPU run through gloo.

    Raises:
        UserError: There are more processes than GPUs, the device does not exist, or several cannot share it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    with ended_by_second_signal():
        _join(resolve_device(device))
        groups = [dist.new_group(backend="gloo", timeout=patience) for patience in (_PATIENCE, _STEP_PATIENCE)]
        yield World(dist.get_rank(), dist.get_world_size(), *groups)
        # After an error nothing is taken down: that would wait for processes which wait for this one. Its end tells
        # them.
        dist.destroy_process_group()


def _join(device: torch.device) -> None:
    if device.type == "cuda":
        to_local = int(os.environ["LOCAL_RANK"])
        if to_local >= torch.cuda.device_count():
            raise UserError(f"torchrun started more processes than this machine's {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, timeout=_STEP_PATIENCE)
    elif device.type != "cpu":
        raise UserError(f"device: several processes train on CPUs or NVIDIA GPUs, not on {device.type}")
    else:
        dist.init_process_group("gloo", timeout=_STEP_PATIENCE)
