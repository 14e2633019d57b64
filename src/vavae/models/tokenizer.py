"""`Tokenizer`: an autoencoder with the statistics of its latents, as one object."""

import tempfile
from pathlib import Path
from typing import Any, Literal, Self, Unpack

import torch
from torch import Tensor

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
from vavae.checkpoints.networks import own_autoencoder
from vavae.checkpoints.published import LoadReport, Weights
from vavae.checkpoints.shapes import infer_autoencoder
from vavae.checkpoints.statistics import read_statistics, statistics_file
from vavae.config import to_plain
from vavae.data.transforms import Images, as_images
from vavae.errors import UserError
from vavae.io.hashing import digest, tensor_digest, weights_fingerprint
from vavae.tokenizer import AutoencoderKL, LatentStatistics
from vavae.version import __version__

StatisticsSource = LatentStatistics | str | Path


class Tokenizer:
    """Images in [-1, 1] ⇄ normalized latents.

    Args:
        autoencoder: The network; it is put in eval mode.
        statistics: Mean and standard deviation per channel of its latents.
        provenance: How it was trained and on what, for the model card.

    Attributes:
        report: What `from_pretrained` took from a published checkpoint and what it left out; None for other forms.
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
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.autoencoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        return next(self.autoencoder.parameters()).dtype

    def to(self, device: torch.device | str) -> Self:
        """Move the network to `device`.

        Raises:
            UserError: A type instead of a device.
        """
        self.autoencoder.to(device_only(device))
        return self

    def fingerprint(self) -> str:
        """Return a hash of weights, configuration and statistics of the latents, in hexadecimal."""
        statistics = {name: tensor_digest(value) for name, value in self.statistics.to_dict().items()}
        return digest(weights_fingerprint(self.autoencoder), to_plain(self.autoencoder.config), statistics)

    def __repr__(self) -> str:
        return f"Tokenizer(f{self.factor} d{self.latent_channels}, {self.device})"

    @torch.no_grad()  # what is made under inference mode cannot enter a training
    def encode(self, images: Images, mode: Literal["mean", "sample"] = "mean", noise: Tensor | None = None) -> Tensor:
        """Encode images as normalized latents (B, C, H/f, W/f).

        Args:
            images: (B, 3, H, W) in [-1, 1], or in another form that `vavae.data.as_images` takes: Pillow images, numpy
                pixels, or a list of either.
            mode: The posterior's mean, or a sample of it.
            noise: Standard normal noise of the latents' shape, for a sample.

        Raises:
            UserError: Images that are not in [-1, 1] or in an unknown form, or an unknown mode.
        """
        images = as_images(images)
        if mode not in ("mean", "sample"):
            raise UserError(f"mode: {mode!r} is neither 'mean' nor 'sample'")
        posterior = self.autoencoder.encode(images.to(self.device))
        latents = posterior.mode() if mode == "mean" else posterior.sample(noise=noise)
        return self.statistics.normalize(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalized latents (B, C, h, w) as images (B, 3, h·f, w·f), float32, clamped to [-1, 1].

        Raises:
            UserError: Latents that are not a tensor of floats of this shape.
        """
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            given = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
            raise UserError(f"latents: must be a tensor of floats as encode returns it, got {given}")
        wide = torch.promote_types(self.dtype, torch.float32)
        raw = self.statistics.denormalize(latents.to(self.device, wide))
        return self.autoencoder.decode(raw).to(wide).clamp(-1.0, 1.0)

    def reconstruct(self, images: Images) -> Tensor:
        """Encode images, see `encode`, and decode the posterior's mean: (B, 3, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `from_pretrained` reads: configuration, weights, statistics, model card.

        Args:
            path: The folder.
            dtype: Type in which the weights are stored, for example `torch.float16`; None is their own. They are
                widened again when they are read. Statistics stay as they are.

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

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload tokenizer",
    ) -> str:
        """Upload the files of `save_pretrained` as the model repository `repo_id`; return its address.

        Raises:
            UserError: The hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return files.push(Path(folder), repo_id, private, token, commit_message)

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
        """Read a tokenizer, here or on the hub: ours, a published checkpoint, or an autoencoder of diffusers.

        Args:
            path_or_hub_id: A folder that `save_pretrained` wrote, also a generator's, whose tokenizer is taken; a
                published file (.pt, .pth, .ckpt, .safetensors), or its folder; a folder of diffusers, also a
                pipeline's, whose autoencoder is taken; `demo`, the tokenizer in the package; or a repository of the
                hub with any of these, `owner/name` or `owner/name@revision`.
            device: Where to put the network.
            statistics: Statistics of the latents instead of the ones in the folder: a `LatentStatistics`,
                `latents_stats.pt`, a folder of latents, or "identity" for latents as the network gives them.
                Published files need it.
            weights: Which weights of a checkpoint with several: averaged ("ema"), not averaged ("model"), or the name
                of a set; "auto" prefers averaged ones.
            dtype: Hold the weights in float16 or bfloat16, which takes half the memory and computes in it; images and
                latents that come out are float32. None is float32.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` and `subfolder`, as in
                `huggingface_hub` (see `HubOptions`).

        Raises:
            UserError: Names the file or key that is missing or wrong, or says that there are no statistics.
        """
        path = resolve(path_or_hub_id, "tokenizer", **hub)
        form = files.form_of(path)
        files.refuse_unused(path, form, weights=weights)
        if form == "generator":
            path, form = files.subfolder(path, "tokenizer"), "tokenizer"
        if form == "tokenizer":
            tokenizer = cls._from_folder(path, statistics)
        elif form in ("checkpoint", "diffusers", "pipeline"):
            tokenizer = cls._from_published(path, statistics, weights)
        else:
            raise UserError(f"{path}: holds {files.describe_form(form)}, not a tokenizer")
        files.hold_in(tokenizer.autoencoder, dtype)
        return tokenizer.to(device)

    @classmethod
    def _from_folder(cls, folder: Path, statistics: StatisticsSource | Literal["identity"] | None) -> Self:
        autoencoder, config = own_autoencoder(folder)
        if config.get("image_range", [-1, 1]) != [-1, 1]:
            raise UserError(f"{folder / files.CONFIG}: image_range must be [-1, 1], got {config['image_range']}")
        source = folder / files.STATISTICS if statistics is None else statistics
        return cls(autoencoder, _statistics(source, autoencoder.config.latent_channels), config.get("provenance"))

    @classmethod
    def _from_published(
        cls, path: Path, statistics: StatisticsSource | Literal["identity"] | None, weights: Weights
    ) -> Self:
        loaded = load_autoencoder(path, weights)
        source = statistics
        if source is None:
            source = loaded.statistics or _published_statistics(path)
        tokenizer = cls(loaded.model, _statistics(source, loaded.model.config.latent_channels))
        tokenizer.provenance = {"converted_from": path.name}
        tokenizer.report = loaded.report
        return tokenizer

    def save_diffusers(self, path: str | Path) -> None:
        """Write the folder that `diffusers.AutoencoderKL.from_pretrained` reads.

        Its latents are the raw ones; the statistics are in its configuration, as `latents_mean` and `latents_std`, or
        as `scaling_factor` and `shift_factor` where all channels share them.

        Raises:
            UserError: diffusers cannot build such an autoencoder.
        """
        folder = Path(path)
        config = diffusers_config(self.autoencoder.config, self.statistics)
        names = to_diffusers_names(self.autoencoder.state_dict(), len(self.autoencoder.config.widths))
        (folder / files.CONFIG).unlink(missing_ok=True)  # first: it must not describe weights of another
        files.write_tensors(folder / files.DIFFUSERS_WEIGHTS[0], names)
        files.write_json(folder / files.CONFIG, config)

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
            statistics: Statistics of its latents; by default from its configuration.

        Raises:
            UserError: It has parts that our autoencoder does not have.
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
        trained = "\n".join(f"- {key}: {value}" for key, value in self.provenance.items())
        count = f" over {self.statistics.count:,} images" if self.statistics.count else ""
        return (
            "---\nlibrary_name: vavae\ntags: [image-tokenizer, autoencoder-kl]\n---\n\n"
            f"# Visual tokenizer f{self.factor} d{config.latent_channels}\n\n"
            f"Latent statistics{count} are in `{files.STATISTICS}`; "
            "`Tokenizer.encode` and `.decode` apply them.\n\n"
            "```python\nimport vavae\n\n"
            'tokenizer = vavae.Tokenizer.from_pretrained("this folder or its hub id")\n'
            "latents = tokenizer.encode(images)  # images: (B, 3, H, W) in [-1, 1]\n"
            "images = tokenizer.decode(latents)\n```\n" + (f"\n## Training\n\n{trained}\n" if trained else "")
        )


def device_only(device: torch.device | str) -> torch.device:
    """Return a device, and refuse a type, which torch's `to` would take as well.

    Raises:
        UserError: It is a type, or not the name of a device.
    """
    if isinstance(device, torch.dtype):
        raise UserError(f"to: must be a device, got {device}; from_pretrained takes dtype")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device must be cpu, cuda, mps or another device of torch, got {device!r}") from error


def _published_statistics(path: Path) -> Path:
    """Return the file of statistics in a published folder.

    Raises:
        UserError: There is none, or the checkpoint is a single file.
    """
    if (found := statistics_file(path)) is not None:
        return found
    raise UserError(
        f"{path}: comes without the statistics of its latents, which normalization needs: pass statistics, either the "
        f"published latents_stats.pt or the folder that 'vavae encode --tokenizer {path}' writes; or, with "
        "'vavae convert', the model's --scaling_factor and --shift_factor"
    )


def _statistics(source: StatisticsSource | Literal["identity"], channels: int) -> LatentStatistics:
    if source == "identity":
        return LatentStatistics(torch.zeros(channels), torch.ones(channels))
    return read_statistics(source)
