"""ViT decoder: a frozen encoder's grid of features -> pixels (RAE, arXiv 2510.11690; the decoder of MAE)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import sincos_embedding, to_grid, to_tokens, unpatchify

_EPS = 1e-12
SIZES = {
    "B": {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
    "L": {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096},
    "XL": {"width": 1152, "depth": 28, "heads": 16, "mlp_width": 4096},
}


class _Attention(nn.Module):
    """Multi-head self-attention with the names of ViT-MAE in transformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        # three of (B, T, width) -> (B, heads, T, head_dim)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in self.attention.values())
        # (B, heads, T, head_dim) -> (B, T, width)
        return self.output["dense"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """Pre-norm transformer layer with exact GELU."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, mlp_width)})
        self.output = nn.ModuleDict({"dense": nn.Linear(mlp_width, width)})
        self.layernorm_before = nn.LayerNorm(width, eps=_EPS)
        self.layernorm_after = nn.LayerNorm(width, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(x))))


class ViTDecoder(nn.Module):
    """Decode latents (B, C, h, w) to images (B, 3, h·p, w·p) in the encoder's normalized pixels.

    State-dict names are the published ones. `shape` holds width, depth, heads and mlp_width.

    Args:
        latent_channels: C, the width of the encoder's features.
        grid: Rows and columns of latents, one number or a pair. Another grid is resized to this one after the
            embedding, so that images keep their size, as published.
        patch_size: p, side in pixels of the square that a latent becomes.
        width: Channels of a token (`decoder_hidden_size`), a multiple of `heads` and of 4.
        depth: Number of layers (`decoder_num_hidden_layers`).
        heads: Attention heads (`decoder_num_attention_heads`).
        mlp_width: Hidden channels of the MLPs (`decoder_intermediate_size`).

    Raises:
        UserError: A number is out of range, or `width` is not a multiple of `heads` and 4.
    """

    def __init__(
        self,
        latent_channels: int = 768,
        grid: int | tuple[int, int] = 16,
        patch_size: int = 16,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        mlp_width: int = 4096,
    ) -> None:
        super().__init__()
        self.grid = (grid, grid) if isinstance(grid, int) else (grid[0], grid[1])
        self.patch_size = patch_size
        self.shape = {"width": width, "depth": depth, "heads": heads, "mlp_width": mlp_width}
        others = {"latent_channels": latent_channels, "grid": min(self.grid), "patch_size": patch_size}
        for name, number in {**self.shape, **others}.items():
            if not 1 <= number <= 65_536:
                raise UserError(f"{name} must be from 1 to 65,536, got {number:,}")
        if width % heads or width % 4:
            raise UserError(f"width must be a multiple of heads {heads} and of 4, got {width}")
        self.decoder_embed = nn.Linear(latent_channels, width)
        self.trainable_cls_token = nn.Parameter(torch.empty(1, 1, width))
        # The published training trains the table too.
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], width))
        self.decoder_layers = nn.ModuleList(_Layer(width, heads, mlp_width) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=_EPS)
        self.decoder_pred = nn.Linear(width, patch_size**2 * 3)
        self.reset_parameters()

    @classmethod
    def from_size(cls, size: str, **changes: int) -> "ViTDecoder":
        """Return the decoder named `size`, "B", "L" or "XL", with `changes` to single arguments.

        Raises:
            UserError: The size does not exist.
        """
        if size not in SIZES:
            raise UserError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        return cls(**{**SIZES[size], **changes})

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize as ViT-MAE: linear layers normal with standard deviation 0.02, sine-cosine positions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.zeros_(self.trainable_cls_token)
        rows, columns = (torch.arange(size, dtype=torch.float64) for size in self.grid)
        nn.init.zeros_(self.decoder_pos_embed)  # the class token has no position
        self.decoder_pos_embed[0, 1:].copy_(sincos_embedding(self.decoder_pos_embed.shape[2], rows, columns))

    @property
    def latent_channels(self) -> int:
        """C, channels of the latents."""
        return self.decoder_embed.in_features

    @property
    def summary(self) -> str:
        """The shape in words."""
        shape = ", ".join(f"{name} {number}" for name, number in self.shape.items())
        return f"decoder of {self.latent_channels} channels, {shape}"

    def forward(self, latents: Tensor) -> Tensor:
        """Return images of latents; see `features`."""
        patches = self.decoder_pred(self.features(latents))  # (B, T, p·p·3); a patch is row, column, color
        return unpatchify(patches, self.patch_size, self.grid)

    def features(self, latents: Tensor) -> Tensor:
        """Return the input of the last layer, (B, T, width).

        Raises:
            UserError: The latents have another number of channels.
        """
        channels = self.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise UserError(f"latents must have shape (B, {channels}, h, w), got {tuple(latents.shape)}")
        tokens = self.decoder_embed(to_tokens(latents))  # (B, C, h, w) -> (B, h·w, width)
        if latents.shape[2:] != self.grid:
            embedded = to_grid(tokens, (latents.shape[2], latents.shape[3]))
            tokens = to_tokens(F.interpolate(embedded, self.grid, mode="bilinear", align_corners=False))
        tokens = torch.cat((self.trainable_cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        tokens = tokens + self.decoder_pos_embed
        for layer in self.decoder_layers:
            tokens = layer(tokens)
        return self.decoder_norm(tokens)[:, 1:]
