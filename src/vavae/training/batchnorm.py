"""Batch normalisation over the batch of all processes.

torch's SyncBatchNorm runs on GPUs only; on CPUs the class below does the same with differentiable collectives.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _MeanOverProcesses(torch.autograd.Function):
    """Mean over processes; its gradient is the mean of theirs."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _mean(gradient)


def _mean(x: Tensor) -> Tensor:
    total = x.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class HostSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of the batches of all processes, of equal size each."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not self.training:
            return super().forward(x)
        wide = x.float()
        # Two passes, deviations after the mean: the difference of two large sums would lose digits.
        mean = _MeanOverProcesses.apply(wide.mean((0, 2, 3)))
        centred = wide - mean.view(1, -1, 1, 1)
        variance = _MeanOverProcesses.apply(centred.square().mean((0, 2, 3)))
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach(), dist.get_world_size() * x.numel() // x.shape[1])
        normed = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        if self.affine:
            normed = normed * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normed.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        self.num_batches_tracked.add_(1)


def synchronize_batch_norm(module: nn.Module) -> None:
    """Make every BatchNorm2d below `module` see the batches of all processes, in place; names stay as they are."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            on_gpu = child.weight.device.type == "cuda"
            kind = nn.SyncBatchNorm if on_gpu else HostSyncBatchNorm2d
            synced = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            synced.to(child.weight.device)
            synced.load_state_dict(child.state_dict())
            synced.train(child.training)
            setattr(module, name, synced)
        else:
            synchronize_batch_norm(child)
