"""Train tokenizer and diffusion transformer together (REPA-E, arXiv 2504.10483).

One step: (a) the tokenizer learns from its own losses and from the alignment of the frozen transformer's tokens;
(b) the discriminator learns; (c) the transformer learns from the flow loss and the alignment, at the same times and
with the same noise, on latents without a graph. So the flow loss does not reach the tokenizer: it falls fastest where
latents are constant. All gradients belong to the weights before the step, so their order does not matter.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vavae import rng
from vavae.data import ImageSource
from vavae.device import resolve_precision
from vavae.errors import UserError
from vavae.models import Generator, Tokenizer
from vavae.stages.costs import JointCosts
from vavae.stages.initial import initial_statistics, load_initial_transformer
from vavae.stages.joint_alignment import LatentAlignment, first_blocks, frozen, latent_statistics
from vavae.stages.joint_config import Config as Config
from vavae.stages.joint_config import JointAlignmentConfig as JointAlignmentConfig
from vavae.stages.joint_config import ProjectorConfig as ProjectorConfig
from vavae.stages.train_dit import write_samples
from vavae.stages.train_tokenizer import Batch, TokenizerTask, training_images
from vavae.tokenizer import AutoencoderKL
from vavae.training.activation_checkpointing import apply_activation_checkpointing
from vavae.training.compile import compile_network
from vavae.training.optimizer import OptimizerConfig
from vavae.training.parallel import World
from vavae.training.run_folder import open_run
from vavae.transformer import LightningDiT, LightningDiTConfig


class JointTask(TokenizerTask):
    """The training of tokenizer and transformer: the tokenizer's, with a transformer on its latents."""

    config: Config
    autoencoder: AutoencoderKL
    averaged: Sequence[str] = ("transformer", "alignment")
    pictures = "samples"

    def __init__(self, config: Config, source: ImageSource, folder: Path, world: World | None = None) -> None:
        # Checks come first: `super` computes the teacher's features of all images.
        grid = config.data.latent_size(config.factor)
        shape = config.transformer.resolve(config.tokenizer.latent_channels, grid, source.num_classes)
        assert isinstance(shape, LightningDiTConfig)  # the recipe refuses others
        config.sampling.check_for(shape)
        block = config.alignment.block
        if block > shape.depth:
            raise UserError(f"alignment.block must be at most transformer.depth {shape.depth}, got {block}")
        super().__init__(config, source, folder, world)
        assert self.teacher is not None
        self.flow = config.flow.for_latents(self.latent_shape)
        self.labels = torch.tensor(source.labels).to(self.device)  # a copy: the source may be read-only
        torch.manual_seed(config.training.seed)
        self.transformer = LightningDiT(shape).to(self.device)
        self.alignment = LatentAlignment(config.alignment, shape.latent_channels, shape.width, self.teacher.width)
        self.alignment.to(self.device)
        self.modules = {**self.modules, "transformer": self.transformer, "alignment": self.alignment}
        blocks = list(self.transformer.blocks)
        apply_activation_checkpointing(blocks, config.transformer.activation_checkpointing)
        self._model = compile_network(self.transformer, blocks, config.compile)
        self._first_blocks = compile_network(first_blocks(self.transformer, block), blocks[:block], config.compile)

    @property
    def needs_teacher(self) -> bool:
        """Whether the recipe uses the teacher: always."""
        return True

    @property
    def feature_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens, where the teacher's features belong."""
        patch = self.config.transformer.patch
        return self.latent_shape[1] // patch, self.latent_shape[2] // patch

    def begin(self) -> str | None:
        config, lines = self.config, [super().begin()]
        if config.initial is not None:
            statistics = initial_statistics(config.initial)
            if statistics is not None:
                self.alignment.start_from(statistics)
            else:
                note = "initial: no statistics of the latents, so batch normalization starts at mean 0, variance 1"
                print(note, flush=True)
                lines.append(note)
        if config.initial_transformer is not None:
            statistics = latent_statistics(self.alignment.state_dict())
            names = self.source.class_names
            given = (config.initial_transformer, self.transformer, config.flow, statistics, names)
            lines.append(load_initial_transformer(*given, key="initial_transformer"))
        return "\n".join(line for line in lines if line) or None

    def optimizers(self) -> dict[str, tuple[OptimizerConfig, list[nn.Parameter]]]:
        trained = [*self.transformer.parameters(), *self.alignment.parameters()]
        return super().optimizers() | {"transformer": (self.config.transformer_optimizer, trained)}

    def step(self, batch: Batch, images_seen: int, scale: float) -> dict[str, Tensor]:
        config, seed, positions = self.config, self.config.training.seed, batch.positions
        images = batch.images.contiguous(memory_format=self.memory_format)
        features = batch.features if batch.features is not None else self._run_teacher(batch.images)
        posterior_noise = rng.normal(seed, "posterior", positions, self.latent_shape, self.device)
        noise = rng.normal(seed, "noise", positions, self.latent_shape, self.device)
        t = self.flow.draw_times(seed, positions, self.device)
        drop = rng.uniform(seed, "label drop", positions, device=self.device) < config.transformer.label_dropout
        labels = self.labels[batch.indices.to(self.device)]
        with self.autocast():
            posterior = self.autoencoder.encode(images)
        tokenizer_projection = images.new_zeros(())

        def latent_loss(latents: Tensor) -> Tensor:
            """Return the terms of the frozen transformer that tune the tokenizer."""
            nonlocal tokenizer_projection
            # The flow terms of the first blocks alone have no meaning; they are not used.
            model = self._model if config.flow_reaches_tokenizer else self._first_blocks
            with self.autocast():
                terms = self.alignment.losses(
                    model, self.flow, latents, labels, noise, t, torch.zeros_like(drop), features
                )
            tokenizer_projection = terms["projection"].detach()
            loss = config.alignment.tokenizer_weight * terms["projection"]
            return loss + terms["total"] if config.flow_reaches_tokenizer else loss

        # (a) The tokenizer and (b) the discriminator
        with frozen(self.transformer, self.alignment):
            report = self.objective.accumulate_gradients(
                self.autoencoder,
                images,
                posterior_noise,
                images_seen=images_seen,
                latents=posterior,
                latent_loss=latent_loss,
                augmentation=self._augmentation(positions),
                compute_dtype=self.compute_dtype,
                gradient_scale=scale,
                average=self.world.average if self.world.size > 1 else None,
            )

        # (c) The transformer, on the same latents without their graph
        latents = posterior.sample(noise=posterior_noise).detach()
        with self.autocast():
            terms = self.alignment.losses(self._model, self.flow, latents, labels, noise, t, drop, features)
        total = terms["total"] + config.alignment.weight * terms["projection"]
        (total * scale).backward()
        terms = {name: value.detach() for name, value in terms.items()}
        return {
            **report,
            "total": report["total"] + total.detach(),
            "flow": terms["total"],
            "mse": terms["mse"],
            "direction": terms["direction"],
            "projection": terms["projection"],
            "tokenizer_projection": tokenizer_projection,
            "latent_std": latents.std(dim=(0, 2, 3)).mean(),
        }

    def phase(self, images_seen: int) -> int:
        switch = self.config.flow.uniform_after_images
        return 2 * super().phase(images_seen) + int(switch is not None and images_seen >= switch)

    def validate(self, states: Mapping[str, Mapping[str, Tensor]], at_once: int | None = None) -> dict[str, Tensor]:
        """Return the tokenizer's terms on test images and, if asked for, its Fréchet distance."""
        return super().validate({"autoencoder": self.autoencoder.state_dict()}, at_once)

    def preview(self, states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
        """Write a grid of samples, four of each of the first classes, with few steps."""
        with self.autocast():
            write_samples(self._generator(states, {}), path)

    def model(  # type: ignore[override]
        self, states: Mapping[str, Mapping[str, Tensor]], provenance: dict[str, Any], at_once: int, quick: bool
    ) -> Generator:
        given = {name: getattr(self.config, name) for name in ("initial", "initial_transformer")}
        return self._generator(states, {name: value for name, value in given.items() if value} | provenance)

    def _generator(self, states: Mapping[str, Mapping[str, Tensor]], provenance: dict[str, Any]) -> Generator:
        """Return the averaged transformer and statistics with the tokenizer as it is."""
        config, flow, facts = self.config, self.flow, self.facts() | provenance
        transformer = LightningDiT(self.transformer.config)
        transformer.load_state_dict(dict(states["transformer"]))
        autoencoder = self.averaged_model(self.autoencoder.state_dict())
        tokenizer = Tokenizer(autoencoder, latent_statistics(dict(states["alignment"])), facts)
        return Generator(
            transformer,
            tokenizer,
            None,
            config.sampling,
            flow.path,
            self.source.class_names,
            facts,
            flow.prediction,
            flow.floor,
        ).to(self.device)

    @cached_property
    def _costs(self) -> JointCosts:  # type: ignore[override]
        assert self.teacher is not None
        precision = resolve_precision(self.config.training.precision, self.device)
        return JointCosts(self.config, self.teacher.width, precision, self.source.num_classes)


def run(config: Config, any_recipe: bool = False) -> Generator:
    """Train to the end and write the generator to `<output>/generator`, with the tokenizer in it.

    Args:
        config: The recipe.
        any_recipe: As for `open_run`.

    Raises:
        UserError: The images, the teacher or the recipe are wrong.
        KeyboardInterrupt: A stop was asked for; the state is saved.
    """
    with open_run(config, "generator", any_recipe=any_recipe) as run:
        if run.finished:
            return Generator.from_pretrained(run.result, run.device)
        task = JointTask(config, training_images(config, run), run.folder, run.world)
        return run.train(task, "tokenizer and transformer")
