"""`Tokenizer`: an autoencoder with the statistics of its latents, as one object."""

from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from vavae import __version__
from vavae.config import from_plain, to_plain
from vavae.errors import UserError
from vavae.pretrained import folder as files
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics


class Tokenizer:
    """Images in [-1, 1] ⇄ normalised latents.

    Args:
        autoencoder: The network; it is put in eval mode.
        statistics: Mean and standard deviation per channel of its latents.
        provenance: How it was trained and on what, for the model card.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        statistics: LatentStatistics,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        if statistics.channels != autoencoder.config.latent_channels:
            raise UserError(
                f"latent statistics of {statistics.channels} channels do not fit an autoencoder "
                f"with {autoencoder.config.latent_channels}"
            )
        self.autoencoder = autoencoder.eval()
        self.statistics = statistics
        self.provenance = provenance or {}

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.autoencoder.config.latent_channels

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return self.autoencoder.factor

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.autoencoder.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the network to `device`."""
        self.autoencoder.to(device)
        return self

    @torch.inference_mode()
    def encode(self, images: Tensor, mode: Literal["mean", "sample"] = "mean", noise: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> normalised latents (B, C, H/f, W/f).

        `mode` is the posterior's mean or a sample of it; a sample uses `noise`, standard normal of the latents'
        shape, where it is given.
        """
        posterior = self.autoencoder.encode(images.to(self.device))
        latents = posterior.mode() if mode == "mean" else posterior.sample(noise=noise)
        return self.statistics.normalize(latents)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) -> images (B, 3, h·f, w·f), clamped to [-1, 1]."""
        return self.autoencoder.decode(self.statistics.denormalize(latents.to(self.device))).clamp(-1.0, 1.0)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode (posterior mean) and decode."""
        return self.decode(self.encode(images))

    def save_pretrained(self, path: str | Path) -> None:
        """Write the folder that `from_pretrained` reads."""
        folder = Path(path)
        config = {
            "kind": "tokenizer",
            "vavae_version": __version__,
            "autoencoder": to_plain(self.autoencoder.config),
            "image_range": [-1.0, 1.0],
            "provenance": to_plain(self.provenance),
        }
        files.write_folder(folder, config, self.autoencoder, self._card())
        files.write_tensors(folder / files.STATISTICS, self.statistics.to_dict())

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read a folder that `save_pretrained` wrote, here or on the hub.

        Raises:
            UserError: Names the file or key that is missing or wrong.
        """
        folder = files.resolve(path_or_hub_id)
        config = files.read_config(folder, "tokenizer")
        try:
            shape = from_plain(AutoencoderConfig, config["autoencoder"])
        except KeyError as error:
            raise UserError(f"{folder / files.CONFIG}: no key {error}") from error
        with torch.device("meta"):
            autoencoder = AutoencoderKL.from_config(shape)
        autoencoder.to_empty(device="cpu")
        files.load_strictly(autoencoder, files.read_tensors(folder / files.WEIGHTS), folder / files.WEIGHTS)
        statistics = LatentStatistics.from_dict(files.read_tensors(folder / files.STATISTICS))
        return cls(autoencoder, statistics, config.get("provenance")).to(device)

    def _card(self) -> str:
        config = self.autoencoder.config
        trained = "\n".join(f"- {key}: {value}" for key, value in self.provenance.items())
        return (
            "---\nlibrary_name: vavae\ntags: [image-tokenizer, autoencoder-kl]\n---\n\n"
            f"# Visual tokenizer f{self.factor} d{config.latent_channels}\n\n"
            f"Latent statistics over {self.statistics.count:,} images are in `{files.STATISTICS}`; "
            "`Tokenizer.encode` and `.decode` apply them.\n\n"
            "```python\nimport vavae\n\n"
            'tokenizer = vavae.Tokenizer.from_pretrained("this folder or its hub id")\n'
            "latents = tokenizer.encode(images)  # images: (B, 3, H, W) in [-1, 1]\n"
            "images = tokenizer.decode(latents)\n```\n" + (f"\n## Training\n\n{trained}\n" if trained else "")
        )
