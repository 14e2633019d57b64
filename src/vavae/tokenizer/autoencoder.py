"""The convolutional autoencoder of latent diffusion, in the form VA-VAE publishes it (arXiv 2501.01423)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from vavae.errors import UserError
from vavae.tokenizer.gaussian import DiagonalGaussian
from vavae.tokenizer.layers import CheckpointedBlock, DownLevel, GroupNorm, Middle, UpLevel

IMAGE_CHANNELS = 3
# No network comes near these; numbers in a damaged file do, and would take all time or memory.
_MOST = {"latent_channels": 65_536, "base_channels": 65_536, "blocks_per_level": 1_000}


@dataclass(frozen=True)
class AutoencoderConfig:
    """The shape of an `AutoencoderKL`; the defaults are VA-VAE f16d32 (69.8 M parameters).

    Attributes:
        latent_channels: channels of a latent.
        base_channels: width that the multipliers multiply.
        channel_multipliers: one per resolution level, from full resolution down; n levels downsample by 2^(n-1).
        blocks_per_level: residual blocks of each encoder level; the decoder has one more.
        attention_levels: levels whose residual blocks are followed by attention, 0 being full resolution.
            The middle always has attention.
        decoder_attention: whether `attention_levels` holds for the decoder too; MAR's tokenizer says no.
    """

    latent_channels: int = 32
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks_per_level: int = 2
    attention_levels: tuple[int, ...] = (4,)
    decoder_attention: bool = True

    def __post_init__(self) -> None:
        for name in _MOST:
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not positive")
            if getattr(self, name) > _MOST[name]:
                raise UserError(f"{name}: must be at most {_MOST[name]:,}, got {str(getattr(self, name))[:20]}")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise UserError(f"channel_multipliers: {self.channel_multipliers} must be positive, at least one")
        if len(self.channel_multipliers) > 16 or max(self.channel_multipliers) > 1_000:
            raise UserError("channel_multipliers: must be at most 16 numbers up to 1,000")
        # lists come from YAML and JSON; a frozen config must be hashable
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        levels = len(self.channel_multipliers)
        wrong = [level for level in self.attention_levels if not 0 <= level < levels]
        if wrong:
            raise UserError(f"attention_levels: {wrong[0]} is not one of the levels 0..{levels - 1}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from full resolution down."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return 2 ** (len(self.channel_multipliers) - 1)


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> (B, 2·latent_channels, H/factor, W/factor)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(
                config.base_channels if i == 0 else widths[i - 1],
                width,
                config.blocks_per_level,
                attention=i in config.attention_levels,
                last=i == len(widths) - 1,
            )
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def features(self, images: Tensor) -> Tensor:
        """All but the last layer: (B, 3, H, W) -> (B, widths[-1], h, w)."""
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.norm_out.silu(self.mid(h))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2·latent_channels, h, w)."""
        return self.conv_out(self.features(images))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) -> images (B, 3, h·factor, w·factor)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        # stored from full resolution down, run the other way
        self.up = nn.ModuleList(
            UpLevel(
                widths[min(i + 1, len(widths) - 1)],
                width,
                config.blocks_per_level + 1,
                attention=config.decoder_attention and i in config.attention_levels,
                last=i == 0,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], IMAGE_CHANNELS, 3, padding=1)

    def features(self, latents: Tensor) -> Tensor:
        """All but the last layer: (B, latent_channels, h, w) -> (B, widths[0], H, W)."""
        h = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            h = level(h)
        return self.norm_out.silu(h)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> (B, 3, H, W)."""
        return self.conv_out(self.features(latents))


class AutoencoderKL(nn.Module):
    """Images ⇄ Gaussian latents; the arguments are those of `AutoencoderConfig`.

    Images are (B, 3, H, W) with values in [-1, 1]; H and W any multiples of `factor`. Latents are
    (B, latent_channels, H/factor, W/factor), as the encoder gives them: normalisation is
    `LatentStatistics`' work. The state dict has the published names and shapes.

    Attributes:
        from_pretrained: `vavae.checkpoints.networks.read_autoencoder`; loading that module sets it, and
            `vavae.AutoencoderKL` loads it.
    """

    from_pretrained: ClassVar[Callable[..., "AutoencoderKL"]]

    def __init__(
        self,
        latent_channels: int = 32,
        base_channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks_per_level: int = 2,
        attention_levels: tuple[int, ...] = (4,),
        decoder_attention: bool = True,
    ) -> None:
        super().__init__()
        self.config = AutoencoderConfig(
            latent_channels,
            base_channels,
            channel_multipliers,
            blocks_per_level,
            attention_levels,
            decoder_attention,
        )
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    @classmethod
    def from_config(cls, config: AutoencoderConfig) -> Self:
        """The autoencoder `config` describes, freshly initialised."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return self.config.factor

    @property
    def last_encoder_layer(self) -> nn.Conv2d:
        """The layer at which reconstruction and alignment gradients are balanced."""
        return self.encoder.conv_out

    @property
    def last_decoder_layer(self) -> nn.Conv2d:
        """The layer at which reconstruction and adversarial gradients are balanced."""
        return self.decoder.conv_out

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Trade time for memory: compute each block's activations again in the backward pass."""
        for module in self.modules():
            if isinstance(module, CheckpointedBlock):
                module.checkpoint_activations = enabled

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """The posterior of (B, 3, H, W) images in [-1, 1].

        Raises:
            UserError: on another number of channels, or sides that `factor` does not divide.
        """
        if images.ndim != 4 or images.shape[1] != IMAGE_CHANNELS:
            raise UserError(f"images: shape (B, 3, H, W) is needed, not {tuple(images.shape)}")
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor or height == 0 or width == 0:
            raise UserError(f"images: height {height} and width {width} must be multiples of {self.factor}")
        return DiagonalGaussian(self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype))))

    def decode(self, latents: Tensor) -> Tensor:
        """Images of (B, latent_channels, h, w) latents, about [-1, 1] but not clamped.

        Raises:
            UserError: on another number of channels.
        """
        channels = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise UserError(f"latents: shape (B, {channels}, h, w) is needed, not {tuple(latents.shape)}")
        return self.decoder(self.post_quant_conv(latents.to(self.post_quant_conv.weight.dtype)))

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Reconstruction of images from the posterior's mean, or with `noise` from its sample."""
        posterior = self.encode(images)
        return self.decode(posterior.mode() if noise is None else posterior.sample(noise=noise))
