"""Building blocks of the convolutional autoencoder: normalisation, residual and attention blocks, resampling.

Attribute names are those of the published state dict.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class GroupNorm(nn.GroupNorm):
    """Group normalisation, eps 1e-6, computed in float32 whatever the input type and autocast say.

    The number of groups is gcd(32, channels): the published 32 for every multiple of 32, and the largest
    power of two that divides smaller or odd widths (48 channels: 16 groups).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and type."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            return F.group_norm(wide, self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


class CheckpointedBlock(nn.Module):
    """A block that, when asked, keeps only its input and computes its activations again in the backward pass."""

    checkpoint_activations: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(self.transform, x, use_reentrant=False, preserve_rng_state=False)
        return self.transform(x)

    def transform(self, x: Tensor) -> Tensor:
        """What the block computes."""
        raise NotImplementedError


class ResidualBlock(CheckpointedBlock):
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

    def transform(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if self.changes_width else x) + h


class AttentionBlock(CheckpointedBlock):
    """x + single-head attention over all positions, scale channels**-0.5, with 1×1 convolutions as projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def transform(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        batch, channels, height, width = x.shape
        h = self.norm(x)
        # (B, C, H, W) -> (B, 1 head, H*W, C)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width))


class Downsample(nn.Module):
    """Half the size: zeros on the right and bottom edge, then a 3×3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2); H and W even."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Residual, attention, residual: between the two halves of the encoder and of the decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution: residual blocks, each followed by attention where the level has it."""

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
    """A level of the encoder, which halves the size at its end unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool, last: bool) -> None:
        super().__init__(in_channels, out_channels, blocks, attention)
        self.downsample = None if last else Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/2, W/2), or of the same size if last."""
        x = super().forward(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(Level):
    """A level of the decoder, which doubles the size at its end unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool, last: bool) -> None:
        super().__init__(in_channels, out_channels, blocks, attention)
        self.upsample = None if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, 2H, 2W), or of the same size if last."""
        x = super().forward(x)
        return x if self.upsample is None else self.upsample(x)
