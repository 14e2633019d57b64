"""Layers of the transformer: norms, patches, embeddings of time and label, attention, MLPs."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.grids import patchify
from vavae.transformer.positions import rotate

NORM_EPS = 1e-6
_TIME_FREQUENCIES = 128


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) in float32, rounded to the dtype of x, times a learned weight (arXiv 1910.07467).

    `torch.nn.RMSNorm` multiplies before it rounds. It also warns if x and the weight differ in dtype, as queries
    and keys do under autocast.
    """

    def __init__(self, width: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape."""
        if x.dtype == self.weight.dtype == _at_least_float32(x.dtype):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        normed = F.rms_norm(x.to(_at_least_float32(x.dtype)), self.weight.shape, eps=self.eps)
        return normed.to(x.dtype) * self.weight


def block_norm(width: int, rmsnorm: bool) -> nn.Module:
    """Return the norm before attention, MLP and output: RMSNorm with a weight, or LayerNorm without."""
    return RMSNorm(width) if rmsnorm else nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)


class PatchEmbedding(nn.Module):
    """Linear map of each patch to a token; the weight has the shape of the equivalent convolution."""

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H·W/p², width)."""
        # A matrix product over patches gives tokens directly; the convolution would need a transpose.
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (width, C, p, p) -> (width, p·p·C)
        return F.linear(patchify(images, self.patch_size), weight, self.proj.bias)


def time_features(t: Tensor) -> Tensor:
    """(B,) times -> (B, 256): cosines, then sines, of t · 10000^(-k/128), k = 0 … 127."""
    t = t.to(_at_least_float32(t.dtype))
    exponents = torch.arange(_TIME_FREQUENCIES, device=t.device, dtype=t.dtype) / _TIME_FREQUENCIES
    angles = t[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=1)  # two of (B, 128) -> (B, 256)


class TimeEmbedding(nn.Module):
    """Time in [0, 1], not scaled to 1000 -> sinusoids -> two-layer MLP."""

    def __init__(self, width: int, features: int = 2 * _TIME_FREQUENCIES) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def linears(self) -> list[nn.Linear]:
        """Return the two linear layers."""
        return [layer for layer in self.mlp if isinstance(layer, nn.Linear)]

    def features(self, t: Tensor) -> Tensor:
        """(B,) -> (B, features)."""
        return time_features(t)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        return self.mlp(self.features(t).to(self.linears()[0].weight.dtype))


class FourierTimeEmbedding(TimeEmbedding):
    """Time -> sines, then cosines, of 2π·t·W with 256 learned frequencies W -> two-layer MLP (as in RAE)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 4 * _TIME_FREQUENCIES)
        self.W = nn.Parameter(torch.randn(2 * _TIME_FREQUENCIES))

    def features(self, t: Tensor) -> Tensor:
        """(B,) -> (B, 512)."""
        angles = 2 * math.pi * t.to(_at_least_float32(t.dtype))[:, None] * self.W  # (B, 256)
        return torch.cat((angles.sin(), angles.cos()), dim=1)  # two of (B, 256) -> (B, 512)


class LabelEmbedding(nn.Module):
    """Table with one row per class and a last row for "no label"."""

    def __init__(self, num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = dropout
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor, drop: Tensor | None) -> Tensor:
        """(B,) labels in [0, num_classes] -> (B, width).

        Args:
            labels: Integers; num_classes means "no label".
            drop: (B,) bool, True where "no label" replaces the label. None draws each with probability
                `dropout` in train mode, and drops nothing in eval mode.
        """
        if drop is None and self.training and self.dropout > 0:
            drop = torch.rand(labels.shape, device=labels.device) < self.dropout
        if drop is not None:
            labels = labels.masked_fill(drop, self.num_classes)
        return self.embedding_table(labels.long())


class Attention(nn.Module):
    """Multi-head self-attention; queries and keys may be normalized and rotated."""

    def __init__(self, width: int, heads: int, qk_norm: bool, rmsnorm: bool) -> None:
        super().__init__()
        self.heads = heads
        head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        norm = RMSNorm if rmsnorm else nn.LayerNorm
        self.q_norm = norm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(head_dim) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, width) -> (B, T, width).

        Args:
            x: Tokens.
            rotary: (T, head_dim) cosines and sines, or None for no rotation.
        """
        # (B, T, 3·width) -> (B, T, 3, heads, head_dim) -> (3, B, heads, T, head_dim)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        # Under autocast norms and rotation give float32; attention needs one dtype.
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        # (B, heads, T, head_dim) -> (B, T, heads, head_dim) -> (B, T, width)
        return self.proj(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """w3(silu(a) · b), where a and b are the halves of w12(x) (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        gate, value = self.w12(x).chunk(2, dim=-1)  # (..., 2·hidden) -> two of (..., hidden)
        return self.w3(F.silu(gate) * value)


class MLP(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
