"""A plain LightningDiT step: RMSNorm and rotation in small steps, per-tensor EMA, AdamW loop.

The published code compiles each block, by a decorator; `PlainDiT(config, compiled=True)` does the same.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.transformer import LightningDiTConfig


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x) * self.weight


def rotate_half(x: Tensor) -> Tensor:
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    first, second = pairs.unbind(-1)
    return torch.stack((-second, first), dim=-1).flatten(-2)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = 8 * width // 3
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        h = self.norm1(x) * (1 + scale1.unsqueeze(1)) + shift1.unsqueeze(1)
        batch, tokens, width = h.shape
        q, k, v = self.qkv(h).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + gate1.unsqueeze(1) * self.proj(h)
        h = self.norm2(x) * (1 + scale2.unsqueeze(1)) + shift2.unsqueeze(1)
        a, b = self.w12(h).chunk(2, dim=-1)
        return x + gate2.unsqueeze(1) * self.w3(F.silu(a) * b)


class PlainDiT(nn.Module):
    """Network of a `LightningDiTConfig` with SwiGLU, rotation, RMSNorm and shift."""

    def __init__(self, config: LightningDiTConfig, compiled: bool = False) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.patch = nn.Conv2d(config.latent_channels, width, patch, stride=patch)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(config.num_classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = RMSNorm(width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, patch**2 * config.latent_channels)
        tokens = config.grid[0] * config.grid[1]
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02, requires_grad=False)
        angles = torch.randn(tokens, config.head_dim)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        if compiled:
            for part in (self.time, *self.blocks):
                part.compile()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        patch = self.config.patch_size
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
        angles = t[:, None].float() * frequencies[None]
        c = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.label(y)
        for block in self.blocks:
            tokens = block(tokens, c, self.cos, self.sin)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        tokens = self.out(self.norm(tokens) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))
        rows, columns = height // patch, width // patch
        tokens = tokens.reshape(batch, rows, columns, patch, patch, channels)
        return torch.einsum("nhwpqc->nchpwq", tokens).reshape(batch, channels, height, width)


def loss(model: nn.Module, data: Tensor, labels: Tensor) -> Tensor:
    """Return the velocity loss with the direction term; draw noise and logit-normal times."""
    noise = torch.randn_like(data)
    t = torch.sigmoid(torch.randn(len(data), device=data.device))
    at = t.view(-1, 1, 1, 1)
    target = data - noise
    dropped = torch.where(torch.rand(len(labels), device=labels.device) < 0.1, model.config.num_classes, labels)
    predicted = model((1 - at) * noise + at * data, t, dropped)
    return (predicted - target).pow(2).mean() + (1 - F.cosine_similarity(predicted, target, dim=1)).mean()


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float = 0.9999) -> None:
    """Average one parameter at a time."""
    values = dict(model.named_parameters())
    for name, value in average.named_parameters():
        value.mul_(decay).add_(values[name].data, alpha=1 - decay)


@torch.no_grad()
def guided_euler(model: nn.Module, noise: Tensor, labels: Tensor, steps: int, scale: float) -> Tensor:
    """Compute both predictions at every step, also before t = 0.125, where guidance does not act."""
    null = torch.full_like(labels, model.config.num_classes)
    grid = torch.linspace(0, 1, steps)
    grid = 0.3 * grid / (1 - 0.7 * grid)
    x = noise
    for now, then in pairwise(grid):
        both = model(
            torch.cat([x, x]), torch.full((2 * len(x),), float(now), device=x.device), torch.cat([labels, null])
        )
        conditional, free = both.chunk(2)
        velocity = free + scale * (conditional - free) if now >= 0.125 else conditional
        x = x + (then - now) * velocity
    return x
