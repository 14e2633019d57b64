"""`Generator`: a diffusion transformer with the tokenizer it was trained on and its sampling defaults."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack, get_args

import torch
from torch import Tensor, nn

from vavae import rng
from vavae.checkpoints import folder as files
from vavae.checkpoints.folder import HubOptions
from vavae.checkpoints.loading import load_transformer
from vavae.checkpoints.locations import hub_id, known_model, options_of_tokenizer, resolve
from vavae.checkpoints.published import LoadReport, Weights
from vavae.config import to_plain
from vavae.config.image_size import Size, scale_size
from vavae.errors import UserError
from vavae.flow import (
    PathName,
    Prediction,
    SampleCallback,
    counter_noise,
    path_by_name,
    sample,
    sample_with_class_token,
)
from vavae.flow.times import shift_in_numbers
from vavae.io.hashing import digest, weights_fingerprint
from vavae.models.reading import diffusers_parts, native_parts, published_parts
from vavae.models.sampling import (
    Labels,
    OutputType,
    SamplingConfig,
    SamplingSettings,
    as_output,
    check_drawn,
    check_flow,
    label_numbers,
    latent_size,
    sample_indices,
    seed_of,
    step_bar,
)
from vavae.models.saved import SavedModel
from vavae.models.tokenizer import StatisticsSource, Tokenizer
from vavae.tokenizer import LatentStatistics
from vavae.transformer import DiTDH, DiTDHConfig, Transformer, TransformerShape
from vavae.transformer.positions import Positions
from vavae.transformer.routing import RoutingConfig
from vavae.version import __version__


class Generator(SavedModel):
    """Labels -> images.

    Args:
        transformer: The trained network; it is put in eval mode.
        tokenizer: The tokenizer whose latents it was trained on.
        statistics: The statistics that normalized those latents; the tokenizer's own by default.
        sampling: Defaults for `__call__`.
        path: The path between noise and data in the training.
        prediction: The network's output: velocity, noise or data.
        floor: Least sigma by which predicted data are divided to become a velocity.
        class_names: Names of the labels; empty if they are unknown.
        provenance: Facts about the training, for the model card.

    Attributes:
        weak_model: Weaker generator for autoguidance, set by `with_weak_model`; it is not saved.
        report: The parts of a published checkpoint that were loaded and left out; None for other forms.

    Raises:
        UserError: Transformer and tokenizer have different numbers of latent channels, the number of class names is
            another one, or path or prediction is unknown.
    """

    _pipeline_tag = "unconditional-image-generation"  # the hub has none for class labels

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        statistics: LatentStatistics | None = None,
        sampling: SamplingConfig | None = None,
        path: PathName = "linear",
        class_names: Sequence[str] = (),
        provenance: dict[str, Any] | None = None,
        prediction: Prediction = "velocity",
        floor: float = 0.0,
    ) -> None:
        channels = transformer.config.latent_channels
        if channels != tokenizer.latent_channels:
            raise UserError(
                f"a transformer for latents of {channels} channels does not fit a tokenizer "
                f"with {tokenizer.latent_channels}"
            )
        if class_names and len(class_names) != transformer.config.num_classes:
            raise UserError(f"class_names must be {transformer.config.num_classes} names, got {len(class_names)}")
        check_flow(path, prediction)
        self.transformer = transformer.eval()
        self.tokenizer = tokenizer
        if statistics is not None and not statistics.equals(tokenizer.statistics):
            self.tokenizer = Tokenizer(tokenizer.autoencoder, statistics, tokenizer.provenance)
        self.shape_for(self.image_size)  # refuses latents of another size than the tokenizer's
        self.sampling = (sampling or SamplingConfig()).for_latents(self.latent_shape)
        self.path: PathName = path
        self.prediction: Prediction = prediction
        self.floor = floor
        self.class_names = tuple(class_names)
        self.provenance = provenance or {}
        self.weak_model: Generator | None = None
        self.report: LoadReport | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes K: labels are 0 … K − 1, and K means "no label"."""
        return self.config.num_classes

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the training's latents."""
        return self.config.latent_channels, *self.config.latent_hw

    @property
    def image_size(self) -> Size:
        """Size in pixels of the training images, and of samples by default."""
        return scale_size(self.config.latent_hw, self.tokenizer.factor)

    @property
    def config(self) -> TransformerShape:
        """Configuration of the transformer."""
        return self.transformer.config

    @property
    def _tags(self) -> tuple[str, ...]:
        return "image-generation", "flow-matching", type(self.transformer).__name__

    @property
    def _networks(self) -> tuple[nn.Module, ...]:
        return self.transformer, *self.tokenizer._networks

    @property
    def _moved(self) -> tuple[nn.Module, ...]:
        weak = () if self.weak_model is None else self.weak_model._moved
        return self.transformer, *self.tokenizer._moved, *weak

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of the transformer, and of a weak model's."""
        weak = [] if self.weak_model is None else self.weak_model.blocks
        return [*self.transformer.blocks, *weak]

    def compile(self) -> Self:
        """Compile the blocks of the transformer, and of a weak model's, at their next call; return the generator.

        One graph serves all blocks and every batch of more than one image. Samples are equal up to rounding.
        """
        for block in self.blocks:
            block.compile(dynamic=True)
        return self

    def with_sampling(self, sampling: SamplingConfig) -> Self:
        """Return a generator with the same networks and other defaults; all settings are replaced, guidance too."""
        other = copy.copy(self)
        other.sampling = sampling
        return other

    def with_weak_model(self, weak_model: "Generator") -> Self:
        """Return a generator with the same networks, whose guidance is autoguidance with a weaker generator.

        Raises:
            UserError: The two differ in latents, statistics, flow or classes, or it is not a Generator.
        """
        if not isinstance(weak_model, Generator):
            raise UserError(
                f"weak_model must be a Generator, got {weak_model!r}: read it with Generator.from_pretrained"
            )
        pairs = {
            "latent shape": (weak_model.latent_shape, self.latent_shape),
            "number of classes": (weak_model.num_classes, self.num_classes),
            "class_token": (weak_model.config.class_token, self.config.class_token),
            **{name: (getattr(weak_model, name), getattr(self, name)) for name in ("path", "prediction", "floor")},
        }
        if weak_model.class_names and self.class_names:
            pairs["class names"] = (weak_model.class_names, self.class_names)
        for name, (weak, own) in pairs.items():
            if weak != own:
                raise UserError(f"weak_model must have the generator's {name} {str(own)[:60]}, got {str(weak)[:60]}")
        if not weak_model.tokenizer.statistics.equals(self.tokenizer.statistics):
            raise UserError("weak_model must have the generator's latent statistics, got other means or deviations")
        other = copy.copy(self)
        other.weak_model = weak_model
        return other

    def fingerprint(self) -> str:
        """Return a hash of transformer, path, prediction and tokenizer, in hexadecimal."""
        # An option that is off changes nothing, so new ones leave former fingerprints valid.
        off = (None, to_plain(RoutingConfig()))
        shape = {name: value for name, value in to_plain(self.config).items() if value not in off}
        own: list[Any] = [weights_fingerprint(self.transformer), shape, self.path]
        # So that features stored before there were other predictions and floors stay valid:
        own += [value for value, usual in ((self.prediction, "velocity"), (self.floor, 0.0)) if value != usual]
        return digest(*own, self.tokenizer.fingerprint())

    def __repr__(self) -> str:
        latents = "x".join(map(str, self.latent_shape))
        return f"Generator({self.config.summary}, {self.num_classes} classes, latents {latents}, {self.device})"

    def noise(self, indices: Sequence[int], seed: int = 0, size: Size | None = None) -> Tensor:
        """Return the starting noise (B, C, h, w) of samples, a function of (seed, index, size).

        Args:
            indices: Number of each sample.
            seed: Seed of all samples.
            size: Size of the images in pixels, one number or (height, width); the training's by default.

        Raises:
            UserError: See `latent_size`.
        """
        return rng.normal(seed, "sample", list(indices), self.shape_for(size), self.device)

    def class_noise(self, indices: Sequence[int], seed: int = 0) -> Tensor | None:
        """Return the starting noise (B, D) of the class tokens of samples; None for a transformer without one."""
        channels = self.config.class_token
        if channels is None:
            return None
        return rng.normal(seed, "sample class token", list(indices), (channels,), self.device)

    def shape_for(self, size: Size | None) -> tuple[int, int, int]:
        """Return channels, height and width of the latents of images of a size; the training's by default.

        Raises:
            UserError: See `latent_size`.
        """
        if size is None:
            return self.latent_shape
        height, width = latent_size(size, self.tokenizer.factor, self.config.patch_size, self.tokenizer.latent_grid)
        return self.latent_shape[0], height, width

    def check(self, labels: Sequence[int], size: Size | None = None, sampling: SamplingConfig | None = None) -> None:
        """Check labels, size and guidance.

        Raises:
            UserError: A label is out of range, a size is not a multiple of the patches, or see
                `SamplingConfig.check_for`.
        """
        wrong = [label for label in labels if not 0 <= label <= self.num_classes]
        if wrong:
            raise UserError(
                f"labels must be from 0 to {self.num_classes}, got {wrong[0]} ({self.num_classes} means no label)"
            )
        self.shape_for(size)
        if sampling is not None:
            sampling.check_for(self.config, self.weak_model is not None)

    def latents(
        self,
        labels: Labels,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        size: Size | None = None,
        weak_model: "Generator | None" = None,
        callback: SampleCallback | None = None,
        progress: bool = False,
        class_noise: Tensor | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Tensor:
        """Return normalized latents (B, C, h, w), float32, one per label; see `__call__`.

        `class_noise` (B, D) replaces the noise of a transformer's class token.
        """
        labels, seed = label_numbers(labels, self.class_names), seed_of(seed, generator)
        indices = sample_indices(indices, len(labels), seed)
        sampling = self.sampling.changed(**settings)
        guided = self if weak_model is None else self.with_weak_model(weak_model)
        if weak_model is not None and sampling.guidance is None:
            raise UserError("guidance_scale must not be 1 with weak_model, which then has no effect")
        guided.check(labels, size, sampling)
        if (weak := guided.weak_model) is not None and weak.dtype not in (torch.float32, self.dtype):
            raise UserError(f"weak_model must have the generator's dtype {self.dtype} or float32, got {weak.dtype}")
        shape = (len(labels), *self.shape_for(size))
        noise = self.noise(indices, seed, size) if noise is None else torch.as_tensor(noise)
        if noise.shape != shape:
            raise UserError(f"noise must have the shape {shape}, got {tuple(noise.shape)}")
        if not bool(noise.isfinite().all()):
            raise UserError("noise must be finite, got NaN or infinity")
        class_noise = self.class_noise(indices, seed) if class_noise is None else class_noise
        draw: Callable[..., Tensor] = sample
        if class_noise is not None:
            draw = partial(sample_with_class_token, class_noise=class_noise)
        # Weights in half precision are also computed with in it; norms, positions and the solver stay in float32.
        half = self.dtype in (torch.float16, torch.bfloat16)
        with (
            torch.autocast(self.device.type, self.dtype) if half else nullcontext(),
            step_bar(sampling, callback) if progress else nullcontext(callback) as on_step,
        ):
            drawn = draw(
                self.transformer,
                noise.to(self.device, torch.float32),
                torch.tensor(labels, dtype=torch.int64, device=self.device),
                solver=sampling.solver,
                steps=sampling.steps,
                shift=shift_in_numbers(sampling.shift, shape[1:]),
                end=sampling.end,
                guidance=sampling.guidance,
                weak_model=guided.weak_model and guided.weak_model.transformer,
                path=path_by_name(self.path, self.floor),
                prediction=self.prediction,
                step_noise=counter_noise(seed, indices),
                callback=on_step,
            )
        check_drawn(drawn, indices, sampling)
        return drawn

    def __call__(
        self,
        labels: Labels,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        *,
        output_type: OutputType = "pil",
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        size: Size | None = None,
        weak_model: "Generator | None" = None,
        callback: SampleCallback | None = None,
        progress: bool = False,
        **settings: Unpack[SamplingSettings],
    ) -> Any:
        """Draw images, one per label.

        Args:
            labels: Class of each image, its number or one of `class_names`; `num_classes` means no label. A list, a
                tensor or an array; a single label makes one image.
            seed: Seed of the noise.
            indices: Number of each sample under this seed, 0, 1, 2, … by default. Sample i is the same image in every
                batch, up to rounding; except with "dopri5", which chooses its steps for a batch.
            output_type: "pil" for a list of Pillow images; "np" for pixels (B, H, W, 3) uint8; "pt" for a tensor
                (B, 3, H, W) float32 in [-1, 1]. `Tokenizer.encode` takes all three.
            generator: Draws the seed, so that each call makes other images.
            noise: Standard normal noise (B, C, h, w) to start from, instead of noise from `seed` and `indices`, which
                still give the noise of a class token.
            size: Size in pixels, one number or (height, width); the training's by default. The transformer's
                `positions` place other grids (see `vavae.transformer.positions`, and `from_pretrained`).
            weak_model: A weaker generator on the same latents for autoguidance (arXiv 2406.02507), on the same device.
            callback: Called at the start of each step as callback(step, t, x, data): x are the latents at time t, and
                data the current estimate of the result, both (B, C, h, w). An exception ends the sampling.
            progress: Show a bar of the steps.
            settings: Settings of `SamplingConfig` by name: steps, guidance_scale, … One that is left out keeps the
                generator's own value, `generator.sampling`.

        Raises:
            UserError: See `check`; or the noise has another shape, or a setting or output type does not exist.
            RunError: A sample or its image is not finite.
        """
        if output_type not in get_args(OutputType):
            raise UserError(f"output_type must be one of {', '.join(get_args(OutputType))}, got {output_type!r}")
        latents = self.latents(
            labels,
            seed,
            indices,
            generator=generator,
            noise=noise,
            size=size,
            weak_model=weak_model,
            callback=callback,
            progress=progress,
            **settings,
        )
        return as_output(self.tokenizer.decode(latents), output_type)

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `from_pretrained` reads, with the tokenizer in it.

        Args:
            path: The folder.
            dtype: Type of the stored weights of both networks; see `Tokenizer.save_pretrained`.

        Raises:
            UserError: A weight is too large for `dtype`.
        """
        config = {
            "kind": "generator",
            "vavae_version": __version__,
            "transformer": to_plain(self.config),
            "sampling": to_plain(self.sampling.for_latents(self.latent_shape)),
            "tokenizer": "tokenizer",
            "statistics": f"tokenizer/{files.STATISTICS}",
            "path": self.path,
            "prediction": self.prediction,
            **({"floor": self.floor} if self.floor else {}),
            **({"architecture": "DiTDH"} if isinstance(self.transformer, DiTDH) else {}),
            "class_names": list(self.class_names),
            "provenance": to_plain(self.provenance),
        }
        # Both may raise: before the folder changes.
        weights = files.state_dict_for_saving(self.transformer, dtype)
        files.state_dict_for_saving(self.tokenizer.autoencoder, dtype)
        with files.write_model_folder(folder := Path(path), config):
            self.tokenizer.save_pretrained(folder / "tokenizer", dtype)
            files.write_tensors(folder / files.WEIGHTS, weights, "generator")
            self.card().save(folder / files.CARD)

    def save_diffusers(self, path: str | Path) -> None:
        """Write a folder that `diffusers.DiffusionPipeline.from_pretrained` runs, with or without this package.

        `vavae.models.diffusers.pipeline` explains its files.

        Raises:
            UserError: diffusers cannot build such an autoencoder, or the transformer does not predict velocities.
        """
        from vavae.models.diffusers.pipeline import write_pipeline

        sampling = to_plain(self.sampling.for_latents(self.latent_shape))
        write_pipeline(
            Path(path), self.transformer, self.tokenizer, sampling, self.path, self.prediction, self.class_names
        )
        self.card(library="diffusers").save(Path(path, files.CARD))

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        device: torch.device | str = "cpu",
        *,
        tokenizer: Tokenizer | str | Path | None = None,
        statistics: StatisticsSource | None = None,
        weights: Weights = "auto",
        heads: int | None = None,
        path: PathName | None = None,
        prediction: Prediction | None = None,
        positions: Positions | None = None,
        dtype: torch.dtype | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Read a generator, local or from the hub: ours, a published checkpoint, or one exported for diffusers.

        Args:
            path_or_hub_id: A folder of `save_pretrained` or `save_diffusers`; a published file (.pt, .pth, .ckpt,
                .safetensors), or its folder; a short name of `vavae models`; or a repository of the hub with any of
                these, `owner/name` or `owner/name@revision`.
            device: Device of both networks.
            tokenizer: The tokenizer of the transformer's training, or a path to it in any form that
                `Tokenizer.from_pretrained` reads. Published transformers need it; short names know it, and other
                folders contain it.
            statistics: The statistics that normalized the latents of the training, for example `latents_stats.pt`. By
                default the file next to the transformer, else the tokenizer's statistics. A `latent_multiplier` in a
                published configuration is applied on top.
            weights: Which weights of a checkpoint with several sets: averaged ("ema"), not averaged ("model"), or the
                name of a set; "auto" prefers averaged ones.
            heads: Number of attention heads of a published transformer, if its shapes do not show it.
            path: Path of a published transformer, if its file does not record it; linear by default.
            prediction: Prediction of a published transformer, if its file does not record it; velocity by default.
            positions: How the transformer places other grids than its own; by default as saved, and "recompute" for
                published ones. "interpolate" suits weights that were trained on one grid only.
            dtype: Type of the weights of both networks and of the computation; float16 and bfloat16 need half the
                memory. Returned images and latents are float32. None is float32. A `Tokenizer` object keeps its type.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` and `subfolder`, as in
                `huggingface_hub` (see `HubOptions`), for `path_or_hub_id`; a short name's tokenizer takes all but
                `revision` and `subfolder`.

        Raises:
            UserError: Names the file or key that is missing or wrong, or the argument that is needed.
        """
        folder = resolve(path_or_hub_id, "generator", **hub)
        form = files.refuse_unused(folder, weights=weights, heads=heads, path=path, prediction=prediction)
        if form == "generator":
            parts, report = native_parts(folder, tokenizer, statistics)
        elif form == "checkpoint":
            known, own = known_model(path_or_hub_id), tokenizer
            if known is not None:
                path, prediction = path or known.path, prediction or known.prediction
                own = tokenizer or Tokenizer.from_pretrained(known.tokenizer, **options_of_tokenizer(hub))
            loaded = load_transformer(folder, weights, heads)
            parts, report = published_parts(folder, loaded, own, statistics, path, prediction, known)
        elif form == "pipeline":
            parts, report = diffusers_parts(folder, tokenizer, statistics)
        else:
            raise UserError(f"{folder}: holds {files.describe_form(form)}, not a generator")
        generator = cls(**parts)
        generator.report = report
        if positions is not None:
            if isinstance(generator.config, DiTDHConfig):
                raise UserError("positions must be null for a DiT^DH, which resizes its own table")
            generator.transformer.config = dataclasses.replace(generator.config, positions=positions)
        networks = generator._networks[:1] if isinstance(tokenizer, Tokenizer) else generator._networks
        files.hold_in(dtype, *networks)
        if "converted_from" in generator.provenance and (repository := hub_id(path_or_hub_id)):
            generator.provenance["converted_from"] = repository
        return generator.to(device)

    def _parts(self) -> list[SavedModel]:
        return [self, self.tokenizer]

    def _description(self, source: str, library: str) -> str:
        name = type(self.transformer).__name__
        title = f"# {name}, {self.transformer.config.summary}, {self.num_classes} classes\n\n"
        if library == "diffusers":
            from vavae.models.diffusers.pipeline import USAGE

            return title + USAGE.format(source)
        return (
            f"{title}The tokenizer and the statistics of its latents are in `tokenizer/`.\n\n"
            "```python\nimport vavae\n\n"
            f'generator = vavae.Generator.from_pretrained("{source}")\n'
            "images = generator(labels=[0, 1], seed=0)  # Pillow images\n```\n"
        )
