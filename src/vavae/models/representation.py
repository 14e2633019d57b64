"""Representation autoencoder: a frozen foundation model encodes, a trained ViT decodes (RAE, arXiv 2510.11690)."""

from typing import Literal

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.teachers import LatentEncoder, Teacher
from vavae.tokenizer import ViTDecoder

NoiseKind = Literal["uniform", "normal"]


class RepresentationAutoencoder(nn.Module):
    """Autoencoder between images and the grid of a frozen foundation model.

    Images are (B, 3, H, W) in [-1, 1]. Latents are (B, C, h, w), not normalized; `LatentStatistics` normalizes them.
    Only the decoder is trained.

    Args:
        teacher: The foundation model, a vision transformer; it is frozen, and its last norm loses its affine part.
        decoder: The decoder, for pixels in the teacher's normalization.
        noise: Scale τ of the noise on latents while the decoder trains; 0 trains without.
        noise_kind: Distribution of each image's standard deviation: "uniform" is τ·U(0, 1), as RAE's code has it;
            "normal" is |N(0, τ²)|, as its paper has it.
        layers: Blocks of the teacher whose normalized tokens are summed; 1 is the last alone.

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
        if self.encoder.channels != decoder.latent_channels:
            raise UserError(
                f"decoder must be for latents of {self.encoder.channels} channels, got {decoder.latent_channels}"
            )
        if not noise >= 0:
            raise UserError(f"noise must be at least 0, got {noise}")
        if noise_kind not in ("uniform", "normal"):
            raise UserError(f"noise_kind must be uniform or normal, got {noise_kind!r}")
        self.decoder = decoder
        self.noise, self.noise_kind = noise, noise_kind

    @property
    def latent_channels(self) -> int:
        """C, the encoder's width."""
        return self.decoder.latent_channels

    @property
    def last_decoder_layer(self) -> nn.Linear:
        """Layer at which reconstruction and adversarial gradients are balanced."""
        return self.decoder.decoder_pred

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self.encoder(images)

    def noised(self, latents: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Return latents + σ·noise with one σ per image, as the decoder sees them in training.

        Args:
            latents: (B, C, h, w), not normalized.
            noise: The same shape, standard normal.
            uniform: (B,) numbers in [0, 1), which decide σ.
        """
        sigma = uniform if self.noise_kind == "uniform" else torch.special.ndtri((1 + uniform.double()) / 2)
        return latents + (self.noise * sigma).to(latents).view(-1, 1, 1, 1) * noise

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
