"""Stage 2: train a diffusion transformer on latents (LightningDiT, arXiv 2501.01423)."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vavae import rng
from vavae.config.image_size import Size, format_size, scale_size
from vavae.data import BatchLoader, IndexStream, LatentDataset, ResidentLatents, to_uint8
from vavae.data.found import Found
from vavae.data.images import report
from vavae.device import autocast, fits_on, resolve_device, resolve_precision, to_device
from vavae.errors import UserError
from vavae.evaluation.validation import FrechetConfig, SampleDistance, check_rhythm, mean_terms, shard_of
from vavae.flow import FlowConfig, flow_matching_loss, path_by_name
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.models.sampling import choose_labels
from vavae.report.images import image_grid
from vavae.stages.encode import fingerprint
from vavae.stages.initial import load_initial_transformer
from vavae.training.activation_checkpointing import Recomputation, apply_activation_checkpointing
from vavae.training.compile import Compilation, compile_network
from vavae.training.float8 import use_float8
from vavae.training.memory import Chunks
from vavae.training.optimizer import OptimizerConfig
from vavae.training.parallel import World
from vavae.training.run_folder import open_run, stream_seed
from vavae.training.throughput import StepWork, count_flops, count_peak_bytes
from vavae.training.trainer import TrainingConfig, TrainingTask
from vavae.transformer import LightningDiT, LightningDiTConfig
from vavae.transformer.sizes import parse_size


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the transformer: settings of `LightningDiTConfig`, which declares their defaults.

    The latents give latent size, channels and classes.

    Attributes:
        size: S, B, L, XL, 1p0B or 1p6B with /1 or /2 for the patch size.
        width: Channels of a token (the paper's hidden_size); null is the value of `size`, here and below.
        depth: Number of blocks.
        heads: Attention heads (the paper's num_heads).
        patch_size: Side of the square of latent pixels that makes one token.
        swiglu: SwiGLU instead of a GELU MLP.
        rope: Rotate queries and keys by position.
        rmsnorm: RMSNorm instead of LayerNorm.
        qk_norm: Norm queries and keys.
        adaln_shift: Condition blocks by scale, shift and gate; without it by scale and gate.
        label_dropout: Probability that a label is replaced by "no label" in training; guidance needs it.
        activation_checkpointing: Which activations training recomputes in the backward pass: `none`; `selective`, all
            except matrix products and attention; or `full`, each block.
    """

    size: str = "XL/1"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch_size: int | None = None
    swiglu: bool = LightningDiTConfig.swiglu
    rope: bool = LightningDiTConfig.rope
    rmsnorm: bool = LightningDiTConfig.rmsnorm
    qk_norm: bool = LightningDiTConfig.qk_norm
    adaln_shift: bool = LightningDiTConfig.adaln_shift
    label_dropout: float = LightningDiTConfig.label_dropout
    activation_checkpointing: Recomputation = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"label_dropout must be from 0 to 1, got {self.label_dropout}")
        parse_size(self.size)  # refused when the recipe is read

    def resolve(self, latent_channels: int, latent_size: Size, num_classes: int) -> LightningDiTConfig:
        """Return the complete shape for given latents.

        Raises:
            UserError: The size does not exist, or the numbers do not fit together.
        """
        shared = {field.name for field in fields(LightningDiTConfig)}
        given = {name: value for name, value in vars(self).items() if name in shared and value is not None}
        return LightningDiTConfig.from_size(
            self.size, latent_channels=latent_channels, latent_size=latent_size, num_classes=num_classes, **given
        )


@dataclass(frozen=True)
class Config:
    """Train a diffusion transformer.

    Attributes:
        output: Run folder; a second call with the same recipe resumes the run.
        latents: Folder that `vavae encode` wrote.
        tokenizer: Folder or hub id of the tokenizer that made the latents; the generator's folder gets a copy.
        transformer: Shape of the network.
        initial: Starting weights: a generator's folder or hub id, the run folder of an earlier training, or a
            published checkpoint; null starts from random weights. Width, depth, heads and switches must be the same;
            layers that depend on classes, channels, patch or latent size are new if these differ.
        flow: Path, prediction and times of flow matching.
        normalization: Whose statistics normalize the latents: the statistics stored with the latents, or the
            tokenizer's, for example SD-VAE's one scaling factor.
        flip: Use the latents of mirrored images for half of the samples, if the folder has them.
        sampling: Defaults that are saved with the generator.
        optimizer: Optimizer of the transformer.
        training: How long and how.
        compile: Compile with torch.compile: `true` compiles the transformer as one graph; `blocks` compiles each block,
            which takes a fraction of the time and works with `training.parallel shard`.
        fp8: Matrix products of the blocks in fp8 (extra `fp8`; Ada, Hopper or newer GPUs).
        latents_on_device: Keep all latents in the GPU's memory; null does so if they fit into half of the free memory.
        validation_latents: Folder of latents for the validation loss; null measures none.
        frechet: Fréchet distance of few samples, every `training.validation_images`.
    """

    output: str = "runs/generator"
    latents: str = "runs/latents"
    tokenizer: str = "runs/tokenizer/tokenizer"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    initial: str | None = None
    flow: FlowConfig = field(default_factory=FlowConfig)
    normalization: Literal["latents", "tokenizer"] = "latents"
    flip: bool = True
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(images=81_920_000, batch_size=1024, ema_decay=0.9999)
    )
    compile: Compilation = False
    fp8: bool = False
    latents_on_device: bool | None = None
    validation_latents: str | None = None
    frechet: FrechetConfig = field(default_factory=FrechetConfig)

    def __post_init__(self) -> None:
        check_rhythm(self.frechet.samples, self.training.validation_images)
        if self.validation_latents is not None and self.training.validation_images is None:
            raise UserError("validation_latents needs training.validation_images, the images between two measurements")
        if self.compile is True and self.training.parallel == "shard":
            # The work of FSDP2 before and after a block cannot be part of a graph.
            raise UserError("compile must be blocks with training.parallel shard, got true")
        if self.sampling.guidance is not None and self.transformer.label_dropout == 0:
            raise UserError(
                "sampling.guidance_scale must be 1 with transformer.label_dropout 0, which never trains without a "
                f"label, got {self.sampling.guidance_scale}"
            )
        if self.optimizer.kind == "muon" and self.training.parallel == "shard":
            raise UserError("optimizer.kind muon needs whole matrices: choose training.parallel replicate")


# At most this many latents are used for the validation loss.
_VALIDATION_LATENTS = 2048


@dataclass(frozen=True)
class _Batch:
    positions: Tensor  # (B,) int64
    latents: Tensor  # (B, C, h, w), normalized
    labels: Tensor  # (B,) int64


class TransformerTask(TrainingTask):
    """The training of a transformer: network, batches, loss, validation, previews."""

    averaged: Sequence[str] = ("transformer",)

    def __init__(
        self, config: Config, latents: LatentDataset, tokenizer: Tokenizer, world: World | None = None
    ) -> None:
        self.config = config
        self.world = world or World()
        self.latents = latents
        self.tokenizer = tokenizer
        self.device = resolve_device(config.training.device)
        self.precision = resolve_precision(config.training.precision, self.device)
        self.path = path_by_name(config.flow.path)
        _check_fit(config, latents, tokenizer)
        self.statistics = latents.statistics if config.normalization == "latents" else tokenizer.statistics
        shape = config.transformer.resolve(latents.shape[0], latents.shape[1:], latents.num_classes)
        config.sampling.check_for(shape)
        torch.manual_seed(config.training.seed)
        self.transformer = LightningDiT.from_config(shape).to(self.device)
        apply_activation_checkpointing(list(self.transformer.blocks), config.transformer.activation_checkpointing)
        if config.fp8:
            use_float8(list(self.transformer.blocks), self.device)
        self.modules: Mapping[str, nn.Module] = {"transformer": self.transformer}
        self._model = compile_network(self.transformer, list(self.transformer.blocks), config.compile)

    def begin(self) -> str | None:
        if self.config.initial is None:
            return None
        names = self.latents.class_names
        return load_initial_transformer(self.config.initial, self.transformer, self.config.flow, self.statistics, names)

    def identity(self) -> dict[str, str]:
        """Return the fingerprints of latents, tokenizer and statistics."""
        numbers = torch.cat([self.statistics.mean, self.statistics.std]).cpu().numpy().tobytes()
        return {
            "latents": self.latents.fingerprint(),
            "tokenizer": fingerprint(self.tokenizer),
            "normalization": hashlib.sha256(numbers).hexdigest(),
        }

    def optimizers(self) -> dict[str, tuple[OptimizerConfig, list[nn.Parameter]]]:
        return {"transformer": (self.config.optimizer, list(self.transformer.parameters()))}

    def units(self, name: str) -> Sequence[nn.Module]:
        return list(self.transformer.blocks)

    @cached_property
    def _reader(self) -> LatentDataset | ResidentLatents:
        wanted = self.config.latents_on_device
        if wanted is None:
            count = len(self.latents) * (2 if self.latents.has_flips else 1)
            wanted = fits_on(self.device, count * math.prod(self.latents.shape) * self.latents.dtype.itemsize, 1 / 2)
        return self.latents.to_device(self.device) if wanted else self.latents

    def batches(self, start: int, data_order: int) -> Iterator[_Batch]:
        training, reader = self.config.training, self._reader
        flips = self.config.flip and self.latents.has_flips

        def load(indices: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            mask = rng.uniform(training.seed, "flip", positions) < 0.5 if flips else None
            latents, labels = reader.get(indices, mask, normalize=False)
            return self.statistics.normalize(latents), labels

        seed = stream_seed(training.seed, data_order)
        stream = IndexStream(len(self.latents), seed, start, self.world.rank, self.world.size)
        with BatchLoader(stream, load, training.batch_size, 2 if reader is self.latents else 0) as loader:
            for batch in loader:
                latents, labels = batch.data
                yield _Batch(batch.positions, to_device(latents, self.device), to_device(labels, self.device))

    def step(self, batch: _Batch, images_seen: int, scale: float) -> dict[str, Tensor]:
        self.transformer.train()
        terms = self._loss(batch, "", self.transformer.config.label_dropout)
        (terms["total"] * scale).backward()
        return {name: value.detach() for name, value in terms.items()}

    def _loss(self, batch: _Batch, purpose: str, label_dropout: float) -> dict[str, Tensor]:
        """Return the mean terms of a batch; noise, times and dropped labels depend on positions and `purpose` only."""
        seed, positions = self.config.training.seed, batch.positions
        noise = rng.normal(seed, f"{purpose}noise", positions, tuple(batch.latents.shape[1:]), self.device)
        t = self.config.flow.draw_times(seed, positions, self.device)
        drop = rng.uniform(seed, f"{purpose}label drop", positions, device=self.device) < label_dropout
        return self._mean_terms(self._model, batch.latents, batch.labels, noise, t, drop)

    def _mean_terms(
        self, model: Callable[..., Tensor], latents: Tensor, labels: Tensor, noise: Tensor, t: Tensor, drop: Tensor
    ) -> dict[str, Tensor]:
        flow = self.config.flow
        with autocast(self.precision, latents.device):
            terms = flow_matching_loss(
                model,
                latents,
                labels,
                noise=noise,
                t=t,
                path=self.path,
                prediction=flow.prediction,
                direction_weight=flow.direction_weight,
                label_drop=drop,
            )
        return {name: value.mean() for name, value in terms.items()}

    def prepare_validation(self) -> None:
        """Check the validation latents; if a distance is asked for, load its network and reference."""
        if self.config.validation_latents is not None:
            self.world.once(self._validation.verify)
        if self.config.frechet.samples:
            _ = self._distance

    @torch.no_grad()
    def validate(self, states: Mapping[str, Mapping[str, Tensor]], at_once: int | None = None) -> dict[str, Tensor]:
        """Return terms on validation latents and, if asked for, the Fréchet distance of the averaged model."""
        terms = self._validation_loss(at_once) if self.config.validation_latents is not None else {}
        if self.config.frechet.samples:
            terms["frechet"] = self._distance(self.generator(states["transformer"], {}), self.config.training.seed)
        return terms

    @cached_property
    def _distance(self) -> SampleDistance:
        size = scale_size(self.latents.shape[1:], self.tokenizer.factor)
        return SampleDistance(self.config.frechet, size, self.device, self.precision, self.world)

    def _validation_loss(self, at_once: int | None) -> dict[str, Tensor]:
        """Return mean terms on validation latents, with the same noise and times each time."""

        def measure(part: tuple[Tensor]) -> dict[str, Tensor]:
            latents, labels = self._validation.get(part[0], normalize=False)
            batch = _Batch(part[0], self.statistics.normalize(latents).to(self.device), labels.to(self.device))
            return self._loss(batch, "validation ", 0.0)

        # Processes with sharded parameters gather them together, so all must have the same number of chunks.
        training, size = self.config.training, self.world.size
        portions = Chunks(at_once or training.batch_size // size, halve=training.parallel != "shard" or size == 1)
        self.transformer.eval()
        terms = mean_terms(portions, shard_of(_VALIDATION_LATENTS, len(self._validation), self.world), measure)
        self.transformer.train()
        return terms

    @cached_property
    def _validation(self) -> LatentDataset:
        dataset = LatentDataset(str(self.config.validation_latents))
        if dataset.shape != self.latents.shape:
            raise UserError(
                f"validation_latents must have the shape of latents, {self.latents.shape}, got {dataset.shape}"
            )
        _check_classes(dataset, self.latents)
        settings, own = dataset.settings, self.latents.settings
        if settings is not None and own is not None and settings.tokenizer != own.tokenizer:
            raise UserError(f"validation_latents must be encoded by the tokenizer of latents, got {dataset.folder}")
        return dataset

    @cached_property
    def _work(self) -> StepWork:
        """FLOPs of an image, counted on the meta device."""
        config = self.transformer.config
        with torch.device("meta"):
            model = LightningDiT.from_config(config)
            x, t, y = torch.empty(1, *self.latents.shape), torch.empty(1), torch.zeros(1, dtype=torch.int64)
        flops = count_flops(lambda: model(x, t, y).sum().backward())
        return StepWork(flops, math.prod(config.grid))

    def work(self) -> StepWork:
        return self._work

    def step_bytes(self, images: int) -> int:
        """Estimate the peak memory of one step with fake tensors, on a CPU and not compiled."""
        config = self.transformer.config

        def step() -> None:
            latents, t = torch.empty(images, *self.latents.shape), torch.empty(images)
            labels, drop = torch.zeros(images, dtype=torch.int64), t < config.label_dropout
            self._mean_terms(model, latents, labels, torch.empty_like(latents), t, drop)["total"].backward()

        with FakeTensorMode():
            model = LightningDiT.from_config(config)
            apply_activation_checkpointing(list(model.blocks), self.config.transformer.activation_checkpointing)
            return count_peak_bytes(step)

    def phase(self, images_seen: int) -> int:
        switch = self.config.flow.uniform_after_images
        return int(switch is not None and images_seen >= switch)

    def preview(self, states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        """Write a grid of samples, four of each of the first classes, with few steps."""
        generator = self.generator(states["transformer"], {})
        labels = choose_labels(min(32, 4 * max(generator.num_classes, 1)), generator.num_classes, "balanced", 0)
        scale = 2.0 if self.config.transformer.label_dropout > 0 else 1.0
        generator.sampling = SamplingConfig(steps=min(50, self.config.sampling.steps), guidance_scale=scale)
        with autocast(self.precision, self.device):
            latents = generator.latents(sorted(labels))
        image_grid(to_uint8(generator.tokenizer.decode(latents.float())).cpu().numpy(), columns=8).save(path)

    def generator(self, state: Mapping[str, Tensor], provenance: dict[str, Any]) -> Generator:
        """Return a generator with the given weights."""
        transformer = LightningDiT.from_config(self.transformer.config)
        transformer.load_state_dict(dict(state))
        names, sampling, flow = self.latents.class_names, self.config.sampling, self.config.flow
        return Generator(
            transformer, self.tokenizer, self.statistics, sampling, flow.path, names, provenance, flow.prediction
        ).to(self.device)


def _check_classes(validation: LatentDataset, latents: LatentDataset) -> None:
    """Raise UserError if validation latents have other classes than the training latents."""
    there, here = validation.class_names, latents.class_names
    if there and here and there != here:
        different = [(a, b) for a, b in zip(there, here, strict=False) if a != b]
        which = f"'{different[0][0]}' for '{different[0][1]}'" if different else f"{len(there)} for {len(here)}"
        raise UserError(f"validation_latents must have the classes of latents, got {which} in {validation.folder}")
    if len(validation) and int(validation.labels.max()) >= latents.num_classes:
        raise UserError(
            f"validation_latents must have classes below {latents.num_classes}, as latents have, got "
            f"{int(validation.labels.max())} in {validation.folder}"
        )


def _check_fit(config: Config, latents: LatentDataset, tokenizer: Tokenizer) -> None:
    """Raise UserError if another tokenizer made the latents, which it would decode to noise, or patches do not fit."""
    if latents.shape[0] != tokenizer.latent_channels:
        raise UserError(
            f"latents: {config.latents} has {latents.shape[0]} channels, the tokenizer {config.tokenizer} "
            f"has {tokenizer.latent_channels}"
        )
    made_by = latents.settings.tokenizer if latents.settings is not None else ""  # the published layout has no record
    given = fingerprint(tokenizer) if made_by else ""
    if made_by != given:
        raise UserError(
            f"latents: {config.latents} was encoded by a tokenizer with fingerprint {made_by[:12]}…, "
            f"but tokenizer: {config.tokenizer} has {given[:12]}…; encode again, or name the tokenizer that made them"
        )
    patch = config.transformer.patch_size
    if patch is None:
        patch = parse_size(config.transformer.size)[1]
    if patch > 0 and any(side % patch for side in latents.shape[1:]):
        raise UserError(
            f"latents must have a size that is a multiple of the transformer's patch {patch}, got "
            f"{format_size(latents.shape[1:])} in {config.latents}"
        )


def run(config: Config, any_recipe: bool = False) -> Generator:
    """Train to the end and write the generator to `<output>/generator`.

    Args:
        config: The recipe.
        any_recipe: As for `open_run`.

    Raises:
        UserError: The latents, the tokenizer or the recipe are wrong.
        KeyboardInterrupt: A stop was asked for; the state is saved.
    """
    # Gradients are means over images, so micro-batches change rounding only.
    with open_run(config, "generator", ("training.micro_batch",), any_recipe) as run:
        if run.finished:
            return Generator.from_pretrained(run.result, run.device)
        latents = LatentDataset(config.latents)
        names = latents.class_names or tuple(str(number) for number in range(latents.num_classes))
        run.world.once(lambda: report("latents", len(latents), names, Found(f"folder {latents.folder}"), run.folder))
        # A published tokenizer may come without statistics: the latents have them.
        statistics = latents.statistics if config.normalization == "latents" else None
        tokenizer = Tokenizer.from_pretrained(config.tokenizer, statistics=statistics)
        run.world.once(latents.verify)
        task = TransformerTask(config, latents, tokenizer, run.world)
        run.record_data(task.identity)
        trainer = run.train(task, "transformer")
        provenance = {"latents": f"{len(latents):,} of shape {latents.shape}", **run.provenance(trainer)}
        generator = task.generator(trainer.averaged_state("transformer"), provenance)
        run.finish(generator.save_pretrained)
        return generator
