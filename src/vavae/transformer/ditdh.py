"""DiT^DH: a diffusion transformer with a short, wide head for latents of many channels (RAE, arXiv 2510.11690).

A velocity model that is narrower than its latents cannot learn them. Here only the last blocks, the head, are wider
than the latents: the encoder's tokens modulate the head's norms, token by token.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import to_grid, to_tokens, unpatchify
from vavae.transformer.blocks import Block, FinalLayer, auxiliary_blocks, check_auxiliary_block, run_blocks
from vavae.transformer.layers import FourierTimeEmbedding, LabelEmbedding, PatchEmbedding, RMSNorm
from vavae.transformer.model import LatentGrid, check_conditions, token_grid
from vavae.transformer.output import TransformerOutput
from vavae.transformer.positions import RotaryEmbedding, embedding_of_grid, rotary_of_grid
from vavae.transformer.routing import RoutedNetwork, RoutingConfig

_STD = 0.02


@dataclass(frozen=True)
class DiTDHConfig(LatentGrid):
    """Shape of a `DiTDH`; the defaults are the published XL for DINOv2-B latents of 256-pixel images.

    `LightningDiTConfig` explains the fields. Pairs are (encoder, head); `widths` are multiples of their `heads` and of
    4. The auxiliary block and the routed blocks are blocks of the encoder.
    """

    latent_size: int | tuple[int, int] = 16
    patch_size: int = 1
    latent_channels: int = 768
    widths: tuple[int, int] = (1152, 2048)
    depths: tuple[int, int] = (28, 2)
    heads: tuple[int, int] = (16, 16)
    num_classes: int = 1000
    swiglu: bool = True
    rope: bool = True
    rmsnorm: bool = True
    qk_norm: bool = False
    label_dropout: float = 0.1
    class_token: ClassVar[None] = None  # LightningDiT alone has one
    auxiliary_block: int | None = None
    routing: RoutingConfig = field(default_factory=RoutingConfig)

    def __post_init__(self) -> None:
        for name in ("latent_size", "widths", "depths", "heads"):
            if isinstance(value := getattr(self, name), list):  # from JSON or YAML; a frozen config must be hashable
                object.__setattr__(self, name, tuple(value))
        for name in ("widths", "depths", "heads"):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(1 <= value <= 65_536 for value in pair):
                raise UserError(f"{name} must be (encoder, head), each from 1 to 65,536, got {str(pair)[:60]}")
        self.check_grid()
        check_auxiliary_block(self.auxiliary_block, self.depths[0])
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads or width % 4 or (self.rope and width // heads % 4):
                raise UserError(
                    "widths must be multiples of 4 and of their heads, and with rope width / heads a multiple of 4, "
                    f"got {width} with {heads} heads"
                )
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"label_dropout must be from 0 to 1, got {self.label_dropout}")
        self.routing.check(self.depths[0])
        if self.auxiliary_block is not None:
            self.routing.check_block("auxiliary_block", self.auxiliary_block, self.depths[0], self.token_count)

    @property
    def routed_blocks(self) -> tuple[int, int]:
        """Number of blocks before the routed ones, and number of the last routed block."""
        return self.routing.span(self.depths[0])

    @property
    def summary(self) -> str:
        """Widths and depths of encoder and head in words."""
        return "width {} + {}, depth {} + {}".format(*self.widths, *self.depths)

    @classmethod
    def from_size(cls, size: str, **changes: Any) -> Self:
        """Return the configuration named `size`, "S", "XL", "DiTDH-S" or "DiTDH-XL", with `changes` to single fields.

        Raises:
            UserError: The size does not exist, or a value does not fit.
        """
        if size.removeprefix(PREFIX) not in SIZES:
            raise UserError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        return cls(**{**SIZES[size.removeprefix(PREFIX)], **changes})


PREFIX = "DiTDH-"
SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "S": {"widths": (384, 2048), "depths": (12, 2), "heads": (6, 16)},
    "XL": {"widths": (1152, 2048), "depths": (28, 2), "heads": (16, 16)},
}


class DiTDH(RoutedNetwork):
    """Predict the velocity of a noised latent from time and label, with a wide head.

    State-dict names and weights are the published ones. The published network takes τ = 1 − t and returns noise − data;
    `forward` converts both.

    Args:
        config: The shape; None starts from the defaults of `DiTDHConfig`.
        settings: Fields of `DiTDHConfig` to change, for example `latent_channels=384`.

    Attributes:
        from_pretrained: `vavae.checkpoints.networks.read_transformer`; loading that module sets it, and `vavae.DiTDH`
            loads it.

    Raises:
        UserError: A value does not fit; the message names the field.
    """

    from_pretrained: ClassVar[Callable[..., "DiTDH"]]

    def __init__(self, config: DiTDHConfig | None = None, **settings: Any) -> None:
        super().__init__()
        config = DiTDHConfig(**settings) if config is None else dataclasses.replace(config, **settings)
        self.config = config
        (narrow, wide), channels, patch = config.widths, config.latent_channels, config.patch_size
        # The published training trains the position table too.
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(config.grid), narrow))
        self.s_embedder = PatchEmbedding(patch, channels, narrow)
        self.x_embedder = PatchEmbedding(patch, channels, wide)
        self.s_projector = nn.Linear(narrow, wide) if narrow != wide else nn.Identity()
        self.t_embedder = FourierTimeEmbedding(narrow)
        self.y_embedder = LabelEmbedding(config.num_classes, narrow, config.label_dropout)
        head_dims = [width // heads for width, heads in zip(config.widths, config.heads, strict=True)]
        self.enc_feat_rope = RotaryEmbedding(config.grid, head_dims[0]) if config.rope else None
        self.dec_feat_rope = RotaryEmbedding(config.grid, head_dims[1]) if config.rope else None
        self.blocks = nn.ModuleList(
            Block(
                config.widths[part],
                config.heads[part],
                swiglu=config.swiglu,
                rmsnorm=config.rmsnorm,
                qk_norm=config.qk_norm,
                adaln_shift=True,
            )
            for part in (0, 1)
            for _ in range(config.depths[part])
        )
        self.add_routing(config.routing, narrow)
        self.final_layer = FinalLayer(wide, patch**2 * channels, config.rmsnorm)
        if config.auxiliary_block is not None:
            self.auxiliary_head = FinalLayer(narrow, patch**2 * channels, config.rmsnorm)
        self.reset_parameters()

    @classmethod
    def from_size(cls, size: str, **changes: Any) -> Self:
        """Return the network named `size`, "S" or "XL", with `changes` to fields of `DiTDHConfig`.

        Raises:
            UserError: The size does not exist, or a value does not fit.
        """
        return cls(DiTDHConfig.from_size(size, **changes))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize every parameter as published and fill the position tables.

        Patch embeddings are Xavier-uniform with zero bias. Label table and weights of the time MLP are normal with
        standard deviation 0.02, time frequencies standard normal. Modulations and output are zero. Everything else
        keeps torch's default.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        for embedder in (self.s_embedder, self.x_embedder):
            nn.init.xavier_uniform_(embedder.proj.weight.flatten(1))
            nn.init.zeros_(embedder.proj.bias)  # type: ignore[arg-type] # a convolution with a bias
        self.reset_routing()
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=_STD)
        nn.init.normal_(self.t_embedder.W)
        for linear in self.t_embedder.linears():
            nn.init.normal_(linear.weight, std=_STD)
        heads = [self.final_layer] if self.config.auxiliary_block is None else [self.final_layer, self.auxiliary_head]
        for layer in (*(block.adaLN_modulation[1] for block in (*self.blocks, *heads)), *(h.linear for h in heads)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        grid = self.config.grid
        self.pos_embed.copy_(embedding_of_grid(self.config.widths[0], grid, grid, "recompute", torch.device("cpu")))
        for rope in (self.enc_feat_rope, self.dec_feat_rope):
            if rope is not None:
                rope.reset()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        label_drop: Tensor | None = None,
        hidden_blocks: Sequence[int] = (),
        auxiliary: bool = False,
        kept: Tensor | None = None,
        path_drop: Tensor | bool = False,
    ) -> Tensor | TransformerOutput:
        """Return the velocity at x, on request with the tokens after some blocks, as `LightningDiT.forward` does.

        It has the same arguments and errors, without the class token. Hidden and routed blocks are blocks of the
        encoder, so hidden tokens are (B, T, widths[0]). On another grid than the trained one the position table is
        resized (bilinear).
        """
        grid = token_grid(x, self.config.latent_channels, self.config.patch_size)
        check_conditions(len(x), t=t, y=y, label_drop=label_drop)
        position, rotary = self._positions(grid)
        time = self.t_embedder(1 - t)[:, None]  # (B, 1, narrow)
        condition = F.silu(time + self.y_embedder(y, label_drop)[:, None])  # each block applies SiLU once more
        # Encoder: (B, C, h, w) -> (B, T, narrow)
        tokens = (self.s_embedder(x) + position).to(x.dtype)
        narrow, early = self.config.depths[0], auxiliary_blocks(self.config.auxiliary_block, auxiliary)
        tokens, hidden = self.run_routed_blocks(
            self.blocks[:narrow], tokens, condition, rotary[0], (*hidden_blocks, *early), kept, path_drop
        )
        # Head: its condition is the encoder's output, one per token; its tokens have no absolute position.
        wide_condition = self.s_projector(F.silu(tokens + time))  # (B, T, wide)
        tokens, _ = run_blocks(self.blocks[narrow:], self.x_embedder(x).to(x.dtype), wide_condition, rotary[1])
        # (B, T, wide) -> (B, T, p·p·C) -> (B, C, h, w); the published sign is noise − data
        velocity = -unpatchify(self.final_layer(tokens, wide_condition), self.config.patch_size, grid)
        if not hidden_blocks and not auxiliary:
            return velocity
        early_velocity = None
        if auxiliary:
            patches = self.auxiliary_head(F.silu(time + hidden[early[0]]), condition)
            early_velocity = -unpatchify(patches, self.config.patch_size, grid)
        return TransformerOutput(velocity, tuple(hidden[number] for number in hidden_blocks), early_velocity)

    def _positions(self, grid: tuple[int, int]) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        """Return the position table (1, T, narrow) of a grid, and the rotary tables of encoder and head."""
        ropes = (self.enc_feat_rope, self.dec_feat_rope)
        if grid == self.config.grid:
            return self.pos_embed, [None if rope is None else (rope.freqs_cos, rope.freqs_sin) for rope in ropes]
        trained = to_grid(self.pos_embed, self.config.grid)
        table = to_tokens(F.interpolate(trained, grid, mode="bilinear", align_corners=False))
        return table, [
            None if rope is None else rotary_of_grid(rope.head_dim, grid, self.config.grid, "recompute", table.device)
            for rope in ropes
        ]
