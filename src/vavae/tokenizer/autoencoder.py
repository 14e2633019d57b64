"""The convolutional autoencoder of latent diffusion as VA-VAE publishes it (arXiv 2501.01423)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.tokenizer.gaussian import DiagonalGaussian
from vavae.tokenizer.layers import DownLevel, GroupNorm, Middle, UpLevel

IMAGE_CHANNELS = 3
# Upper bounds far above any real network. Without them a number in a damaged file could take all time or memory.
_MOST = {"latent_channels": 65_536, "base_channels": 65_536, "blocks_per_level": 1_000}


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of an `AutoencoderKL`; the defaults are VA-VAE f16d32 (69.8 M parameters).

    Names of the published code are in brackets.

    Attributes:
        latent_channels: Channels of a latent (`embed_dim` and `z_channels`).
        base_channels: Channels that the multipliers multiply (`ch`).
        channel_multipliers: One per resolution level, from full resolution down (`ch_mult`); n levels downsample by
            2^(n-1).
        blocks_per_level: Residual blocks of each encoder level (`num_res_blocks`); the decoder has one more.
        attention_levels: Levels whose residual blocks are followed by attention (`attn_resolutions`, there in
            pixels). 0 is full resolution, -1 the lowest. The middle always has attention.
        decoder_attention: Whether `attention_levels` applies to the decoder too; MAR's tokenizer has False.
        unshuffle: Side of the squares of pixels that the last step of encoding turns into channels (pixel unshuffle):
            the factor grows by it and `latent_channels` counts the result. FLUX.2's autoencoder has 2.
    """

    latent_channels: int = 32
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks_per_level: int = 2
    attention_levels: tuple[int, ...] = (-1,)
    decoder_attention: bool = True
    unshuffle: int = 1

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name} must be from 1 to {most:,}, got {str(getattr(self, name))[:20]}")
        if self.unshuffle < 1 or self.latent_channels % self.unshuffle**2:
            raise UserError(
                f"latent_channels must be a multiple of unshuffle² for an unshuffle of at least 1, got "
                f"{self.latent_channels} and {self.unshuffle}"
            )
        multipliers, levels = tuple(self.channel_multipliers), len(self.channel_multipliers)
        if not 1 <= levels <= 16 or not all(1 <= multiplier <= 1_000 for multiplier in multipliers):
            raise UserError(f"channel_multipliers must be 1 to 16 numbers from 1 to 1,000, got {str(multipliers)[:60]}")
        wrong = [level for level in self.attention_levels if not -levels <= level < levels]
        if wrong:
            raise UserError(f"attention_levels must be levels from 0 to {levels - 1}, got {wrong[0]}")
        # Lists come from YAML and JSON; a frozen config must be hashable.
        object.__setattr__(self, "channel_multipliers", multipliers)
        # -1 becomes the level's number, so that equal networks have equal configs.
        object.__setattr__(self, "attention_levels", tuple(level % levels for level in self.attention_levels))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from full resolution down."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return 2 ** (len(self.channel_multipliers) - 1) * self.unshuffle

    @property
    def network_channels(self) -> int:
        """Channels of the networks' latents, before pixels become channels."""
        return self.latent_channels // self.unshuffle**2


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> (B, 2·network_channels, h, w), h and w before pixels become channels."""

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
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.network_channels, 3, padding=1)

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the last layer: (B, 3, H, W) -> (B, widths[-1], h, w)."""
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.norm_out.silu(self.mid(h))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2·network_channels, h, w)."""
        return self.conv_out(self.features(images))


class Decoder(nn.Module):
    """Latents (B, network_channels, h, w), with channels as pixels again -> images (B, 3, H, W)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.network_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        # Stored from full resolution down; `features` runs them from the lowest up.
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
        """Return the input of the last layer: (B, network_channels, h, w) -> (B, widths[0], H, W)."""
        h = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            h = level(h)
        return self.norm_out.silu(h)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, network_channels, h, w) -> (B, 3, H, W)."""
        return self.conv_out(self.features(latents))


class AutoencoderKL(nn.Module):
    """Autoencoder between images and Gaussian latents.

    Images are (B, 3, H, W) in [-1, 1]; H and W are multiples of `factor`. Latents are
    (B, latent_channels, H/factor, W/factor), not normalized; `LatentStatistics` normalizes them. The state dict has
    the published names and shapes.

    Args:
        config: The shape; None starts from the defaults of `AutoencoderConfig`.
        settings: Fields of `AutoencoderConfig` to change, for example `latent_channels=16`.

    Attributes:
        from_pretrained: `vavae.checkpoints.networks.read_autoencoder`; loading that module sets it, and
            `vavae.AutoencoderKL` loads it.

    Raises:
        UserError: A value does not fit; the message names the field.
    """

    from_pretrained: ClassVar[Callable[..., "AutoencoderKL"]]

    def __init__(self, config: AutoencoderConfig | None = None, **settings: Any) -> None:
        super().__init__()
        config = AutoencoderConfig(**settings) if config is None else dataclasses.replace(config, **settings)
        self.config = config
        channels = config.network_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return self.config.factor

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.config.latent_channels

    @property
    def latent_grid(self) -> None:
        """The only height and width of a latent: None, since images may have any size."""
        return None

    @property
    def last_encoder_layer(self) -> nn.Conv2d:
        """Layer at which reconstruction and alignment gradients are balanced."""
        return self.encoder.conv_out

    @property
    def last_decoder_layer(self) -> nn.Conv2d:
        """Layer at which reconstruction and adversarial gradients are balanced."""
        return self.decoder.conv_out

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Return the posterior of (B, 3, H, W) images in [-1, 1].

        Raises:
            UserError: The images are not floating-point, have another number of channels, or have sides that are
                not multiples of `factor`.
        """
        if images.ndim != 4 or images.shape[1] != IMAGE_CHANNELS:
            raise UserError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise UserError(f"images must be floats in [-1, 1], got {images.dtype}; vavae.data.to_tensor converts them")
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor or height == 0 or width == 0:
            raise UserError(f"images must have sides that are multiples of {self.factor}, got {height} x {width}")
        moments = self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype)))
        # (B, 2·C, h·u, w·u) -> (B, 2·C·u², h, w): the means stay before the log-variances
        return DiagonalGaussian(F.pixel_unshuffle(moments, self.config.unshuffle))

    def latents(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the posterior's mean, or with standard normal `noise` its sample: (B, latent_channels, h, w)."""
        posterior = self.encode(images)
        return posterior.mode() if noise is None else posterior.sample(noise=noise)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images of (B, latent_channels, h, w) latents, about [-1, 1] but not clamped.

        Raises:
            UserError: The latents have another number of channels.
        """
        channels = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise UserError(f"latents must have shape (B, {channels}, h, w), got {tuple(latents.shape)}")
        latents = F.pixel_shuffle(latents.to(self.post_quant_conv.weight.dtype), self.config.unshuffle)
        return self.decoder(self.post_quant_conv(latents))

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Reconstruct images from the posterior's mean, or with `noise` from its sample."""
        return self.decode(self.latents(images, noise))
