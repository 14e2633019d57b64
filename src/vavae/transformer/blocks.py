"""Transformer blocks conditioned on time and label through their norms (adaLN-Zero, arXiv 2212.09748)."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from vavae.errors import UserError
from vavae.transformer.layers import MLP, Attention, SwiGLU, block_norm

_MLP_RATIO = 4


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """Return x·(1 + scale) + shift for x (B, T, D); scale and shift are (B, 1, D), or (B, T, D)."""
    x = x * (1 + scale)
    return x if shift is None else x + shift


def conditioning(width: int, chunks: int) -> nn.Sequential:
    """Return SiLU and a linear map from the condition to `chunks` modulations of `width` channels each."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, chunks * width))


class Block(nn.Module):
    """Attention and MLP; each is normalized, modulated, and gated into the residual stream.

    Args:
        width: Channels of a token.
        heads: Attention heads.
        swiglu: Use a SwiGLU with 2/3 · 4 · width hidden channels instead of a GELU MLP with 4 · width. As
            published, the number is not rounded to a multiple of 8.
        rmsnorm: Use RMSNorm instead of LayerNorm.
        qk_norm: Normalize queries and keys.
        adaln_shift: Condition by shift, scale and gate; without it by scale and gate.
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
        """(B, T, width) tokens; (B, 1, width) condition, or one per token (B, T, width) -> (B, T, width)."""
        modulation = self.adaLN_modulation(condition)  # (B, 1 or T, 6·width), or 4·width
        shift1: Tensor | None = None
        shift2: Tensor | None = None
        if self.adaln_shift:  # each (B, 1, width)
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        else:
            scale1, gate1, scale2, gate2 = modulation.chunk(4, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rotary)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


def run_blocks(
    blocks: Iterable[nn.Module],
    tokens: Tensor,
    condition: Tensor,
    rotary: tuple[Tensor, Tensor] | None,
    hidden_blocks: Sequence[int] = (),
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the tokens (B, T, width) after all blocks, and those after each of `hidden_blocks` by its number."""
    hidden: dict[int, Tensor] = {}
    for number, block in enumerate(blocks, 1):
        tokens = block(tokens, condition, rotary)
        if number in hidden_blocks:
            hidden[number] = tokens
    return tokens, hidden


def check_auxiliary_block(block: int | None, depth: int) -> None:
    """Raise UserError unless the block of the auxiliary head is None or from 1 to `depth`."""
    if block is not None and not 1 <= block <= depth:
        raise UserError(f"auxiliary_block must be null or from 1 to {depth}, the number of blocks, got {block}")


def auxiliary_blocks(block: int | None, asked: bool) -> tuple[int, ...]:
    """Return the block whose tokens the auxiliary head needs; () unless its prediction is asked for.

    Raises:
        UserError: The transformer has no auxiliary head.
    """
    if not asked:
        return ()
    if block is None:
        raise UserError("auxiliary must be False for a transformer without an auxiliary head (auxiliary_block)")
    return (block,)


class FinalLayer(nn.Module):
    """Norm, modulation by shift and scale, and a linear map from tokens to patches.

    With `class_token` channels, `linear_cls` maps the class token, which is the first of the modulated tokens.
    """

    def __init__(self, width: int, patch_channels: int, rmsnorm: bool, class_token: int | None = None) -> None:
        super().__init__()
        self.norm_final = block_norm(width, rmsnorm)
        self.linear = nn.Linear(width, patch_channels)
        self.linear_cls = None if class_token is None else nn.Linear(width, class_token)
        self.adaLN_modulation = conditioning(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, T, width) tokens; (B, 1, width) condition, or one per token (B, T, width) -> (B, T, patch_channels)."""
        return self.linear(self.modulated(x, condition))

    def modulated(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the tokens (B, T, width) before the linear map."""
        # (B, 1 or T, 2·width) -> two of (B, 1 or T, width)
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return modulate(self.norm_final(x), shift, scale)
