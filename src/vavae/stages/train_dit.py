"""Stage 2: train a diffusion transformer on latents (LightningDiT, arXiv 2501.01423)."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vavae import rng
from vavae.config.image_size import format_size, scale_size
from vavae.data import IndexStream, LatentDataset, load_batches, to_uint8
from vavae.data.found import Found
from vavae.data.images import note, report
from vavae.device import autocast, fits_on, resolve_device, resolve_precision, to_device
from vavae.errors import UserError
from vavae.evaluation.validation import FrechetConfig, SampleDistance, check_best, check_rhythm, mean_terms, shard_of
from vavae.flow import FlowConfig
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.models.sampling import choose_labels
from vavae.report.images import image_grid
from vavae.stages.costs import TransformerCosts
from vavae.stages.encode import fingerprint
from vavae.stages.hidden_alignment import HiddenAlignment, HiddenAlignmentConfig, HiddenTokens
from vavae.stages.initial import load_initial_transformer
from vavae.stages.transformer_config import TransformerConfig as TransformerConfig
from vavae.training.activation_checkpointing import apply_activation_checkpointing
from vavae.training.compile import Compilation, compile_network
from vavae.training.float8 import use_float8
from vavae.training.memory import Chunks
from vavae.training.optimizer import OptimizerConfig
from vavae.training.parallel import World
from vavae.training.run_folder import open_run, stream_seed
from vavae.training.throughput import StepWork
from vavae.training.trainer import TrainingConfig, TrainingTask
from vavae.transformer import Transformer, build_transformer


@dataclass(frozen=True)
class Config:
    """Train a diffusion transformer.

    Attributes:
        output: Run folder; a second call with the same recipe resumes the run.
        latents: Folder that `vavae encode` wrote.
        tokenizer: The tokenizer that made the latents: its folder, hub id or short name of `vavae models`; the
            generator's folder gets a copy.
        transformer: Shape of the network.
        initial: Starting weights: a generator's folder, hub id or short name, the run folder of an earlier training,
            or a published checkpoint; null starts from random weights. Width, depth, heads and switches must be the
            same; layers that depend on classes, channels, patch or latent size are new if these differ.
        flow: Path, prediction and times of flow matching.
        normalization: Whose statistics normalize the latents: the statistics stored with the latents, or the
            tokenizer's, for example SD-VAE's one scaling factor.
        flip: Use the latents of mirrored images for half of the samples, if the folder has them.
        alignment: Alignment of hidden states with foundation models (REPA, iREPA); null aligns none.
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
    alignment: HiddenAlignmentConfig | None = None
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
        terms = () if self.validation_latents is None else ("loss", "mse", "direction")
        check_best(self.training.best, self.training.validation_images, terms, self.frechet.samples > 0)
        if self.validation_latents is not None and self.training.validation_images is None:
            raise UserError("validation_latents needs training.validation_images, the images between two measurements")
        if self.compile is True and self.training.parallel == "shard":
            # The work of FSDP2 before and after a block cannot be part of a graph.
            raise UserError("compile must be blocks with training.parallel shard, got true")
        self.transformer.check_guidance(self.sampling)
        if self.transformer.class_token is not None and self.flow.prediction != "velocity":
            raise UserError(
                f"flow.prediction must be velocity with transformer.class_token, got {self.flow.prediction}"
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
    class_tokens: Tensor | None = None  # (B, D), as the teacher gives them
    targets: Tensor | None = None  # of `HiddenAlignment.load`, while it has a weight


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
        _check_fit(config, latents, tokenizer)
        self.flow = config.flow.for_latents(latents.shape)
        self.statistics = latents.statistics if config.normalization == "latents" else tokenizer.statistics
        shape = config.transformer.resolve(latents.shape[0], latents.shape[1:], latents.num_classes)
        config.sampling.for_latents(latents.shape).check_for(shape)
        torch.manual_seed(config.training.seed)
        self.transformer = build_transformer(shape).to(self.device)
        apply_activation_checkpointing(list(self.transformer.blocks), config.transformer.activation_checkpointing)
        if config.fp8:
            use_float8(list(self.transformer.blocks), self.device)
        self.modules: Mapping[str, nn.Module] = {"transformer": self.transformer}
        self.alignment: HiddenAlignment | None = None
        if config.alignment is not None:
            mirrored = config.flip and latents.has_flips
            self.alignment = HiddenAlignment(
                config.alignment, shape, latents, mirrored, config.training, Path(config.output), self.world
            )
            self.modules = {**self.modules, "projectors": self.alignment.projectors}
        self._model = compile_network(self.transformer, list(self.transformer.blocks), config.compile)

    def prepare(self) -> None:
        if self.alignment is not None:
            self.alignment.prepare()

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
        trained = [parameter for module in self.modules.values() for parameter in module.parameters()]
        return {"transformer": (self.config.optimizer, trained)}

    def units(self, name: str) -> Sequence[nn.Module]:
        if name == "projectors" and self.alignment is not None:
            return list(self.alignment.projectors.projectors)
        return list(self.transformer.blocks)

    @cached_property
    def _reader(self) -> LatentDataset:
        wanted = self.config.latents_on_device
        if wanted is None:
            wanted = fits_on(self.device, self.latents.nbytes, 1 / 2)
        return self.latents.to_device(self.device) if wanted else self.latents

    def batches(self, start: int, data_order: int) -> Iterator[_Batch]:
        training, reader, alignment = self.config.training, self._reader, self.alignment
        flips = self.config.flip and self.latents.has_flips

        class_token = self.config.transformer.class_token is not None

        def load(indices: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
            mask = rng.uniform(training.seed, "flip", positions) < 0.5 if flips else None
            latents, labels = reader.get(indices, mask, normalize=False)
            tokens = reader.class_tokens(indices, mask) if class_token else None
            seen = int(positions[0]) - self.world.rank * len(positions)  # images seen before this step
            targets = None if alignment is None else alignment.load(indices, mask, seen)
            return self.statistics.normalize(latents), labels, tokens, targets

        seed = stream_seed(training.seed, data_order)
        stream = IndexStream(len(self.latents), seed, start, self.world.rank, self.world.size)
        workers = 2 if reader is self.latents else 0
        workers = workers if alignment is None else max(workers, alignment.workers)
        with closing(load_batches(stream, load, training.batch_size, workers)) as batches:
            for batch in batches:
                latents, labels, *more = batch.data
                extras = (None if part is None else to_device(part, self.device) for part in more)
                yield _Batch(batch.positions, to_device(latents, self.device), to_device(labels, self.device), *extras)

    def step(self, batch: _Batch, images_seen: int, scale: float) -> dict[str, Tensor]:
        self.transformer.train()
        dropout = self.transformer.config.label_dropout
        routed = partial(self._model, **self._routed(batch.positions, images_seen))
        if self.alignment is None or batch.targets is None:
            terms = self._loss(routed, batch, "", dropout)
        else:
            model = HiddenTokens(routed, self.alignment.projectors.block)
            terms = self._loss(model, batch, "", dropout)
            with autocast(self.precision, self.device):
                terms["alignment"] = self.alignment.loss(model.tokens, batch.targets, batch.class_tokens)
            terms["total"] = terms["total"] + self.alignment.config.weight_at(images_seen) * terms["alignment"]
        (terms["total"] * scale).backward()
        return {name: value.detach() for name, value in terms.items()}

    def _routed(self, positions: Tensor, images_seen: int) -> dict[str, Tensor]:
        """Return the transformer's arguments `kept` and `path_drop`; each row depends on its position only."""
        routing, seed, options = self.transformer.config.routing, self.config.training.seed, {}
        tokens = self.transformer.config.token_count
        if (count := routing.kept(tokens, images_seen)) < tokens:
            order = rng.uniform(seed, "kept tokens", positions, (tokens,), self.device).argsort(dim=1, stable=True)
            options["kept"] = order[:, :count].sort(dim=1).values
        if routing.drops_paths:
            options["path_drop"] = rng.uniform(seed, "path drop", positions, device=self.device) < routing.path_drop
        return options

    def _loss(
        self, model: Callable[..., Tensor], batch: _Batch, purpose: str, label_dropout: float
    ) -> dict[str, Tensor]:
        """Return the mean terms of a batch; noise, times and dropped labels depend on positions and `purpose` only."""
        seed, positions = self.config.training.seed, batch.positions
        noise = rng.normal(seed, f"{purpose}noise", positions, tuple(batch.latents.shape[1:]), self.device)
        # The contrastive term depends on the portions of a validation, whose positions count no images of the run.
        flow = replace(self.flow, contrastive=0.0, uniform_after_images=None) if purpose else self.flow
        t = flow.draw_times(seed, positions, self.device)
        drop = rng.uniform(seed, f"{purpose}label drop", positions, device=self.device) < label_dropout
        tokens = batch.class_tokens
        if tokens is not None:
            own = rng.normal(seed, f"{purpose}class token noise", positions, tuple(tokens.shape[1:]), self.device)
        with autocast(self.precision, self.device):
            joint = None if tokens is None else (tokens, own)
            terms = flow.loss(model, batch.latents, batch.labels, noise, t, drop, joint)
        return {name: value.mean() for name, value in terms.items()}

    def prepare_validation(self) -> None:
        """Check the validation latents; if a distance is asked for, load its network and reference."""
        if self.config.validation_latents is not None:
            self.world.once(self._validation.verify)
        if self.config.frechet.samples:
            _ = self._distance

    @torch.no_grad()
    def validate(self, states: Mapping[str, Mapping[str, Tensor]], at_once: int | None = None) -> dict[str, Tensor]:
        """Return the averaged model's terms on validation latents and, if asked for, its Fréchet distance."""
        model, terms = self._averaged_model(states), {}
        if self.config.validation_latents is not None:
            terms = self._validation_loss(model, at_once)
        if self.config.frechet.samples:
            terms["frechet"] = self._distance(self._generator(model, {}), self.config.training.seed)
        return terms

    @cached_property
    def _distance(self) -> SampleDistance:
        size = scale_size(self.latents.shape[1:], self.tokenizer.factor)
        return SampleDistance(self.config.frechet, size, self.device, self.precision, self.world)

    def _validation_loss(self, model: Transformer, at_once: int | None) -> dict[str, Tensor]:
        """Return a model's mean terms on validation latents, with the same noise and times each time."""

        def measure(part: tuple[Tensor]) -> dict[str, Tensor]:
            latents, labels = self._validation.get(part[0], normalize=False)
            batch = _Batch(part[0], self.statistics.normalize(latents).to(self.device), labels.to(self.device))
            if self.config.transformer.class_token is not None:
                batch = replace(batch, class_tokens=self._validation.class_tokens(part[0]).to(self.device))
            return self._loss(model, batch, "validation ", 0.0)

        portions = Chunks(at_once or self.config.training.batch_size // self.world.size)
        return mean_terms(portions, shard_of(_VALIDATION_LATENTS, len(self._validation), self.world), measure)

    @cached_property
    def _validation(self) -> LatentDataset:
        dataset = LatentDataset(str(self.config.validation_latents))
        if dataset.shape != self.latents.shape:
            raise UserError(
                f"validation_latents must have the shape of latents, {self.latents.shape}, got {dataset.shape}"
            )
        _check_class_token(self.config, dataset, "validation_latents")
        _check_classes(dataset, self.latents)
        settings, own = dataset.settings, self.latents.settings
        if settings is not None and own is not None and settings.tokenizer != own.tokenizer:
            raise UserError(f"validation_latents must be encoded by the tokenizer of latents, got {dataset.folder}")
        return dataset

    @cached_property
    def _costs(self) -> TransformerCosts:
        recomputation = self.config.transformer.activation_checkpointing
        return TransformerCosts(self.transformer.config, self.flow, self.precision, recomputation)

    @cached_property
    def _alignment_flops(self) -> float:
        return 0.0 if self.alignment is None else self.alignment.flops()

    def work(self, images_seen: int | None = None) -> StepWork:
        images, alignment = self.config.training.images, self.config.alignment
        work = self._costs.work(images, images_seen)
        if alignment is None:
            return work
        share = alignment.active_share(images) if images_seen is None else float(alignment.weight_at(images_seen) > 0)
        return replace(work, flops=(work.flops or 0.0) + share * self._alignment_flops)

    def step_bytes(self, images: int) -> int:
        return self._costs.step_bytes(images) + (0 if self.alignment is None else self.alignment.bytes())

    def phase(self, images_seen: int) -> int:
        switches = (self.config.flow.uniform_after_images, self.config.transformer.routing.full_after_images)
        ended = self.alignment is not None and self.alignment.config.weight_at(images_seen) == 0
        return sum(switch is not None and images_seen >= switch for switch in switches) + int(ended)

    def preview(self, states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        """Write a grid of samples, four of each of the first classes, with few steps."""
        with autocast(self.precision, self.device):
            write_samples(self._generator(self._averaged_model(states), {}), path)

    def model(
        self, states: Mapping[str, Mapping[str, Tensor]], provenance: dict[str, Any], at_once: int, quick: bool
    ) -> Generator:
        initial = {} if self.config.initial is None else {"initial": self.config.initial}
        latents = {"latents": f"{len(self.latents):,} of shape {self.latents.shape}"}
        return self._generator(self._averaged_model(states), {**latents, **initial, **provenance})

    def _averaged_model(self, states: Mapping[str, Mapping[str, Tensor]]) -> Transformer:
        model = build_transformer(self.transformer.config)
        model.load_state_dict(dict(states["transformer"]))
        return model.eval().to(self.device)

    def _generator(self, model: Transformer, provenance: dict[str, Any]) -> Generator:
        names, flow = self.latents.class_names, self.flow
        return Generator(
            model,
            self.tokenizer,
            self.statistics,
            self.config.sampling,
            flow.path,
            names,
            provenance,
            flow.prediction,
            flow.floor,
        ).to(self.device)


def write_samples(generator: Generator, path: Path) -> None:
    """Write a grid of samples, four of each of the first classes, with few steps."""
    labels = choose_labels(min(32, 4 * max(generator.num_classes, 1)), generator.num_classes, "balanced", 0)
    scale = 2.0 if generator.config.label_dropout > 0 else 1.0
    sampling = SamplingConfig(steps=min(50, generator.sampling.steps), guidance_scale=scale)
    latents = generator.with_sampling(sampling).latents(sorted(labels)).float()
    with torch.autocast(latents.device.type, enabled=False):
        pixels = to_uint8(generator.tokenizer.decode(latents))
    image_grid(pixels.cpu().numpy(), columns=8).save(path)


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


def _check_class_token(config: Config, latents: LatentDataset, key: str) -> None:
    """Raise UserError if latents lack the class tokens that the transformer denoises along."""
    wanted = config.transformer.class_token
    if wanted is not None and latents.class_channels != wanted:
        raise UserError(
            f"transformer.class_token must be {json.dumps(latents.class_channels)}, the channels of the class tokens "
            f"in {key} {latents.folder}, got {wanted}; 'vavae encode --class_token TEACHER' stores them"
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
    _check_class_token(config, latents, "latents")
    patch = config.transformer.patch
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
        described = "latents", len(latents), names, Found(f"folder {latents.folder}")
        run.world.once(lambda: report(*described))
        # A published tokenizer may come without statistics: the latents have them.
        statistics = latents.statistics if config.normalization == "latents" else None
        tokenizer = Tokenizer.from_pretrained(config.tokenizer, statistics=statistics)
        run.world.once(latents.verify)
        task = TransformerTask(config, latents, tokenizer, run.world)
        run.record_data(task.identity)
        run.world.once(lambda: note(run.folder / "images.json", *described))
        return run.train(task, "transformer")
