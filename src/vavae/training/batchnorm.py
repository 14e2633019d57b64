"""Batch normalization over the batch of all processes: torch's SyncBatchNorm on GPUs, and its like on CPUs."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _GatherBatch(torch.autograd.Function):
    """(B, …) of each process -> (processes * B, …) of all; gradients are summed over processes."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)  # (processes * B, …)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]  # (processes * B, …) -> (B, …)


class HostSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the batches of all processes, of equal size each. SyncBatchNorm supports GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not self.training:
            return super().forward(x)
        whole = super().forward(_GatherBatch.apply(x))  # (processes * B, C, H, W)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]  # (B, C, H, W)


def synchronize_batch_norm(module: nn.Module) -> None:
    """Make every BatchNorm2d below `module` normalize over the batches of all processes, in place; names stay."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            device = next(child.buffers()).device  # it may have no weight
            kind = nn.SyncBatchNorm if device.type == "cuda" else HostSyncBatchNorm2d
            synced = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            synced.to(device)
            synced.load_state_dict(child.state_dict())
            synced.train(child.training)
            setattr(module, name, synced)
        else:
            synchronize_batch_norm(child)
