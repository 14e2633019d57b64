"""LightningDiT: a class-conditional diffusion transformer on latents (arXiv 2501.01423)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import unpatchify
from vavae.transformer.blocks import Block, FinalLayer, auxiliary_blocks, check_auxiliary_block
from vavae.transformer.layers import NORM_EPS, LabelEmbedding, PatchEmbedding, RMSNorm, TimeEmbedding
from vavae.transformer.output import TransformerOutput
from vavae.transformer.positions import (
    POSITIONS,
    Positions,
    RotaryEmbedding,
    embedding_of_grid,
    rotary_of_grid,
    tables_of_grid,
)
from vavae.transformer.routing import RoutedNetwork, RoutingConfig
from vavae.transformer.sizes import parse_size

# Upper bounds far above any real network. Without them a number in a damaged file could take all time or memory.
_MOST = {"patch_size": 1024, "latent_channels": 65_536, "width": 65_536, "depth": 1_000, "heads": 4_096}
_STD = 0.02


class LatentGrid:
    """Grids of a configuration with the fields `latent_size` and `patch_size`, which `check_grid` checks."""

    latent_size: int | tuple[int, int]
    patch_size: int

    def check_grid(self) -> None:
        """Raise UserError unless patches divide the latents."""
        if not isinstance(self.latent_size, int) and len(self.latent_size) != 2:
            raise UserError(f"latent_size must be one number or (height, width), got {_short(self.latent_size)}")
        if any(side < 1 or side % self.patch_size for side in self.latent_hw):
            raise UserError(
                f"latent_size must be a multiple of patch_size {self.patch_size}, got {_short(self.latent_size)}"
            )

    @property
    def latent_hw(self) -> tuple[int, int]:
        """Latent (height, width) that the network is trained on."""
        size = self.latent_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens that the network is trained on."""
        height, width = self.latent_hw
        return height // self.patch_size, width // self.patch_size

    @property
    def token_count(self) -> int:
        """Number of tokens, patches and a class token, that the network is trained on."""
        return math.prod(self.grid) + (getattr(self, "class_token", None) is not None)


@dataclass(frozen=True)
class LightningDiTConfig(LatentGrid):
    """Shape of a `LightningDiT`; the defaults are the published XL/1 for VA-VAE f16d32 latents of 256-pixel images.

    Names of the published code, where they differ, are in brackets.

    Attributes:
        latent_size: Latent height and width that the network is trained on: one number, or (height, width)
            (`input_size`).
        patch_size: Side in latent pixels of the square that becomes one token.
        latent_channels: Channels of the latents (`in_channels`).
        width: Channels of a token (`hidden_size`); a multiple of `heads` and of 4.
        depth: Number of blocks.
        heads: Attention heads (`num_heads`); with `rope`, width / heads is a multiple of 4.
        num_classes: Number of classes; label `num_classes` means "no label". 0 for data without labels.
        swiglu: Use a SwiGLU instead of a GELU MLP (`use_swiglu`).
        rope: Rotate queries and keys by position (`use_rope`).
        rmsnorm: Use RMSNorm instead of LayerNorm (`use_rmsnorm`).
        qk_norm: Normalize queries and keys (`use_qknorm`); more stable in long runs, lower quality at equal steps.
        adaln_shift: Condition blocks by shift, scale and gate; without it by scale and gate (`wo_shift` is the
            opposite).
        learn_sigma: Predict a second set of channels, which `forward` drops (weights of the original DiT have it).
        label_dropout: Probability in training that a label is replaced by "no label" (`class_dropout_prob`).
        positions: How to place tokens on a grid other than the trained one: "recompute" or "interpolate"
            (`vavae.transformer.positions` describes both).
        class_token: Channels of a teacher's class token that is denoised along with the latent (REG, arXiv
            2507.01467); None for none.
        auxiliary_block: Number of the block, counted from 1, on whose tokens an auxiliary head predicts the same as the
            network, for internal guidance (arXiv 2605.18324); None for a network without this head.
        routing: Blocks that see a share of the tokens in training (`vavae.transformer.routing`).
    """

    latent_size: int | tuple[int, int] = 16
    patch_size: int = 1
    latent_channels: int = 32
    width: int = 1152
    depth: int = 28
    heads: int = 16
    num_classes: int = 1000
    swiglu: bool = True
    rope: bool = True
    rmsnorm: bool = True
    qk_norm: bool = False
    adaln_shift: bool = True
    learn_sigma: bool = False
    label_dropout: float = 0.1
    positions: Positions = "recompute"
    class_token: int | None = None
    auxiliary_block: int | None = None
    routing: RoutingConfig = field(default_factory=RoutingConfig)

    def __post_init__(self) -> None:
        if isinstance(self.latent_size, list):  # from JSON or YAML; a frozen config must be hashable
            object.__setattr__(self, "latent_size", tuple(self.latent_size))
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name} must be from 1 to {most:,}, got {_short(getattr(self, name))}")
        self.check_grid()
        check_auxiliary_block(self.auxiliary_block, self.depth)
        if self.width % self.heads:
            raise UserError(f"heads must divide width {self.width}, got {self.heads}")
        if self.width % 4:
            raise UserError(f"width must be a multiple of 4 for the position embedding, got {self.width}")
        if self.rope and self.head_dim % 4:
            raise UserError(
                f"rope must be off unless width / heads is a multiple of 4, got {self.width} / {self.heads} = "
                f"{self.head_dim}"
            )
        if not 0 <= self.num_classes <= 10_000_000:
            raise UserError(f"num_classes must be from 0 to 10,000,000, got {_short(self.num_classes)}")
        if self.grid[0] * self.grid[1] > 1_000_000:
            raise UserError(f"latent_size must make at most 1,000,000 tokens, got {_short(self.latent_size)}")
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"label_dropout must be from 0 to 1, got {self.label_dropout}")
        if self.class_token is not None and not 1 <= self.class_token <= _MOST["latent_channels"]:
            raise UserError(
                f"class_token must be from 1 to {_MOST['latent_channels']:,} channels, or null, got "
                f"{_short(self.class_token)}"
            )
        if self.class_token is not None and self.auxiliary_block is not None:
            raise UserError(f"auxiliary_block must be null with a class_token, got {self.auxiliary_block}")
        if self.positions not in POSITIONS:
            raise UserError(f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}")
        self.routing.check(self.depth)
        if self.auxiliary_block is not None:
            self.routing.check_block("auxiliary_block", self.auxiliary_block, self.depth, self.token_count)

    @classmethod
    def from_size(cls, size: str, **changes: Any) -> Self:
        """Return the configuration named `size`, for example "XL/1", with `changes` to single fields.

        Raises:
            UserError: The size or a field does not exist, or a value does not fit.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in changes:
            if name not in known:
                raise UserError(f"options of LightningDiT must be among {', '.join(sorted(known))}, got {name}")
        shape, patch_size = parse_size(size)
        return cls(**{**dataclasses.asdict(shape), "patch_size": patch_size, **changes})

    @property
    def routed_blocks(self) -> tuple[int, int]:
        """Number of blocks before the routed ones, and number of the last routed block."""
        return self.routing.span(self.depth)

    @property
    def summary(self) -> str:
        """Width and depth in words."""
        return f"width {self.width}, depth {self.depth}"

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


def _short(value: object) -> str:
    """Return a value as text of bounded length for a message."""
    return str(value)[:60]


class LightningDiT(RoutedNetwork):
    """Predict the velocity of a noised latent from time and label.

    State-dict names are the published ones. The position tables are buffers: they are saved and loaded, never
    trained. A class token goes in front of the patches, at no position: zeros are added to it, and it is not rotated.

    Args:
        config: The shape; None starts from the defaults of `LightningDiTConfig`.
        settings: Fields of `LightningDiTConfig` to change, for example `depth=12`.

    Attributes:
        from_pretrained: `vavae.checkpoints.networks.read_transformer`; loading that module sets it, and
            `vavae.LightningDiT` loads it.

    Raises:
        UserError: A value does not fit; the message names the field.
    """

    from_pretrained: ClassVar[Callable[..., "LightningDiT"]]
    pos_embed: Tensor

    def __init__(self, config: LightningDiTConfig | None = None, **settings: Any) -> None:
        super().__init__()
        config = LightningDiTConfig(**settings) if config is None else dataclasses.replace(config, **settings)
        self.config = config
        width, channels, token = config.width, config.latent_channels, config.class_token
        self._first = 0 if token is None else 1  # index of the first patch among the tokens
        self.register_buffer("pos_embed", torch.empty(1, config.token_count, width))
        self.x_embedder = PatchEmbedding(config.patch_size, channels, width)
        if token is not None:
            self.cls_projectors2 = nn.Linear(token, width)
            self.wg_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = LabelEmbedding(config.num_classes, width, config.label_dropout)
        self.feat_rope = RotaryEmbedding(config.grid, config.head_dim) if config.rope else None
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                swiglu=config.swiglu,
                rmsnorm=config.rmsnorm,
                qk_norm=config.qk_norm,
                adaln_shift=config.adaln_shift,
            )
            for _ in range(config.depth)
        )
        self.add_routing(config.routing, width)
        out_channels = 2 * channels if config.learn_sigma else channels
        self.final_layer = FinalLayer(width, config.patch_size**2 * out_channels, config.rmsnorm, token)
        if config.auxiliary_block is not None:
            self.auxiliary_head = FinalLayer(width, config.patch_size**2 * channels, config.rmsnorm)
        self.reset_parameters()

    @classmethod
    def from_size(cls, size: str, **changes: Any) -> Self:
        """Return the network named `size`: "S", "B", "L", "XL", "1p0B" or "1p6B", with "/1" or "/2".

        Args:
            size: Size and patch size, for example "XL/1".
            changes: Fields of `LightningDiTConfig` to change.

        Raises:
            UserError: The size or a field does not exist, or a value does not fit.
        """
        return cls(LightningDiTConfig.from_size(size, **changes))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize every parameter as published and fill the position tables.

        Linear layers and the patch embedding are Xavier-uniform with zero bias. Label table and time MLP are
        normal with standard deviation 0.02. All modulations and the output are zero, so that each block starts
        as the identity. Call this again after `to_empty` on a network built on the meta device.
        """
        # Linear layers, the patch embedding and norms
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
            elif isinstance(module, RMSNorm | nn.LayerNorm) and module.weight is not None:
                nn.init.ones_(module.weight)
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)

        # Mask token, labels and times
        self.reset_routing()
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=_STD)
        for linear in self.t_embedder.linears():
            nn.init.normal_(linear.weight, std=_STD)

        # Modulations and output
        heads = [self.final_layer] if self.config.auxiliary_block is None else [self.final_layer, self.auxiliary_head]
        for layer in (*self.blocks, *heads):
            nn.init.zeros_(layer.adaLN_modulation[1].weight)
        for head in heads:
            nn.init.zeros_(head.linear.weight)
        if self.final_layer.linear_cls is not None:
            nn.init.zeros_(self.final_layer.linear_cls.weight)

        # Position tables
        grid, cpu = self.config.grid, torch.device("cpu")
        self.pos_embed[:, : self._first] = 0
        self.pos_embed[:, self._first :] = embedding_of_grid(self.config.width, grid, grid, "recompute", cpu)
        if self.feat_rope is not None:
            self.feat_rope.reset()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        label_drop: Tensor | None = None,
        hidden_blocks: Sequence[int] = (),
        class_token: Tensor | None = None,
        auxiliary: bool = False,
        kept: Tensor | None = None,
        path_drop: Tensor | bool = False,
    ) -> Tensor | TransformerOutput:
        """Return the velocity at x, on request with the tokens after some blocks.

        Args:
            x: (B, latent_channels, h, w) noised latents. h and w are multiples of `patch_size`; they may differ
                from the trained size.
            t: (B,) times in [0, 1]; 0 is noise, 1 is data.
            y: (B,) integer labels in [0, num_classes]; num_classes is "no label".
            label_drop: (B,) bool, True where "no label" replaces the label. None draws it with probability
                `label_dropout` in train mode, and drops nothing in eval mode.
            hidden_blocks: Numbers of blocks, counted from 1 as published.
            class_token: (B, config.class_token) noised class tokens at the same times, if the shape has them.
            auxiliary: Also return the prediction of the auxiliary head, which sees SiLU(time + tokens).
            kept: (B, K) int64, the tokens that the routed blocks process, of which a class token is the first; None is
                all of them, in train mode too.
            path_drop: (B,) bool, True where the routed blocks have no effect; True skips them for all samples.

        Returns:
            (B, latent_channels, h, w) velocity; with `hidden_blocks`, `auxiliary` or a class token, a record of it and
            of these. The first of the hidden tokens is the class token's.

        Raises:
            UserError: The shape of an argument does not fit, the labels are not integers, or a block does not exist,
                or does not see all tokens.
        """
        grid = token_grid(x, self.config.latent_channels, self.config.patch_size)
        check_conditions(len(x), t=t, y=y, label_drop=label_drop)
        embedding, rotary = self._positions(grid, x.device)  # (1, T, width); two of (T, head_dim)
        # (B, C, h, w) -> (B, T, width). The tables are float32 whatever the dtype of the weights.
        tokens = (self.x_embedder(x) + embedding).to(x.dtype)
        tokens, rotary = self._with_class_token(class_token, tokens, rotary)
        time = self.t_embedder(t)[:, None]
        condition = time + self.y_embedder(y, label_drop)[:, None]  # (B, 1, width)
        early = auxiliary_blocks(self.config.auxiliary_block, auxiliary)
        tokens, hidden = self.run_routed_blocks(
            self.blocks, tokens, condition, rotary, (*hidden_blocks, *early), kept, path_drop
        )
        last = self.final_layer
        tokens = last.modulated(tokens, condition)
        # (B, T, width) -> (B, T, p·p·C) -> (B, C, h, w)
        velocity = unpatchify(last.linear(tokens[:, self._first :]), self.config.patch_size, grid)
        velocity = velocity[:, : self.config.latent_channels]
        if not hidden_blocks and not auxiliary and last.linear_cls is None:
            return velocity
        early_velocity = token_velocity = None
        if auxiliary:
            patches = self.auxiliary_head(F.silu(time + hidden[early[0]]), condition)
            early_velocity = unpatchify(patches, self.config.patch_size, grid)
        if last.linear_cls is not None:
            token_velocity = last.linear_cls(tokens[:, 0])
        asked = tuple(hidden[number] for number in hidden_blocks)
        return TransformerOutput(velocity, asked, early_velocity, token_velocity)

    def _with_class_token(
        self, class_token: Tensor | None, tokens: Tensor, rotary: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Put the class token in front of the tokens (B, T, width), and its rotation, by no angle, of the tables."""
        channels = self.config.class_token
        wanted = None if channels is None else (len(tokens), channels)
        given = None if class_token is None else tuple(class_token.shape)
        if given != wanted:
            raise UserError(f"class_token must be {wanted and f'a tensor of shape {wanted}'}, got {given}")
        if class_token is None:
            return tokens, rotary
        first = self.wg_norm(self.cls_projectors2(class_token))[:, None].to(tokens.dtype)  # (B, 1, width)
        if rotary is not None:
            cos, sin = rotary
            rotary = F.pad(cos, (0, 0, 1, 0), value=1.0), F.pad(sin, (0, 0, 1, 0))
        return torch.cat((first, tokens), dim=1), rotary

    def _positions(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return the position embedding (1, T, width) and the rotary tables (T, head_dim) of a grid."""
        config = self.config
        if grid == config.grid:
            rope = self.feat_rope
            return self.pos_embed[:, self._first :], None if rope is None else (rope.freqs_cos, rope.freqs_sin)
        placing = (grid, config.grid, config.positions, device)
        if torch.compiler.is_compiling():
            # A compiled graph cannot use a cache. Computing the tables in the graph costs a few small kernels.
            embedding = embedding_of_grid(config.width, *placing)
            return embedding, rotary_of_grid(config.head_dim, *placing) if config.rope else None
        return tables_of_grid(config.width, config.head_dim if config.rope else None, *placing)


def token_grid(x: Tensor, channels: int, patch: int) -> tuple[int, int]:
    """Return rows and columns of the tokens of latents x (B, channels, h, w).

    Raises:
        UserError: The shape does not fit.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise UserError(f"x must have shape (B, {channels}, h, w), got {tuple(x.shape)}")
    if x.shape[2] % patch or x.shape[3] % patch:
        raise UserError(f"x must have sides that are multiples of {patch}, got {x.shape[2]} x {x.shape[3]}")
    return x.shape[2] // patch, x.shape[3] // patch


def check_conditions(batch: int, **conditions: Tensor | None) -> None:
    """Raise UserError unless every condition has one value per sample; torch would broadcast a single value."""
    for name, value in conditions.items():
        if value is not None and getattr(value, "shape", None) != (batch,):
            given = getattr(value, "shape", value)
            raise UserError(f"{name} must be a tensor of shape ({batch},), one value per sample, got {given}")
    labels = conditions["y"]
    if labels is not None and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise UserError(f"y must hold integer labels, got {labels.dtype}")
