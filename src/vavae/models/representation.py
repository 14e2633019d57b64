"""Representation autoencoder: a frozen foundation model encodes, a trained ViT decodes (RAE, arXiv 2510.11690)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vavae.config import to_plain
from vavae.errors import UserError
from vavae.io.files import write_json
from vavae.io.frozen import leave_out
from vavae.io.hashing import digest, weights_fingerprint
from vavae.teachers import LatentEncoder, Teacher
from vavae.tokenizer import AutoencoderKL, ViTDecoder
from vavae.tokenizer.vit_decoder import SIZES

NoiseKind = Literal["uniform", "normal"]
TEACHER = "teacher"  # folder in a tokenizer's folder with the teacher's files, on request
_SHAPE = ("width", "depth", "heads", "mlp_width")


@dataclass(frozen=True)
class RepresentationConfig:
    """A representation autoencoder whose encoder is a given teacher; the defaults are the published ones.

    Attributes:
        size: Size of the decoder: B, L or XL.
        patch_size: Side in pixels of the square that a latent becomes.
        width: Channels of a token of the decoder; null is the value of `size`, here and below.
        depth: Number of its layers.
        heads: Its attention heads.
        mlp_width: Hidden channels of its MLPs.
        noise: Scale τ of the noise on latents while the decoder trains; 0 trains without.
        noise_kind: Distribution of each image's standard deviation: `uniform` is τ·U(0, 1), as RAE's code has it;
            `normal` is |N(0, τ²)|, as its paper has it.
        layers: Blocks of the teacher whose normalized tokens are summed; 1 is the last alone.
    """

    size: str = "XL"
    patch_size: int = 16
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_width: int | None = None
    noise: float = 0.8
    noise_kind: NoiseKind = "uniform"
    layers: int = 1

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"representation.size must be one of {', '.join(SIZES)}, got {self.size!r}")
        if not 1 <= self.patch_size <= 1024:
            raise UserError(f"representation.patch_size must be from 1 to 1,024, got {self.patch_size}")
        if not 0 <= self.noise < float("inf"):
            raise UserError(f"representation.noise must be at least 0, got {self.noise}")

    def decoder(self, channels: int, grid: tuple[int, int]) -> ViTDecoder:
        """Return a freshly initialized decoder of latents of that many channels, on a grid of height and width.

        Raises:
            UserError: The numbers do not fit.
        """
        changes = {name: value for name in _SHAPE if (value := getattr(self, name)) is not None}
        shape = {**SIZES[self.size], **changes, "patch_size": self.patch_size}
        return ViTDecoder(channels, grid, **shape)

    def build(self, teacher: Teacher) -> "RepresentationAutoencoder":
        """Return the autoencoder with a freshly initialized decoder.

        Raises:
            UserError: The numbers do not fit, or the teacher cannot be a latent.
        """
        decoder = self.decoder(teacher.width, teacher.grid_size)
        return RepresentationAutoencoder(teacher, decoder, self.noise, self.noise_kind, self.layers)


class RepresentationAutoencoder(nn.Module):
    """Autoencoder between images and the grid of a frozen foundation model.

    Images are (B, 3, H, W) in [-1, 1]. Latents are (B, C, h, w), not normalized; `LatentStatistics` normalizes them.
    Only the decoder is trained, and the state dict holds the decoder only.

    Args:
        teacher: The foundation model, a vision transformer; it is frozen, and its last norm loses its affine part.
        decoder: The decoder, for pixels in the teacher's normalization.
        noise: As in `RepresentationConfig`, like the following.
        noise_kind: Distribution of each image's noise.
        layers: Blocks of the teacher whose normalized tokens are summed.

    Attributes:
        keep_teacher: Whether a saved tokenizer gets the teacher's files, because its name does not find them.

    Raises:
        UserError: The decoder is for another number of channels, the noise is negative or of no known kind, or the
            teacher cannot be a latent.
    """

    def __init__(
        self,
        teacher: Teacher,
        decoder: ViTDecoder,
        noise: float = 0.8,
        noise_kind: NoiseKind = "uniform",
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = LatentEncoder(teacher, layers)
        if self.encoder.width != decoder.latent_channels:
            raise UserError(
                f"decoder must be for latents of {self.encoder.width} channels, got {decoder.latent_channels}"
            )
        if not noise >= 0:
            raise UserError(f"noise must be at least 0, got {noise}")
        if noise_kind not in ("uniform", "normal"):
            raise UserError(f"noise_kind must be uniform or normal, got {noise_kind!r}")
        self.decoder = decoder
        self.noise, self.noise_kind = noise, noise_kind
        self.keep_teacher = False
        leave_out(self, "encoder")

    @property
    def config(self) -> RepresentationConfig:
        """The shape, with the decoder's numbers as a size where it has one."""
        shape, decoder = self.decoder.shape, self.decoder
        size = next((name for name, numbers in SIZES.items() if numbers == shape), None)
        named = {"size": size} if size else shape
        return RepresentationConfig(
            **named,
            patch_size=decoder.patch_size,
            noise=self.noise,
            noise_kind=self.noise_kind,
            layers=self.encoder.layers,
        )

    @property
    def latent_channels(self) -> int:
        """C, the encoder's width."""
        return self.decoder.latent_channels

    @property
    def latent_grid(self) -> tuple[int, int]:
        """The only height and width of a latent."""
        return self.encoder.grid

    @property
    def factor(self) -> int:
        """Image side over latent side; images of other sizes are resized for the encoder."""
        return self.decoder.patch_size

    @property
    def last_decoder_layer(self) -> nn.Linear:
        """Layer at which reconstruction and adversarial gradients are balanced."""
        return self.decoder.decoder_pred

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self.encoder(images)

    def latents(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return `encode(images)`: without a posterior to sample from, `noise` changes nothing."""
        del noise
        return self.encode(images)

    def noise_scale(self, uniform: Tensor) -> Tensor:
        """Return σ (B, 1, 1, 1) of the noise on latents in training, of numbers `uniform` (B,) in [0, 1)."""
        sigma = uniform if self.noise_kind == "uniform" else torch.special.ndtri((1 + uniform.double()) / 2)
        return (self.noise * sigma).float().view(-1, 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) of latents (B, C, h, w), about [-1, 1] but not clamped.

        Raises:
            UserError: The latents have another number of channels.
        """
        teacher = self.encoder.teacher
        pixels = self.decoder(latents.to(self.decoder.decoder_pred.weight.dtype))
        return (pixels - teacher.shift) / teacher.scale

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images."""
        return self.decode(self.encode(images))

    def encoder_sha256(self) -> str:
        """Return the hash of the encoder's weights, without the affine part of its last norm, in hexadecimal."""
        return weights_fingerprint(self.encoder.teacher.backbone)

    def encoder_fingerprint(self) -> str:
        """Return a hash of all that the latents depend on, in hexadecimal."""
        teacher, own = self.encoder.teacher, self.encoder.teacher.normalization
        return digest(self.encoder_sha256(), teacher.input_size, own.mean, own.std, self.encoder.layers)

    def description(self) -> dict[str, Any]:
        """Return the keys of a tokenizer's `config.json`: the shape, and the teacher by name and sha256."""
        teacher = self.encoder.teacher
        named = {"name": teacher.name, "input_size": list(teacher.input_size), "sha256": self.encoder_sha256()}
        return {"representation": to_plain(self.config), "teacher": named}

    def save_teacher(self, folder: Path) -> None:
        """Write the teacher as `load_teacher` reads it: a model of transformers with its normalization."""
        teacher = self.encoder.teacher
        teacher.backbone.get_submodule("model").save_pretrained(folder)  # type: ignore[operator]
        own = teacher.normalization
        write_json(folder / "preprocessor_config.json", {"image_mean": list(own.mean), "image_std": list(own.std)})


Autoencoder = AutoencoderKL | RepresentationAutoencoder


def saved_part(autoencoder: Autoencoder) -> nn.Module:
    """Return the network whose weights a tokenizer's folder holds: of a representation autoencoder the decoder."""
    return autoencoder.decoder if isinstance(autoencoder, RepresentationAutoencoder) else autoencoder
