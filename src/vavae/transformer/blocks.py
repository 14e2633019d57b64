"""Transformer blocks whose norms are steered by time and label (adaLN-Zero, arXiv 2212.09748)."""

from torch import Tensor, nn

from vavae.transformer.layers import MLP, Attention, SwiGLU, block_norm

_MLP_RATIO = 4


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift, for x (B, T, D) and the others (B, 1, D)."""
    x = x * (1 + scale)
    return x if shift is None else x + shift


def conditioning(width: int, chunks: int) -> nn.Sequential:
    """SiLU and a linear map from the condition to `chunks` modulations of `width` channels each."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, chunks * width))


class Block(nn.Module):
    """Attention and MLP, each normed, modulated, and gated into the residual stream.

    Args:
        width: Channels of a token.
        heads: Attention heads.
        swiglu: SwiGLU of 2/3 · 4 · width hidden channels, as published not rounded to a multiple of 8,
            instead of a GELU MLP of 4 · width.
        rmsnorm: RMSNorm instead of LayerNorm.
        qk_norm: Norm queries and keys.
        adaln_shift: Condition by scale, shift and gate; without it, by scale and gate.
    """

    def __init__(
        self, width: int, heads: int, *, swiglu: bool, rmsnorm: bool, qk_norm: bool, adaln_shift: bool
    ) -> None:
        super().__init__()
        self.adaln_shift = adaln_shift
        hidden = _MLP_RATIO * width
        self.norm1 = block_norm(width, rmsnorm)
        self.norm2 = block_norm(width, rmsnorm)
        self.attn = Attention(width, heads, qk_norm, rmsnorm)
        self.mlp = SwiGLU(width, 2 * hidden // 3) if swiglu else MLP(width, hidden)
        self.adaLN_modulation = conditioning(width, 6 if adaln_shift else 4)

    def forward(self, x: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, width) tokens, (B, width) condition -> (B, T, width)."""
        modulation = self.adaLN_modulation(condition)[:, None]
        shift1: Tensor | None = None
        shift2: Tensor | None = None
        if self.adaln_shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        else:
            scale1, gate1, scale2, gate2 = modulation.chunk(4, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rotary)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Norm, modulation (always with a shift) and a linear map from tokens to patches."""

    def __init__(self, width: int, patch_channels: int, rmsnorm: bool) -> None:
        super().__init__()
        self.norm_final = block_norm(width, rmsnorm)
        self.linear = nn.Linear(width, patch_channels)
        self.adaLN_modulation = conditioning(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, T, width) tokens, (B, width) condition -> (B, T, patch_channels)."""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))
