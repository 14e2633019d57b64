"""`Tokenizer`: an autoencoder with the statistics of its latents, as one object."""

from pathlib import Path
from typing import Any, Literal, Self, Unpack

import torch
from torch import Tensor, nn

from vavae.checkpoints import folder as files
from vavae.checkpoints.diffusers_autoencoder import (
    diffusers_config,
    diffusers_statistics,
    from_diffusers_names,
    to_diffusers_names,
)
from vavae.checkpoints.folder import HubOptions
from vavae.checkpoints.loading import build, load_autoencoder
from vavae.checkpoints.locations import resolve
from vavae.checkpoints.published import LoadReport, Weights
from vavae.checkpoints.reading import check_utf8
from vavae.checkpoints.shapes import infer_autoencoder
from vavae.checkpoints.statistics import read_statistics, scaling_statistics, statistics_file
from vavae.config import to_plain
from vavae.data.transforms import Images, as_images
from vavae.errors import UserError
from vavae.io.files import write_json
from vavae.io.hashing import digest, tensor_digest, weights_fingerprint
from vavae.models.saved import SavedModel
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics
from vavae.version import __version__

StatisticsSource = LatentStatistics | str | Path


class Tokenizer(SavedModel):
    """Images in [-1, 1] ⇄ normalized latents.

    Args:
        autoencoder: The network; it is put in eval mode.
        statistics: Mean and standard deviation per channel of its latents.
        provenance: Facts about the training, for the model card.

    Attributes:
        report: The parts of a published checkpoint that were loaded and left out; None for other forms.
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
        self.report: LoadReport | None = None

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.autoencoder.config.latent_channels

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return self.autoencoder.factor

    @property
    def config(self) -> AutoencoderConfig:
        """Configuration of the autoencoder."""
        return self.autoencoder.config

    @property
    def _networks(self) -> tuple[nn.Module, ...]:
        return (self.autoencoder,)

    def fingerprint(self) -> str:
        """Return a hash of weights, configuration and statistics of the latents, in hexadecimal."""
        statistics = {name: tensor_digest(value) for name, value in self.statistics.to_dict().items()}
        return digest(weights_fingerprint(self.autoencoder), to_plain(self.autoencoder.config), statistics)

    def __repr__(self) -> str:
        return f"Tokenizer(f{self.factor} d{self.latent_channels}, {self.device})"

    @torch.no_grad()  # not inference mode, whose tensors cannot be trained on
    def encode(self, images: Images, mode: Literal["mean", "sample"] = "mean", noise: Tensor | None = None) -> Tensor:
        """Encode images as normalized latents (B, C, H/f, W/f).

        Args:
            images: (B, 3, H, W) in [-1, 1], or another form of `vavae.data.as_images`: Pillow images, numpy pixels, or
                a list of either.
            mode: The mean of the posterior, or a sample of it.
            noise: Standard normal noise in the shape of the latents, for a sample.

        Raises:
            UserError: Images are not in [-1, 1] or have an unknown form, or the mode is unknown.
        """
        images = as_images(images)
        if mode not in ("mean", "sample"):
            raise UserError(f"mode must be 'mean' or 'sample', got {mode!r}")
        posterior = self.autoencoder.encode(images.to(self.device))
        latents = posterior.mode() if mode == "mean" else posterior.sample(noise=noise)
        return self.statistics.normalize(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalized latents (B, C, h, w) as images (B, 3, h·f, w·f), float32, clamped to [-1, 1].

        Raises:
            UserError: The latents are not a tensor of floats.
        """
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            given = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
            raise UserError(f"latents must be a tensor of floats, as encode returns them, got {given}")
        wide = torch.promote_types(self.dtype, torch.float32)
        raw = self.statistics.denormalize(latents.to(self.device, wide))
        return self.autoencoder.decode(raw).to(wide).clamp(-1.0, 1.0)

    def reconstruct(self, images: Images) -> Tensor:
        """Encode images (see `encode`) and decode the mean of the posterior: (B, 3, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `from_pretrained` reads: configuration, weights, statistics, model card.

        Args:
            path: The folder.
            dtype: Type of the stored weights, for example `torch.float16`; None keeps their own. They are widened
                when they are read. Statistics keep their type.

        Raises:
            UserError: A weight is too large for `dtype`.
        """
        folder = Path(path)
        config = {
            "kind": "tokenizer",
            "vavae_version": __version__,
            "autoencoder": to_plain(self.autoencoder.config),
            "image_range": [-1.0, 1.0],
            "provenance": to_plain(self.provenance),
        }
        weights = files.state_dict_for_saving(self.autoencoder, dtype)
        with files.write_model_folder(folder, config):
            files.write_tensors(folder / files.WEIGHTS, weights, "tokenizer")
            files.write_tensors(folder / files.STATISTICS, self.statistics.to_dict())
            (folder / files.CARD).write_text(self._card())

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: torch.device | str = "cpu",
        *,
        statistics: StatisticsSource | Literal["identity"] | None = None,
        weights: Weights = "auto",
        dtype: torch.dtype | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Read a tokenizer, local or from the hub: ours, a published checkpoint, or an autoencoder of diffusers.

        Args:
            path_or_hub_id: A folder of `save_pretrained`, of a tokenizer or a generator; a published file (.pt, .pth,
                .ckpt, .safetensors), or its folder; a folder of diffusers, of an autoencoder or a pipeline; `demo`,
                the tokenizer in the package; or a repository of the hub with any of these, `owner/name` or
                `owner/name@revision`.
            device: Device of the network.
            statistics: Statistics of the latents instead of the ones in the folder: a `LatentStatistics`,
                `latents_stats.pt`, a folder of latents, or "identity" for raw latents. Published files need it.
            weights: Which weights of a checkpoint with several sets: averaged ("ema"), not averaged ("model"), or the
                name of a set; "auto" prefers averaged ones.
            dtype: Type of the weights and of the computation; float16 and bfloat16 need half the memory. Returned
                images and latents are float32. None is float32.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` and `subfolder`, as in
                `huggingface_hub` (see `HubOptions`).

        Raises:
            UserError: Names the file or key that is missing or wrong; or the statistics are missing.
        """
        path = resolve(path_or_hub_id, "tokenizer", **hub)
        files.refuse_unused(path, weights=weights)
        loaded = load_autoencoder(path, weights)
        source = statistics
        if source is None:
            source = loaded.statistics or _published_statistics(path)
        if source == "identity":
            source = scaling_statistics(loaded.model.config.latent_channels, 1.0)
        tokenizer = cls(loaded.model, read_statistics(source), loaded.provenance)
        tokenizer.report = loaded.report
        return tokenizer.to(device, dtype)

    def save_diffusers(self, path: str | Path) -> None:
        """Write the folder that `diffusers.AutoencoderKL.from_pretrained` reads.

        Its latents are not normalized. The statistics are in its configuration, as `latents_mean` and `latents_std`,
        or as `scaling_factor` and `shift_factor` if all channels share them.

        Raises:
            UserError: diffusers cannot build such an autoencoder.
        """
        folder = Path(path)
        config = diffusers_config(self.autoencoder.config, self.statistics)
        names = to_diffusers_names(self.autoencoder.state_dict(), len(self.autoencoder.config.widths))
        check_utf8(folder)
        (folder / files.CONFIG).unlink(missing_ok=True)  # first: an old one would describe other weights
        files.write_tensors(folder / files.DIFFUSERS_WEIGHTS[0], names)
        write_json(folder / files.CONFIG, config)

    def to_diffusers(self) -> Any:
        """Return a `diffusers.AutoencoderKL` with the same weights, on the same device, in eval mode.

        Raises:
            UserError: diffusers is not installed, or cannot build such an autoencoder.
        """
        try:
            import diffusers
        except ImportError as error:
            raise UserError("diffusers is not installed: pip install 'vavae[diffusers]'") from error
        model = diffusers.AutoencoderKL.from_config(diffusers_config(self.autoencoder.config, self.statistics))
        state = self.autoencoder.state_dict()
        model.load_state_dict(to_diffusers_names(state, len(self.autoencoder.config.widths)))
        return model.to(self.device).eval()

    @classmethod
    def from_diffusers(cls, autoencoder: Any, statistics: StatisticsSource | None = None) -> Self:
        """Return a tokenizer with the weights of a `diffusers.AutoencoderKL`.

        Args:
            autoencoder: The network.
            statistics: Statistics of its latents; the ones in its configuration by default.

        Raises:
            UserError: It has other parts than our autoencoder.
        """
        name = type(autoencoder).__name__
        tensors, _ = from_diffusers_names(autoencoder.state_dict(), name)
        shape = infer_autoencoder(tensors, name)
        model = build(AutoencoderKL.from_config, shape, tensors, name)
        if statistics is None:
            statistics = diffusers_statistics(autoencoder.config, shape.latent_channels, name)
        return cls(model, read_statistics(statistics)).to(autoencoder.device)

    def _card(self) -> str:
        config = self.autoencoder.config
        count = f" over {self.statistics.count:,} images" if self.statistics.count else ""
        return (
            "---\nlibrary_name: vavae\ntags: [image-tokenizer, autoencoder-kl]\n---\n\n"
            f"# Visual tokenizer f{self.factor} d{config.latent_channels}\n\n"
            f"Latent statistics{count} are in `{files.STATISTICS}`; "
            "`Tokenizer.encode` and `.decode` apply them.\n\n"
            "```python\nimport vavae\n\n"
            'tokenizer = vavae.Tokenizer.from_pretrained("this folder or its hub id")\n'
            "latents = tokenizer.encode(images)  # images: (B, 3, H, W) in [-1, 1]\n"
            "images = tokenizer.decode(latents)\n```\n" + self._training()
        )


def _published_statistics(path: Path) -> Path:
    """Return the file of statistics in a published folder.

    Raises:
        UserError: It is missing, or the checkpoint is a single file.
    """
    if (found := statistics_file(path)) is not None:
        return found
    raise UserError(
        f"{path}: comes without the statistics of its latents, which normalization needs: pass statistics, either the "
        f"published latents_stats.pt or the folder that 'vavae encode --tokenizer {path}' writes; or, with "
        "'vavae convert', the model's --scaling_factor and --shift_factor"
    )
