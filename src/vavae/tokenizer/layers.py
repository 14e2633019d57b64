"""Layers of the convolutional autoencoder: normalization, residual and attention blocks, resampling.

Attributes have the names of the published state dict.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the layout that torch's group norm kernels accept: the tensor's own on CPU, elsewhere contiguous."""
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


class _NormThenSiLU(torch.autograd.Function):
    """silu(group_norm(x)) that saves only x, in its own dtype, and two numbers per group for the backward pass.

    Autograd would save the float32 inputs of both functions, three times the memory in a bfloat16 network.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = x.shape
        wide = _wide(x).contiguous(memory_format=_memory_format(x))
        y, mean, rstd = torch.native_group_norm(wide, weight, bias, batch, channels, height * width, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups = groups
        return F.silu(y).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        batch, channels, height, width = x.shape
        memory_format = _memory_format(x)
        wide = _wide(x).contiguous(memory_format=memory_format)
        # Recompute the normalized input from the saved statistics: x · scale + offset per image and channel, (B, C).
        per_group = channels // ctx.groups
        scale = rstd.repeat_interleave(per_group, dim=1) * weight
        offset = bias - mean.repeat_interleave(per_group, dim=1) * scale
        y = torch.addcmul(offset[..., None, None], wide, scale[..., None, None])
        grad = torch.ops.aten.silu_backward(grad.to(y.dtype), y).contiguous(memory_format=memory_format)
        grads = torch.ops.aten.native_group_norm_backward(
            grad, wide, mean, rstd, weight, batch, channels, height * width, ctx.groups, list(ctx.needs_input_grad[:3])
        )
        return grads[0].to(x.dtype) if grads[0] is not None else None, grads[1], grads[2], None, None


class GroupNorm(nn.GroupNorm):
    """Group normalization with eps 1e-6, computed in float32 for every input dtype and under autocast.

    The number of groups is gcd(32, channels): the published 32 for multiples of 32, otherwise the largest power of
    two that divides the channels (16 groups for 48 channels).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = _wide(self.weight), _wide(self.bias)
            return F.group_norm(_wide(x), self.num_groups, weight, bias, self.eps).to(x.dtype)

    def silu(self, x: Tensor) -> Tensor:
        """Return silu(forward(x)); in training, save only what the backward pass cannot recompute.

        The memory-saving form supports first derivatives only, so evaluation mode uses the plain functions. A
        compiler saves the memory by itself.
        """
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _NormThenSiLU.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return F.silu(self(x))


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1×1 shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.changes_width = in_channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        h = self.conv1(self.norm1.silu(x))
        h = self.conv2(self.norm2.silu(h))
        return (self.nin_shortcut(x) if self.changes_width else x) + h


class AttentionBlock(nn.Module):
    """x + single-head attention over all positions, scale channels**-0.5, with 1×1 convolutions as projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        batch, channels, height, width = x.shape
        h = self.norm(x)
        # (B, C, H, W) -> (B, 1 head, H·W, C)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        # (B, 1, H·W, C) -> (B, C, H, W)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width))


class Downsample(nn.Module):
    """Halve the size: pad the right and bottom edge with zeros, then apply a 3×3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2); H and W even."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the size: nearest neighbor, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Residual, attention and residual block at the lowest resolution of encoder and decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if the level has it."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(out_channels) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[i](x)
        return x


class DownLevel(Level):
    """Level of the encoder; it halves the size at its end unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool, last: bool) -> None:
        super().__init__(in_channels, out_channels, blocks, attention)
        self.downsample = None if last else Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/2, W/2), or (B, out, H, W) for the last level."""
        x = super().forward(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(Level):
    """Level of the decoder; it doubles the size at its end unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool, last: bool) -> None:
        super().__init__(in_channels, out_channels, blocks, attention)
        self.upsample = None if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, 2H, 2W), or (B, out, H, W) for the last level."""
        x = super().forward(x)
        return x if self.upsample is None else self.upsample(x)
