"""The processes of one run, and what they communicate.

`torchrun` starts them; without it there is one. Each process takes its own slice of every batch.
`vavae.training.gradients` averages the gradients.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Imported before a group exists: its functions keep the default group at the time of import as a default argument, and
# `torch._dynamo` imports it. A group that is kept is never destroyed. If one of its threads frees a last tensor while
# the interpreter exits, the process aborts.
import torch.distributed.nn
from torch import Tensor

from vavae.device import resolve_device
from vavae.errors import UserError
from vavae.io.files import exclusive
from vavae.training.signals import ended_by_second_signal

T = TypeVar("T")
TensorT = TypeVar("TensorT", bound=Tensor)

# Tensors are sent in flat buffers of about this size: large enough to fill a link.
_BUCKET_BYTES = 64 * 2**20
# One process may work alone for hours (statistics, t-SNE, a report) while the others wait.
_TIMEOUT = timedelta(days=2)
# In a step, and while a checkpoint is written, a process that is silent for this long counts as lost. Compiling, a
# preview or a snapshot of the averages may keep one process alone there, but for minutes only.
_STEP_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """The processes of a run; the default is one process alone."""

    rank: int = 0  # this process, in [0, size)
    size: int = 1  # number of processes
    # Group for numbers and objects in host memory, with a long timeout; None is the default group, which the steps
    # use.
    host: dist.ProcessGroup | None = None
    # Group for the thread that writes checkpoints, so that its messages do not mix with others.
    saving: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, logs and writes shared files."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line in the first process."""
        if self.first:
            print(text, flush=True)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over processes, in place; tensors of several types may be mixed."""
        if self.size > 1 and tensors:
            _in_buckets(tensors, lambda flat: dist.all_reduce(flat, async_op=True))
            with torch.no_grad():
                torch._foreach_div_(list(tensors), self.size)

    def average(self, tensor: Tensor) -> Tensor:
        """Return the mean of `tensor` over processes, as a new tensor."""
        mean = tensor.detach().clone(memory_format=torch.contiguous_format)
        self.average_([mean])
        return mean

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Copy the first process's values into every other one's tensors."""
        if self.size > 1:
            _in_buckets(tensors, lambda flat: dist.broadcast(flat, 0, async_op=True))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process. All must call it, within the timeout of a step."""
        if self.size == 1:
            return flag
        shared = torch.tensor([int(flag)])
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared.item())

    def wait(self) -> None:
        """Wait for all processes to call this."""
        if self.size > 1:
            dist.barrier(group=self.host)

    def once(self, action: Callable[[], T]) -> T:
        """Call `action` in the first process and return its result in all.

        An error ends all processes: the first raises it, the others exit without a message, so that a user's mistake
        is reported once.
        """
        if self.size == 1:
            return action()
        shared: list[Any] = [None, 1]  # the result, and the exit code of the others
        try:
            if self.first:
                shared = [action(), 0]
        except UserError:
            shared[1] = 2
            raise
        finally:
            dist.broadcast_object_list(shared, 0, group=self.host)
        if shared[1]:
            raise SystemExit(shared[1])
        return shared[0]

    def each(self, action: Callable[[], T]) -> T:
        """Call `action` in every process and return the own result. All must call it.

        An error in any process ends all: it raises there, and the others exit without a message.
        """
        try:
            result = action()
        except BaseException:
            self.gather(False)
            raise
        if not all(self.gather(True)):
            raise SystemExit(1)
        return result

    def gather(self, value: T) -> list[T]:
        """Return `value` of every process, by rank. All must call it."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.host)
        return found


@torch.no_grad()
def _in_buckets(tensors: Sequence[Tensor], start: Callable[[Tensor], Any]) -> None:
    """Apply a collective, which `start` starts on a flat buffer, to all tensors in place."""
    pending = []
    for bucket in buckets(tensors, _BUCKET_BYTES):
        flat = flatten(bucket)
        pending.append((bucket, flat, start(flat)))
    for bucket, flat, work in pending:
        work.wait()
        copy_parts(flat, bucket)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return one vector of the elements of all tensors."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def copy_parts(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the elements of a vector, as `flatten` returns it, into the tensors."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


def buckets(tensors: Sequence[TensorT], most_bytes: int) -> list[list[TensorT]]:
    """Group tensors by dtype and device, in order; a group ends with the tensor that brings it to `most_bytes`."""
    found: list[list[TensorT]] = []
    latest: dict[tuple[torch.dtype, torch.device], tuple[list[TensorT], int]] = {}
    for tensor in tensors:
        key = tensor.dtype, tensor.device
        bucket, size = latest.get(key, ([], most_bytes))
        if size >= most_bytes:
            bucket, size = [], 0
            found.append(bucket)
        bucket.append(tensor)
        latest[key] = bucket, size + tensor.nbytes
    return found


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor, of which each process holds a part."""
    # The import takes most of a second. Code that has a DTensor has imported the module.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all processes, which must all call it; return any other as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def to_local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor; return any other as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@contextmanager
def sharing_processes() -> Iterator[World]:
    """Join the processes that `torchrun` started, through gloo, to share files and numbers but not tensors.

    Without torchrun, there is one process. Inside another such block, the processes have joined already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
    elif dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
    else:
        with ended_by_second_signal():
            dist.init_process_group("gloo", timeout=_TIMEOUT)
            try:
                yield World(dist.get_rank(), dist.get_world_size())
            finally:
                dist.destroy_process_group()


@contextmanager
def held_folder(folder: Path, world: World, check: Callable[[], object]) -> Iterator[None]:
    """Let the first process check a folder, and then hold it alone for the block, as `exclusive` does."""
    with ExitStack() as held:

        def take() -> None:
            check()
            held.enter_context(exclusive(folder))

        world.once(take)
        yield


@contextmanager
def processes(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started to train together; without torchrun, there is one.

    GPU runs communicate through NCCL, CPU runs through gloo.

    Raises:
        UserError: There are more processes than GPUs, the device does not exist, or processes cannot share it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    own = _shared_device(device)
    with ended_by_second_signal():
        if own.type == "cuda":
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=own, timeout=_STEP_TIMEOUT)
        else:
            dist.init_process_group("gloo", timeout=_STEP_TIMEOUT)
        groups = [dist.new_group(backend="gloo", timeout=timeout) for timeout in (_TIMEOUT, _STEP_TIMEOUT)]
        yield World(dist.get_rank(), dist.get_world_size(), *groups)
        # Not after an error: this would wait for processes that wait for this one, whose exit ends them.
        dist.destroy_process_group()


def _shared_device(name: str) -> torch.device:
    """Choose this process's device and make it torch's current one."""
    device = resolve_device(name)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device: several processes train on CPUs or NVIDIA GPUs, not on {device.type}")
    if device.type == "cuda":
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise UserError(f"torchrun started more processes than this machine's {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(device)
    return device
