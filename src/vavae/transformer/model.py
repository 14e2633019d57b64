"""LightningDiT: a class-conditional diffusion transformer on latents (arXiv 2501.01423)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vavae.errors import UserError
from vavae.transformer.blocks import Block, FinalLayer
from vavae.transformer.layers import LabelEmbedding, PatchEmbedding, RMSNorm, TimeEmbedding, unpatchify
from vavae.transformer.positions import (
    POSITIONS,
    Positions,
    RotaryEmbedding,
    embedding_of_grid,
    rotary_of_grid,
    tables_of_grid,
)
from vavae.transformer.sizes import parse_size

ActivationCheckpointing = Literal["none", "full"]
# No network comes near these; numbers in a damaged file do, and would take all time or memory.
_MOST = {"patch_size": 1024, "latent_channels": 65_536, "width": 65_536, "depth": 1_000, "heads": 4_096}
_STD = 0.02


@dataclass(frozen=True)
class LightningDiTConfig:
    """The shape of a LightningDiT; the defaults are the published XL/1 on VA-VAE f16d32 latents at 256 px.

    Attributes:
        latent_size: Latent height and width the network is trained on: one number, or (height, width).
        patch_size: Side of the square of latent pixels that makes one token.
        latent_channels: Channels of the latents.
        width: Channels of a token; divisible by `heads`, and by 4.
        depth: Number of blocks.
        heads: Attention heads; with `rope` width / heads must be divisible by 4.
        num_classes: Classes; label `num_classes` means "no label". 0 for data without labels.
        swiglu: SwiGLU instead of a GELU MLP.
        rope: Rotate queries and keys by position.
        rmsnorm: RMSNorm instead of LayerNorm.
        qk_norm: Norm queries and keys; steadier in long runs, lower quality at equal steps.
        adaln_shift: Blocks are conditioned by scale, shift and gate; without it, by scale and gate.
        learn_sigma: Predict a second set of channels, which the forward drops (weights of the original DiT).
        label_dropout: Probability, in training, that a label is replaced by "no label".
        positions: Where a grid other than the trained one stands: "recompute" or "interpolate"
            (`vavae.transformer.positions` says which is for what).
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

    def __post_init__(self) -> None:
        if isinstance(self.latent_size, list):  # as read from JSON or YAML
            object.__setattr__(self, "latent_size", tuple(self.latent_size))
        for name, most in _MOST.items():
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not a positive number")
            if getattr(self, name) > most:
                raise UserError(f"{name}: must be at most {most:,}, got {str(getattr(self, name))[:20]}")
        if any(side < 1 or side % self.patch_size for side in self.latent_hw):
            raise UserError(f"latent_size: {self.latent_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise UserError(f"heads: {self.heads} does not divide width {self.width}")
        if self.width % 4:
            raise UserError(f"width: {self.width} is not divisible by 4, as the position embedding needs")
        if self.rope and self.head_dim % 4:
            raise UserError(
                f"rope: needs width / heads divisible by 4, not {self.width} / {self.heads} = {self.head_dim}"
            )
        if self.num_classes < 0:
            raise UserError(f"num_classes: {self.num_classes} is negative")
        if self.num_classes > 10_000_000:
            raise UserError(f"num_classes: must be at most 10,000,000, got {str(self.num_classes)[:20]}")
        if self.grid[0] * self.grid[1] > 1_000_000:
            raise UserError(f"latent_size: must make at most 1,000,000 tokens, got {str(self.latent_size)[:60]}")
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"label_dropout: {self.label_dropout} is not a probability")
        if self.positions not in POSITIONS:
            raise UserError(f"positions: {self.positions!r} is not one of {', '.join(POSITIONS)}")

    @classmethod
    def from_size(cls, size: str, **changes: Any) -> Self:
        """The configuration named `size`, such as "XL/1", with `changes` to single fields.

        Raises:
            UserError: No such size, no such field, or a value that does not fit.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in changes:
            if name not in known:
                raise UserError(f"{name}: not an option of LightningDiT; there are {', '.join(sorted(known))}")
        shape, patch_size = parse_size(size)
        return cls(**{**dataclasses.asdict(shape), "patch_size": patch_size, **changes})

    @property
    def latent_hw(self) -> tuple[int, int]:
        """Latent (height, width) the network is trained on."""
        size = self.latent_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens the network is trained on."""
        height, width = self.latent_hw
        return height // self.patch_size, width // self.patch_size

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


class LightningDiT(nn.Module):
    """Predicts the velocity of a noised latent from time and label.

    The arguments are the fields of `LightningDiTConfig`, which explains them. State-dict names are the
    published ones. The position tables are buffers: they are saved and loaded, never trained.

    Attributes:
        from_pretrained: `vavae.checkpoints.networks.read_transformer`; loading that module sets it, and
            `vavae.LightningDiT` loads it.

    Raises:
        UserError: A value that does not fit, naming the field.
    """

    from_pretrained: ClassVar[Callable[..., "LightningDiT"]]
    pos_embed: Tensor

    def __init__(
        self,
        latent_size: int | tuple[int, int] = 16,
        patch_size: int = 1,
        latent_channels: int = 32,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        num_classes: int = 1000,
        swiglu: bool = True,
        rope: bool = True,
        rmsnorm: bool = True,
        qk_norm: bool = False,
        adaln_shift: bool = True,
        learn_sigma: bool = False,
        label_dropout: float = 0.1,
        positions: Positions = "recompute",
    ) -> None:
        super().__init__()
        self.config = config = LightningDiTConfig(
            latent_size=latent_size,
            patch_size=patch_size,
            latent_channels=latent_channels,
            width=width,
            depth=depth,
            heads=heads,
            num_classes=num_classes,
            swiglu=swiglu,
            rope=rope,
            rmsnorm=rmsnorm,
            qk_norm=qk_norm,
            adaln_shift=adaln_shift,
            learn_sigma=learn_sigma,
            label_dropout=label_dropout,
            positions=positions,
        )
        self.checkpointing: ActivationCheckpointing = "none"
        self.register_buffer("pos_embed", torch.empty(1, config.grid[0] * config.grid[1], width))
        self.x_embedder = PatchEmbedding(patch_size, latent_channels, width)
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = LabelEmbedding(num_classes, width, label_dropout)
        self.feat_rope = RotaryEmbedding(config.grid, config.head_dim) if rope else None
        self.blocks = nn.ModuleList(
            Block(width, heads, swiglu=swiglu, rmsnorm=rmsnorm, qk_norm=qk_norm, adaln_shift=adaln_shift)
            for _ in range(depth)
        )
        out_channels = 2 * latent_channels if learn_sigma else latent_channels
        self.final_layer = FinalLayer(width, patch_size**2 * out_channels, rmsnorm)
        self.reset_parameters()

    @classmethod
    def from_config(cls, config: LightningDiTConfig) -> Self:
        """The network of a configuration, freshly initialised."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})

    @classmethod
    def from_size(cls, size: str, **changes: Any) -> Self:
        """The network named `size` ("S", "B", "L", "XL", "1p0B" or "1p6B" with "/1" or "/2"), with `changes`.

        Raises:
            UserError: No such size, no such argument, or a value that does not fit.
        """
        return cls.from_config(LightningDiTConfig.from_size(size, **changes))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every parameter as published and fill the position tables.

        Linear layers and the patch embedding are Xavier-uniform with zero bias; label table and time MLP
        normal with deviation 0.02; all modulations and the output zero, so that blocks start as identities.
        Call it again after `to_empty`, when the network was built on the meta device.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
            elif isinstance(module, RMSNorm | nn.LayerNorm) and module.weight is not None:
                nn.init.ones_(module.weight)
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                nn.init.zeros_(bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=_STD)
        for linear in self.t_embedder.linears():
            nn.init.normal_(linear.weight, std=_STD)
        for layer in (*self.blocks, self.final_layer):
            nn.init.zeros_(layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        grid, cpu = self.config.grid, torch.device("cpu")
        self.pos_embed.copy_(embedding_of_grid(self.config.width, grid, grid, "recompute", cpu))
        if self.feat_rope is not None:
            self.feat_rope.reset()

    def set_activation_checkpointing(self, mode: ActivationCheckpointing) -> None:
        """Choose what training keeps for the backward pass.

        Args:
            mode: "none" keeps all activations; "full" keeps the input of each block and computes the block
                again, for about a third more computation.

        Raises:
            UserError: No such mode.
        """
        if mode not in get_args(ActivationCheckpointing):
            modes = ", ".join(get_args(ActivationCheckpointing))
            raise UserError(f"activation checkpointing: {mode!r} is not one of {modes}")
        self.checkpointing = mode

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, label_drop: Tensor | None = None) -> Tensor:
        """Velocity at x.

        Args:
            x: (B, latent_channels, h, w) noised latents; `patch_size` divides h and w, which need not be the
                sizes trained on.
            t: (B,) times in [0, 1]; 0 is noise, 1 is data.
            y: (B,) integer labels in [0, num_classes]; num_classes is "no label".
            label_drop: (B,) bool, which labels to replace by "no label". None draws them with probability
                `label_dropout` in train mode and drops none in eval mode.

        Returns:
            (B, latent_channels, h, w).

        Raises:
            ValueError: x has other channels, or sides that `patch_size` does not divide.
        """
        grid = self._grid_of(x)
        embedding, rotary = self._positions(grid, x.device)
        tokens = (self.x_embedder(x) + embedding).to(x.dtype)  # the tables are float32 whatever the weights are
        condition = self.t_embedder(t) + self.y_embedder(y, label_drop)
        recompute = self.checkpointing == "full" and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute:
                tokens = checkpoint(block, tokens, condition, rotary, use_reentrant=False)
            else:
                tokens = block(tokens, condition, rotary)
        velocity = unpatchify(self.final_layer(tokens, condition), self.config.patch_size, grid)
        return velocity[:, : self.config.latent_channels]

    def _grid_of(self, x: Tensor) -> tuple[int, int]:
        channels, patch = self.config.latent_channels, self.config.patch_size
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"x: expected (B, {channels}, h, w), got {tuple(x.shape)}")
        if x.shape[2] % patch or x.shape[3] % patch:
            raise ValueError(f"x: {x.shape[2]}x{x.shape[3]} is not divisible by patch size {patch}")
        return x.shape[2] // patch, x.shape[3] // patch

    def _positions(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Position embedding (1, T, width) and rotary tables (T, head_dim) of a grid."""
        config = self.config
        if grid == config.grid:
            rope = self.feat_rope
            return self.pos_embed, None if rope is None else (rope.freqs_cos, rope.freqs_sin)
        placing = (grid, config.grid, config.positions, device)
        if torch.compiler.is_compiling():
            # In the graph, where it works for any number of grids and costs a few small kernels: a compiled
            # graph cannot look into a cache.
            embedding = embedding_of_grid(config.width, *placing)
            return embedding, rotary_of_grid(config.head_dim, *placing) if config.rope else None
        return tables_of_grid(config.width, config.head_dim if config.rope else None, *placing)
