"""Average gradients over processes while the backward pass still computes others.

Gradients are sent in buckets of fixed content and order, so that a resumed run adds them up in the same order. torch's
DistributedDataParallel fills its buckets in the order of the first step, and so differently after a resume.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vavae.training.parallel import World, buckets, copy_parts, flatten

# Bytes of a bucket, as in torch's DistributedDataParallel: the smaller it is, the earlier its transfer starts.
_BUCKET_BYTES = 25 * 2**20


class GradientAverager:
    """Replace gradients by their means over the processes.

    Args:
        world: The processes.
        groups: Parameters in the order of their modules, one group after the other in the order of their backward
            passes. Within a group the last ones have their gradients first.
    """

    def __init__(self, world: World, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self._world = world
        ordered = [parameter for group in groups for parameter in reversed(group) if parameter.requires_grad]
        self._buckets = buckets(ordered, _BUCKET_BYTES) if world.size > 1 else []
        self._number_of = {id(p): number for number, bucket in enumerate(self._buckets) for p in bucket}

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Average the gradients that have been added up by the end of the block, which runs their last backward passes.

        Every parameter gets at most one gradient in the block; the transfer of a bucket starts when it has its last.

        Raises:
            RuntimeError: A parameter gets a gradient after its bucket was sent.
        """
        missing = [len(bucket) for bucket in self._buckets]
        sent: list[tuple[list[Tensor], Tensor, Any]] = []

        def send() -> None:
            gradients = [p.grad for p in self._buckets[len(sent)] if p.grad is not None]
            flat = flatten(gradients) if gradients else torch.empty(0)
            sent.append((gradients, flat, dist.all_reduce(flat, async_op=True) if gradients else None))

        def on_gradient(parameter: Tensor) -> None:
            number = self._number_of[id(parameter)]
            missing[number] -= 1
            if missing[number] < 0:
                raise RuntimeError("a parameter has more than one gradient in the last part of a batch")
            while len(sent) < len(missing) and missing[len(sent)] == 0:
                send()

        with ExitStack() as hooks:
            for bucket in self._buckets:
                for parameter in bucket:
                    hooks.callback(parameter.register_post_accumulate_grad_hook(on_gradient).remove)
            yield
        while len(sent) < len(missing):  # buckets with parameters that have no gradient in this step
            send()
        for gradients, flat, work in sent:
            if work is not None:
                work.wait()
                copy_parts(flat.div_(self._world.size), gradients)
