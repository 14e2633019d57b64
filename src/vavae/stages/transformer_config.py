"""The shape of the transformer in a recipe."""

from collections.abc import Container
from dataclasses import dataclass, field, fields
from typing import Any

from vavae.config.image_size import Size
from vavae.errors import UserError
from vavae.models import SamplingConfig
from vavae.training.activation_checkpointing import Recomputation
from vavae.transformer import DiTDHConfig, LightningDiTConfig, TransformerShape
from vavae.transformer.ditdh import PREFIX, SIZES
from vavae.transformer.routing import RoutingConfig
from vavae.transformer.sizes import parse_size, size_names


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the transformer: settings of `LightningDiTConfig` or `DiTDHConfig`, which declare their defaults.

    The latents give latent size, channels and classes.

    Attributes:
        size: S, B, L, XL, 1p0B or 1p6B with /1 or /2 for the patch size; DiTDH-S or DiTDH-XL for DiT^DH, the
            transformer with a wide head.
        width: Channels of a token (the paper's hidden_size); null is the value of `size`, here and below.
        depth: Number of blocks.
        heads: Attention heads (the paper's num_heads).
        head_width: Channels of a token in DiT^DH's head.
        head_depth: Number of blocks of that head.
        head_heads: Its attention heads.
        patch_size: Side of the square of latent pixels that makes one token.
        swiglu: SwiGLU instead of a GELU MLP.
        rope: Rotate queries and keys by position.
        rmsnorm: RMSNorm instead of LayerNorm.
        qk_norm: Norm queries and keys.
        adaln_shift: Condition blocks by scale, shift and gate; without it by scale and gate.
        label_dropout: Probability that a label is replaced by "no label" in training; guidance needs it.
        auxiliary_block: Block on whose tokens an auxiliary head learns the same target, for sampling with
            `guidance_kind: internal` (RAEv2 takes 8 of 28); null trains no such head.
        activation_checkpointing: Which activations training recomputes in the backward pass: `none`; `selective`, all
            except matrix products and attention; or `full`, each block.
        class_token: Channels of a teacher's class token that is denoised along with the latent (REG, arXiv
            2507.01467): 768 of `dinov2-base`; the latents must have them (`vavae encode --class_token`). null has none.
        routing: Blocks that see a share of the tokens in training; of DiT^DH's blocks those of the encoder.
    """

    size: str = "XL/1"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    head_width: int | None = None
    head_depth: int | None = None
    head_heads: int | None = None
    patch_size: int | None = None
    swiglu: bool = LightningDiTConfig.swiglu
    rope: bool = LightningDiTConfig.rope
    rmsnorm: bool = LightningDiTConfig.rmsnorm
    qk_norm: bool = LightningDiTConfig.qk_norm
    adaln_shift: bool = LightningDiTConfig.adaln_shift
    label_dropout: float = LightningDiTConfig.label_dropout
    auxiliary_block: int | None = None
    activation_checkpointing: Recomputation = "none"
    class_token: int | None = None
    routing: RoutingConfig = field(default_factory=RoutingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"label_dropout must be from 0 to 1, got {self.label_dropout}")
        known = [*size_names(), *(PREFIX + name for name in SIZES)]
        if self.size.removeprefix("LightningDiT-") not in known:
            raise UserError(f"transformer.size must be one of {', '.join(known)}, got {self.size}")
        if self.has_head:
            if not self.adaln_shift:
                raise UserError(f"transformer.adaln_shift must be true for {self.size}, got false")
            if self.class_token is not None:
                raise UserError(f"transformer.class_token must be null for {self.size}, got {self.class_token}")
            return
        for name in ("head_width", "head_depth", "head_heads"):
            if getattr(self, name) is not None:
                raise UserError(f"transformer.{name} must be null for {self.size}, which has no head of its own")

    def check_guidance(self, sampling: SamplingConfig) -> None:
        """Raise UserError if samples are to be guided without a label, and training never drops one."""
        if sampling.guidance is not None and sampling.guidance_kind != "internal" and self.label_dropout == 0:
            raise UserError(
                "sampling.guidance_scale must be 1 with transformer.label_dropout 0, which never trains without a "
                f"label, got {sampling.guidance_scale}"
            )

    @property
    def has_head(self) -> bool:
        """Whether the network is a DiT^DH."""
        return self.size.startswith(PREFIX)

    @property
    def patch(self) -> int:
        """Side of the square of latent pixels that makes one token."""
        if self.patch_size is not None:
            return self.patch_size
        return DiTDHConfig.patch_size if self.has_head else parse_size(self.size)[1]

    def resolve(self, latent_channels: int, latent_size: Size, num_classes: int) -> TransformerShape:
        """Return the complete shape for given latents.

        Raises:
            UserError: The numbers do not fit together.
        """
        latents: dict[str, Any] = {
            "latent_channels": latent_channels,
            "latent_size": latent_size,
            "num_classes": num_classes,
        }
        if self.has_head:
            named = SIZES[self.size.removeprefix(PREFIX)]
            pairs = {
                "widths": (self.width, self.head_width),
                "depths": (self.depth, self.head_depth),
                "heads": (self.heads, self.head_heads),
            }
            whole: dict[str, Any] = {
                name: tuple(own if value is None else value for own, value in zip(named[name], pair, strict=True))
                for name, pair in pairs.items()
            }
            return DiTDHConfig(**latents, **self._given(DiTDHConfig, pairs), **whole)
        return LightningDiTConfig.from_size(self.size, **latents, **self._given(LightningDiTConfig))

    def _given(self, shape: type[TransformerShape], without: Container[str] = ()) -> dict[str, Any]:
        """Return the settings that a shape has too and that are not null."""
        shared = {field.name for field in fields(shape)}
        values = vars(self).items()
        return {name: value for name, value in values if name in shared and name not in without and value is not None}
