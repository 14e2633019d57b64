"""`Tokenizer`: an autoencoder with the statistics of its latents, as one object."""

from pathlib import Path
from typing import Any, Literal, Self, Unpack

import torch
from torch import Tensor, nn

from vavae.checkpoints import folder as files
from vavae.checkpoints.diffusers_autoencoder import (
    check_diffusers_config,
    diffusers_config,
    diffusers_statistics,
    from_diffusers_names,
    to_diffusers_names,
)
from vavae.checkpoints.folder import HubOptions
from vavae.checkpoints.loading import build, load_autoencoder, open_checkpoint
from vavae.checkpoints.locations import hub_id, known_tokenizer, resolve, resolve_statistics
from vavae.checkpoints.published import LoadReport, Weights
from vavae.checkpoints.reading import check_utf8
from vavae.checkpoints.shapes import infer_autoencoder
from vavae.checkpoints.statistics import read_statistics, scaling_statistics, statistics_file
from vavae.config import to_plain
from vavae.data.transforms import Images, as_images
from vavae.errors import UserError
from vavae.extras import require_extra
from vavae.io.files import write_json
from vavae.io.hashing import digest, tensor_digest, weights_fingerprint
from vavae.models.diffusers.representation import from_diffusers as from_diffusers_rae
from vavae.models.diffusers.representation import to_diffusers as to_diffusers_rae
from vavae.models.representation import (
    TEACHER,
    Autoencoder,
    RepresentationAutoencoder,
    RepresentationConfig,
    saved_part,
)
from vavae.models.representation_files import load_published, load_representation
from vavae.models.saved import SavedModel
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics
from vavae.version import __version__

StatisticsSource = LatentStatistics | str | Path


class Tokenizer(SavedModel):
    """Images in [-1, 1] ⇄ normalized latents.

    Args:
        autoencoder: The network; it is put in eval mode.
        statistics: Mean and standard deviation of its latents, per channel, or per channel and position.
        provenance: Facts about the training, for the model card.

    Attributes:
        report: The parts of a published checkpoint that were loaded and left out; None for other forms.
    """

    _pipeline_tag = "image-to-image"

    def __init__(
        self, autoencoder: Autoencoder, statistics: LatentStatistics, provenance: dict[str, Any] | None = None
    ) -> None:
        if statistics.channels != autoencoder.latent_channels:
            raise UserError(
                f"latent statistics of {statistics.channels} channels do not fit an autoencoder "
                f"with {autoencoder.latent_channels}"
            )
        own = autoencoder.latent_grid
        if own is not None and statistics.grid not in (None, own):
            needed, got = ("{} x {}".format(*grid) for grid in (own, statistics.grid or own))
            raise UserError(f"latent statistics must be per channel or of {needed} positions, got {got}")
        self.autoencoder = autoencoder.eval()
        self.statistics = statistics
        self.provenance = provenance or {}
        self.report: LoadReport | None = None

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.autoencoder.latent_channels

    @property
    def latent_grid(self) -> tuple[int, int] | None:
        """The only height and width of a latent; None if all are possible."""
        return self.autoencoder.latent_grid or self.statistics.grid

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return self.autoencoder.factor

    @property
    def config(self) -> AutoencoderConfig | RepresentationConfig:
        """Configuration of the autoencoder."""
        return self.autoencoder.config

    @property
    def _tags(self) -> tuple[str, ...]:
        kind = "autoencoder-kl" if isinstance(self.autoencoder, AutoencoderKL) else "representation-autoencoder"
        return "image-tokenizer", kind

    @property
    def _networks(self) -> tuple[nn.Module, ...]:
        return (saved_part(self.autoencoder),)

    @property
    def _moved(self) -> tuple[nn.Module, ...]:
        return (self.autoencoder,)  # with its teacher, which keeps its type

    def fingerprint(self) -> str:
        """Return a hash of weights, configuration and statistics of the latents, in hexadecimal."""
        statistics = {name: tensor_digest(value) for name, value in self.statistics.to_dict().items()}
        shape = self._shape()
        # An option that is off changes nothing, so new ones leave former fingerprints valid.
        if shape.get("autoencoder", {}).get("unshuffle") == 1:
            del shape["autoencoder"]["unshuffle"]
        return digest(weights_fingerprint(self.autoencoder), *shape.values(), statistics)

    def _shape(self) -> dict[str, Any]:
        """Return the keys of `config.json` that describe the autoencoder."""
        if isinstance(self.autoencoder, RepresentationAutoencoder):
            return self.autoencoder.description()
        return {"autoencoder": to_plain(self.autoencoder.config)}

    def __repr__(self) -> str:
        return f"Tokenizer(f{self.factor} d{self.latent_channels}, {self.device})"

    @torch.no_grad()  # not inference mode, whose tensors cannot be trained on
    def encode(self, images: Images, mode: Literal["mean", "sample"] = "mean", noise: Tensor | None = None) -> Tensor:
        """Encode images as normalized latents (B, C, H/f, W/f).

        Args:
            images: (B, 3, H, W) in [-1, 1], or another form of `vavae.data.as_images`: Pillow images, numpy pixels, or
                a list of either.
            mode: The mean of the posterior, or a sample of it; a representation autoencoder has no posterior, and
                ignores mode and noise.
            noise: Standard normal noise in the shape of the latents, for a sample.

        Raises:
            UserError: Images are not in [-1, 1] or have an unknown form, the mode is unknown, or a mean has noise.
        """
        images = as_images(images)
        if mode not in ("mean", "sample"):
            raise UserError(f"mode must be 'mean' or 'sample', got {mode!r}")
        if noise is not None and mode == "mean":
            raise UserError("noise must be None for mode 'mean', which has none; mode 'sample' takes it")
        latents = self.autoencoder.encode(images.to(self.device))
        if not isinstance(latents, Tensor):
            latents = latents.mode() if mode == "mean" else latents.sample(noise=noise)
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
        raw = self.statistics.denormalize(latents.to(self.device, torch.float32))
        return self.autoencoder.decode(raw).float().clamp(-1.0, 1.0)

    def reconstruct(self, images: Images) -> Tensor:
        """Encode images (see `encode`) and decode the mean of the posterior: (B, 3, H, W) in [-1, 1]."""
        return self.decode(self.encode(images))

    def save_pretrained(
        self, path: str | Path, dtype: torch.dtype | None = None, *, with_teacher: bool | None = None
    ) -> None:
        """Write the folder that `from_pretrained` reads: configuration, weights, statistics, model card.

        Args:
            path: The folder.
            dtype: Type of the stored weights, for example `torch.float16`; None keeps their own. They are widened
                when they are read. Statistics keep their type.
            with_teacher: Store the teacher of a representation autoencoder too. By default its name and sha256 only,
                and its files if it was read from files of this tokenizer, where its name does not find it.

        Raises:
            UserError: A weight is too large for `dtype`, or the autoencoder has no teacher.
        """
        folder, autoencoder = Path(path), self.autoencoder
        config = {
            "kind": "tokenizer",
            "vavae_version": __version__,
            **self._shape(),
            "image_range": [-1.0, 1.0],
            "provenance": to_plain(self.provenance),
        }
        if with_teacher and not isinstance(autoencoder, RepresentationAutoencoder):
            raise UserError("with_teacher must be false for an autoencoder without a teacher, got true")
        if with_teacher is None:
            with_teacher = isinstance(autoencoder, RepresentationAutoencoder) and autoencoder.keep_teacher
        weights = files.state_dict_for_saving(saved_part(autoencoder), dtype)
        with files.write_model_folder(folder, config):
            if with_teacher and isinstance(autoencoder, RepresentationAutoencoder):
                autoencoder.save_teacher(folder / TEACHER)
            files.write_tensors(folder / files.WEIGHTS, weights, "tokenizer")
            files.write_tensors(folder / files.STATISTICS, self.statistics.to_dict())
            self.card().save(folder / files.CARD)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: torch.device | str = "cpu",
        *,
        statistics: StatisticsSource | Literal["identity"] | None = None,
        teacher: str | None = None,
        weights: Weights = "auto",
        heads: int | None = None,
        dtype: torch.dtype | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Read a tokenizer, local or from the hub: ours, a published checkpoint, or an autoencoder of diffusers.

        Args:
            path_or_hub_id: A folder of `save_pretrained`, of a tokenizer or a generator; a published file (.pt, .pth,
                .ckpt, .safetensors), or its folder; a folder of diffusers, of an autoencoder or a pipeline; a short
                name of `vavae models`, also of a generator, whose tokenizer is read; or a repository of the hub with
                any of these, `owner/name` or `owner/name@revision`.
            device: Device of the network.
            statistics: Statistics of the latents instead of the ones in the folder: a `LatentStatistics`,
                `latents_stats.pt`, RAE's `stat.pt`, a folder of latents, or "identity" for raw latents. Published
                files need it.
            teacher: Name or folder of the encoder of a published decoder (RAE), such as "dinov2-registers-base".
            weights: Which weights of a checkpoint with several sets: averaged ("ema"), not averaged ("model"), or the
                name of a set; "auto" prefers averaged ones.
            heads: Number of attention heads of a published decoder, if its size is none of the published ones.
            dtype: Type of the weights and of the computation; float16 and bfloat16 need half the memory. Returned
                images and latents are float32. None is float32.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` and `subfolder`, as in
                `huggingface_hub` (see `HubOptions`).

        Raises:
            UserError: Names the file or key that is missing or wrong; or the statistics are missing.
        """
        path = resolve(path_or_hub_id, "tokenizer", **hub)
        files.refuse_unused(path, weights=weights, teacher=teacher, heads=heads)
        if teacher is None and (known := known_tokenizer(path_or_hub_id)) is not None:
            teacher = known.teacher or None
        autoencoder, own, provenance, report = _load(path, weights, teacher, heads)
        source = statistics
        if source is None:
            source = own or resolve_statistics(path_or_hub_id, **hub) or _published_statistics(path, path_or_hub_id)
        if source == "identity":
            source = scaling_statistics(autoencoder.latent_channels, 1.0)
        if "converted_from" in provenance and (repository := hub_id(path_or_hub_id, "tokenizer")):
            provenance = {"converted_from": repository}
        tokenizer = cls(autoencoder, read_statistics(source), provenance)
        tokenizer.report = report
        return tokenizer.to(device, dtype)

    def save_diffusers(self, path: str | Path) -> None:
        """Write the folder that `AutoencoderKL.from_pretrained` or `AutoencoderRAE.from_pretrained` of diffusers reads.

        The latents of an `AutoencoderKL` are not normalized. The statistics are in its configuration, as
        `latents_mean` and `latents_std`, or as `scaling_factor` and `shift_factor` if all channels share them. An
        `AutoencoderRAE` holds the teacher too, under the names of the installed transformers.

        Raises:
            UserError: diffusers cannot build such an autoencoder.
        """
        folder = Path(path)
        config, tensors = self._for_diffusers()
        check_utf8(folder)
        (folder / files.CONFIG).unlink(missing_ok=True)  # first: an old one would describe other weights
        files.write_tensors(folder / files.DIFFUSERS_WEIGHTS[0], tensors)
        write_json(folder / files.CONFIG, config)

    def to_diffusers(self) -> Any:
        """Return diffusers' `AutoencoderKL` or `AutoencoderRAE` with the same weights, same device, in eval mode.

        Raises:
            UserError: diffusers is not installed, or cannot build such an autoencoder.
        """
        require_extra("diffusers", "to_diffusers")
        import diffusers

        config, tensors = self._for_diffusers()
        model = getattr(diffusers, config["_class_name"]).from_config(config)
        model.load_state_dict(tensors)
        return model.to(self.device).eval()

    def _for_diffusers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return configuration and weights of the autoencoder in diffusers."""
        if isinstance(self.autoencoder, RepresentationAutoencoder):
            return to_diffusers_rae(self.autoencoder, self.statistics)
        own = self.autoencoder
        names = to_diffusers_names(own.state_dict(), len(own.config.widths))
        return diffusers_config(own.config, self.statistics), names

    @classmethod
    def from_diffusers(cls, autoencoder: Any, statistics: StatisticsSource | None = None) -> Self:
        """Return a tokenizer with the weights of an `AutoencoderKL` or `AutoencoderRAE` of diffusers.

        Args:
            autoencoder: The network.
            statistics: Statistics of its latents; its own by default.

        Raises:
            UserError: It has other parts than our autoencoder.
        """
        name = type(autoencoder).__name__
        model: Autoencoder
        if name == files.DIFFUSERS_RAE:
            model, own, _ = from_diffusers_rae(autoencoder.config, autoencoder.state_dict(), name)
        elif name == "AutoencoderKL":
            tensors, _ = from_diffusers_names(autoencoder.state_dict(), name)
            shape = infer_autoencoder(tensors, name)
            check_diffusers_config(autoencoder.config, shape, name)
            model = build(AutoencoderKL, shape, tensors, name)
            own = diffusers_statistics(autoencoder.config, shape.latent_channels, name)
        else:
            raise UserError(
                f"autoencoder must be an AutoencoderKL or AutoencoderRAE, got {name}; save it and read its folder"
            )
        return cls(model, own if statistics is None else read_statistics(statistics)).to(autoencoder.device)

    def _description(self, source: str, library: str) -> str:
        count = f" over {self.statistics.count:,} images" if self.statistics.count else ""
        return (
            f"# Visual tokenizer f{self.factor} d{self.latent_channels}\n\n"
            f"Latent statistics{count} are in `{files.STATISTICS}`; "
            "`Tokenizer.encode` and `.decode` apply them.\n\n"
            "```python\nimport vavae\n\n"
            f'tokenizer = vavae.Tokenizer.from_pretrained("{source}")\n'
            "latents = tokenizer.encode(images)  # images: (B, 3, H, W) in [-1, 1]\n"
            "images = tokenizer.decode(latents)\n```\n"
        )


def _load(
    path: Path, weights: Weights, teacher: str | None, heads: int | None
) -> tuple[Autoencoder, LatentStatistics | None, dict[str, Any], LoadReport | None]:
    """Return the autoencoder at a path of any form, its statistics if it has some, its provenance and report."""
    if (found := load_representation(path)) is not None:
        return found
    if files.form_of(path) == "checkpoint" and open_checkpoint(path, weights).kind == "decoder":
        if teacher is None:
            raise UserError(
                f"{path}: holds the decoder of a representation autoencoder: pass its teacher, such as "
                "dinov2-registers-base ('vavae convert --teacher NAME')"
            )
        return load_published(path, teacher, weights, heads)
    for name, value in (("teacher", teacher), ("heads", heads)):
        if value is not None:
            raise UserError(f"{path}: {name} is for decoders of representation autoencoders, got {value}")
    loaded = load_autoencoder(path, weights)
    return loaded.model, loaded.statistics, loaded.provenance, loaded.report


def _published_statistics(path: Path, name: str | Path) -> Path:
    """Return the file of statistics in a published folder; `name` is how the user names it.

    Raises:
        UserError: It is missing, or the checkpoint is a single file.
    """
    if (found := statistics_file(path)) is not None:
        return found
    raise UserError(
        f"{name}: comes without the statistics of its latents, which normalization needs: pass statistics, either the "
        f"published latents_stats.pt or the folder that 'vavae encode --tokenizer {name}' writes; or, with "
        "'vavae convert', the model's --scaling_factor and --shift_factor"
    )
