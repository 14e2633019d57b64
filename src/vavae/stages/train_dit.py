"""Stage 2: train a diffusion transformer on latents (LightningDiT, arXiv 2501.01423)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vavae import counter
from vavae.data import BatchLoader, IndexStream, LatentDataset, to_uint8
from vavae.errors import UserError
from vavae.flow import TimeDistribution, flow_matching_loss, path_by_name
from vavae.flow.paths import PathName, Prediction
from vavae.pretrained import Generator, SamplingConfig, Tokenizer
from vavae.report.images import image_grid
from vavae.stages.run_folder import claim, exclusive
from vavae.stages.sample import choose_labels
from vavae.training.engine import Engine, EngineConfig
from vavae.training.optimizer import OptimizerConfig
from vavae.training.precision import autocast, resolve_device, resolve_precision
from vavae.transformer import LightningDiT, LightningDiTConfig


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the transformer; latent size, channels and classes come from the latents.

    Attributes:
        size: S, B, L, XL, 1p0B or 1p6B with /1 or /2 for the patch size.
        width: Channels of a token; null is the size's own, here and below.
        depth: Number of blocks.
        heads: Attention heads.
        patch_size: Side of the square of latent pixels that makes one token.
        swiglu: SwiGLU instead of a GELU MLP.
        rope: Rotate queries and keys by position.
        rmsnorm: RMSNorm instead of LayerNorm.
        qk_norm: Norm queries and keys.
        adaln_shift: Condition blocks by scale, shift and gate; without it by scale and gate.
        label_dropout: Probability that a label is replaced by "no label" in training; guidance needs it.
        activation_checkpointing: `full` recomputes each block in the backward pass to save memory.
    """

    size: str = "XL/1"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch_size: int | None = None
    swiglu: bool = True
    rope: bool = True
    rmsnorm: bool = True
    qk_norm: bool = False
    adaln_shift: bool = True
    label_dropout: float = 0.1
    activation_checkpointing: Literal["none", "full"] = "none"

    def resolve(self, latent_channels: int, latent_size: int | tuple[int, int], num_classes: int) -> LightningDiTConfig:
        """The full shape for given latents.

        Raises:
            UserError: No such size, or numbers that do not fit each other.
        """
        given = {name: getattr(self, name) for name in ("width", "depth", "heads", "patch_size")}
        switches = ("swiglu", "rope", "rmsnorm", "qk_norm", "adaln_shift", "label_dropout")
        return LightningDiTConfig.from_size(
            self.size,
            latent_channels=latent_channels,
            latent_size=latent_size,
            num_classes=num_classes,
            **{name: value for name, value in given.items() if value is not None},
            **{name: getattr(self, name) for name in switches},
        )


@dataclass(frozen=True)
class FlowConfig:
    """The flow that is learned.

    Attributes:
        path: linear, cosine (GVP) or variance-preserving.
        prediction: What the network predicts; the published one velocity, DiT noise.
        times: How training draws times.
        direction_weight: Weight of the velocity-direction loss; 0 leaves the mean squared error alone.
        uniform_after_images: From this many images on, draw times uniformly, whatever `times` says; null never. The
            published 800-epoch model switched at 480 epochs.
    """

    path: PathName = "linear"
    prediction: Prediction = "velocity"
    times: TimeDistribution = field(default_factory=TimeDistribution)
    direction_weight: float = 1.0
    uniform_after_images: int | None = None

    def draw_times(self, seed: int, positions: Tensor, device: torch.device) -> Tensor:
        """(B,) float32 times of the images at `positions` of the run, each a function of (seed, position)."""
        times = self.times.at(seed, positions, device=device)
        if self.uniform_after_images is None:
            return times
        late = positions.to(device) >= self.uniform_after_images
        return torch.where(late, TimeDistribution(kind="uniform").at(seed, positions, device=device), times)


@dataclass(frozen=True)
class Config:
    """Train a diffusion transformer.

    Attributes:
        output: Run folder; a second call with the same recipe goes on where the first stopped.
        latents: Folder that `vavae encode` wrote.
        tokenizer: Folder or hub id of the tokenizer that made the latents; it goes into the generator's folder.
        transformer: Shape of the network.
        flow: What is learned.
        normalisation: Whose statistics normalise the latents: those stored with the latents, or the tokenizer's
            (SD-VAE's one scaling factor, say).
        flip: Use the latents of mirrored images for half of the samples, where the folder has them.
        sampling: Defaults that the generator is saved with.
        optimizer: Optimizer of the transformer.
        training: How long and how.
        compile: Compile the whole transformer with torch.compile.
    """

    output: str = "runs/generator"
    latents: str = "runs/latents"
    tokenizer: str = "runs/tokenizer/tokenizer"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    normalisation: Literal["latents", "tokenizer"] = "latents"
    flip: bool = True
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: EngineConfig = field(
        default_factory=lambda: EngineConfig(images=81_920_000, batch_size=1024, ema_decay=0.9999)
    )
    compile: bool = False


@dataclass(frozen=True)
class _Batch:
    positions: Tensor  # (B,) int64
    latents: Tensor  # (B, C, h, w), normalised
    labels: Tensor  # (B,) int64


class TransformerTask:
    """What the engine trains in stage 2."""

    averaged: Sequence[str] = ("transformer",)

    def __init__(self, config: Config, latents: LatentDataset, tokenizer: Tokenizer) -> None:
        self.config = config
        self.latents = latents
        self.tokenizer = tokenizer
        self.device = resolve_device(config.training.device)
        self.precision = resolve_precision(config.training.precision, self.device)
        self.path = path_by_name(config.flow.path)
        channels, height, width = latents.shape
        if channels != tokenizer.latent_channels:
            raise UserError(
                f"latents: {config.latents} has {channels} channels, the tokenizer {config.tokenizer} "
                f"has {tokenizer.latent_channels}"
            )
        self.statistics = latents.statistics if config.normalisation == "latents" else tokenizer.statistics
        shape = config.transformer.resolve(channels, (height, width), latents.num_classes)
        torch.manual_seed(config.training.seed)
        self.transformer = LightningDiT.from_config(shape).to(self.device)
        self.transformer.set_activation_checkpointing(config.transformer.activation_checkpointing)
        self.modules: Mapping[str, nn.Module] = {"transformer": self.transformer}
        self._model = torch.compile(self.transformer) if config.compile else self.transformer

    def optimizers(self) -> dict[str, tuple[OptimizerConfig, list[nn.Parameter]]]:
        return {"transformer": (self.config.optimizer, list(self.transformer.parameters()))}

    def batches(self, start: int) -> Iterator[_Batch]:
        training = self.config.training
        flips = self.config.flip and self.latents.has_flips

        def load(indices: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            mask = counter.uniform(training.seed, "flip", positions) < 0.5 if flips else None
            latents, labels = self.latents.get(indices, mask, normalize=False)
            return self.statistics.normalize(latents), labels

        stream = IndexStream(len(self.latents), training.seed, start)
        with BatchLoader(stream, load, training.batch_size) as loader:
            for batch in loader:
                latents, labels = batch.data
                yield _Batch(
                    batch.positions,
                    latents.to(self.device, non_blocking=True),
                    labels.to(self.device, non_blocking=True),
                )

    def step(self, batch: _Batch, images_seen: int) -> dict[str, Tensor]:
        seed, positions = self.config.training.seed, batch.positions
        self.transformer.train()
        noise = counter.normal(seed, "noise", positions, tuple(batch.latents.shape[1:]), self.device)
        drop = counter.uniform(seed, "label drop", positions, device=self.device)
        with autocast(self.precision, self.device):
            terms = flow_matching_loss(
                self._model,
                batch.latents,
                batch.labels,
                noise=noise,
                t=self.config.flow.draw_times(seed, positions, self.device),
                path=self.path,
                prediction=self.config.flow.prediction,
                direction_weight=self.config.flow.direction_weight,
                label_drop=drop < self.transformer.config.label_dropout,
            )
        means = {name: value.mean() for name, value in terms.items()}
        means["total"].backward()
        return {name: value.detach() for name, value in means.items()}

    def preview(self, states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        """Write a grid of samples, four of each of the first classes, with few steps."""
        generator = self.generator(states["transformer"], {})
        labels = choose_labels(min(32, 4 * max(generator.num_classes, 1)), generator.num_classes, "balanced", 0)
        sampling = SamplingConfig(steps=min(50, self.config.sampling.steps), guidance_scale=2.0)
        with autocast(self.precision, self.device):
            latents = generator.latents(sorted(labels), sampling=sampling)
        image_grid(to_uint8(generator.tokenizer.decode(latents.float())).cpu().numpy(), columns=8).save(path)

    def generator(self, state: Mapping[str, Tensor], provenance: dict[str, Any]) -> Generator:
        """A generator with the given weights."""
        transformer = LightningDiT.from_config(self.transformer.config)
        transformer.load_state_dict(dict(state))
        names = self.latents.class_names
        return Generator(
            transformer,
            self.tokenizer,
            self.statistics,
            self.config.sampling,
            self.config.flow.path,
            names,
            provenance,
            self.config.flow.prediction,
        ).to(self.device)


def run(config: Config) -> Generator:
    """Train to the end and write the generator to `<output>/generator`.

    Raises:
        UserError: Latents, tokenizer or recipe are wrong.
        KeyboardInterrupt: A stop was asked for; the state is saved.
    """
    folder = Path(config.output)
    with exclusive(folder):
        claim(folder, config)
        done = folder / "generator"
        if (done / "config.json").exists():
            print(f"generator: {done} is there already")
            return Generator.from_pretrained(done, resolve_device(config.training.device))
        task = TransformerTask(config, LatentDataset(config.latents), Tokenizer.from_pretrained(config.tokenizer))
        engine = Engine(task, config.training, folder)
        engine.run("transformer")
        generator = task.generator(
            engine.averaged_state("transformer"),
            {
                "latents": f"{len(task.latents):,} of shape {tuple(task.latents.shape)}",
                "images_seen": engine.images_seen,
                "seed": config.training.seed,
                "hours": round(engine.seconds / 3600, 3),
            },
        )
        generator.save_pretrained(done)
        print(f"generator: {done}")
        return generator
