"""TinyViT of MobileSAM (arXiv 2207.10666, 2306.14289): an image encoder distilled from SAM ViT-H.

For inference only: every BatchNorm is folded into the convolution before it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (64, 128, 160, 320)
_DEPTHS = (2, 2, 6, 2)
_HEADS = (2, 4, 5, 10)
_WINDOWS = (7, 7, 14, 7)
_EXPANSION = 4
_NECK_WIDTH = 256


class TinyViT(nn.Module):
    """Pixels (B, 3, H, W), H and W multiples of 16 -> features (B, 256, H/16, W/16).

    Attributes:
        width: Channels of the features, 256.
        patch: Side in pixels of the patch of one feature, 16.
    """

    width = _NECK_WIDTH
    patch = 16

    def __init__(self) -> None:
        super().__init__()
        first = _WIDTHS[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first // 2, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(first // 2, first, 3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList(_Stage(index) for index in range(len(_WIDTHS)))
        self.neck = nn.Sequential(
            nn.Conv2d(_WIDTHS[-1], _NECK_WIDTH, 1, bias=False),
            _ChannelNorm(_NECK_WIDTH, eps=1e-6),
            nn.Conv2d(_NECK_WIDTH, _NECK_WIDTH, 3, padding=1, bias=False),
            _ChannelNorm(_NECK_WIDTH, eps=1e-6),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.stem(pixels)
        for stage in self.stages:
            features = stage(features)
        return self.neck(features)


class _Stage(nn.Module):
    """Blocks of one resolution and the transition to the next; the blocks of the first stage are convolutions."""

    def __init__(self, index: int) -> None:
        super().__init__()
        width = _WIDTHS[index]
        blocks = (
            _ConvBlock(width) if index == 0 else _WindowBlock(width, _HEADS[index], _WINDOWS[index])
            for _ in range(_DEPTHS[index])
        )
        self.blocks = nn.ModuleList(blocks)
        self.merge: nn.Module = nn.Identity()
        if index + 1 < len(_WIDTHS):
            # MobileSAM keeps the resolution in the last transition, so that the grid is 1/16 as in SAM.
            stride = 1 if index + 2 == len(_WIDTHS) else 2
            self.merge = _Merge(width, _WIDTHS[index + 1], stride)

    def forward(self, features: Tensor) -> Tensor:
        for block in self.blocks:
            features = block(features)
        return self.merge(features)


class _ConvBlock(nn.Module):
    """Inverted bottleneck with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = _EXPANSION * width
        self.conv1 = nn.Conv2d(width, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(features))))
        return F.gelu(features + self.conv3(hidden))


class _Merge(nn.Module):
    """Change the width, and divide the resolution by `stride`."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 1)
        self.conv2 = nn.Conv2d(out, out, 3, stride=stride, padding=1, groups=out)
        self.conv3 = nn.Conv2d(out, out, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(features)))))


class _WindowBlock(nn.Module):
    """Attention in windows, a depthwise convolution, an MLP; residuals around attention and MLP."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attention = _WindowAttention(width, heads, window)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = _Mlp(width)

    def forward(self, features: Tensor) -> Tensor:
        _, _, height, width = features.shape
        tokens = features.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        attended = tokens + self._attend(tokens, height, width)
        local = self.local(attended.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (local + self.mlp(local)).permute(0, 3, 1, 2)

    def _attend(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Attend in windows of (B, H, W, C), padded with zeros to whole windows; attention includes the padding."""
        side = self.window
        if height == side and width == side:
            return self.attention(tokens.flatten(1, 2)).view(tokens.shape)
        padded = F.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
        batch, full_height, full_width, channels = padded.shape
        rows, columns = full_height // side, full_width // side
        # (B, rows, side, columns, side, C) -> (B, rows, columns, side, side, C) -> (B·rows·columns, side·side, C)
        windows = padded.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        attended = self.attention(windows.reshape(-1, side * side, channels))
        # (B, rows, columns, side, side, C) -> (B, rows, side, columns, side, C) -> (B, H', W', C) -> (B, H, W, C)
        attended = attended.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        return attended.reshape(batch, full_height, full_width, channels)[:, :height, :width]


class _WindowAttention(nn.Module):
    """Attention over a window (N, side·side, C) with a learned bias per head and absolute offset of positions."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.offset_bias = nn.Parameter(torch.zeros(heads, side * side))
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        row_offsets = (rows.flatten()[:, None] - rows.flatten()[None]).abs()
        column_offsets = (columns.flatten()[:, None] - columns.flatten()[None]).abs()
        self.register_buffer("offsets", row_offsets * side + column_offsets, persistent=False)
        self.offsets: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        count, length, channels = tokens.shape
        # The channels of each head are its queries, keys and values: (N, T, 3·C) -> (N, T, heads, 3, head_dim).
        qkv = self.qkv(self.norm(tokens)).view(count, length, self.heads, 3, channels // self.heads)
        # (3, N, heads, T, head_dim)
        query, key, value = qkv.permute(3, 0, 2, 1, 4)
        bias = self.offset_bias[:, self.offsets].to(query.dtype)  # (heads, T, T)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        # (N, heads, T, head_dim) -> (N, T, C)
        return self.proj(attended.transpose(1, 2).reshape(count, length, channels))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, _EXPANSION * width)
        self.fc2 = nn.Linear(_EXPANSION * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(tokens))))


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
