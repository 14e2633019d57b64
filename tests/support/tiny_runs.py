"""Recipes of both stages that are small enough for tests, with everything random switched on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vavae import rng
from vavae.data import LatentSettings, LatentWriter
from vavae.data.images import ImagesConfig
from vavae.losses import AdversarialConfig, AlignmentConfig, DiscriminatorConfig, ObjectiveConfig, PerceptualConfig
from vavae.models import Tokenizer
from vavae.stages import train_dit, train_joint, train_tokenizer
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics
from vavae.training.optimizer import OptimizerConfig
from vavae.training.task import TrainingTask
from vavae.training.trainer import TrainingConfig

TRAINING = TrainingConfig(
    images=96,
    batch_size=8,
    device="cpu",
    precision="fp32",
    ema_decay=0.9,
    log_images=16,
    checkpoint_images=24,
    tensorboard=False,
)
AUTOENCODER = AutoencoderConfig(8, 16, (1, 2), 1, ())


class TinyTeacher(torch.nn.Module):
    """A fixed random projection of patches, in place of a foundation model."""

    width = 12
    input_size = (32, 32)
    weight: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("weight", torch.randn(self.width, 3, 4, 4, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(images, self.weight, stride=4)

    def features_at(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return torch.nn.functional.interpolate(self(images), size=grid, mode="bilinear")


def use_tiny_teacher(set_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """Let the stage load `TinyTeacher` for any teacher; `monkeypatch.setattr` undoes it after a test."""
    set_attribute(train_tokenizer, "load_teacher", lambda *_, **__: TinyTeacher())


def live_states(task: TrainingTask) -> dict[str, dict[str, torch.Tensor]]:
    """Return the live weights of a task in place of their averages."""
    return {name: task.modules[name].state_dict() for name in task.averaged}


def tokenizer_recipe(folder: Path, **training: Any) -> train_tokenizer.Config:
    """Return a recipe with random crops, flips, sampled posteriors, alignment, and a discriminator from step 3 on."""
    objective = ObjectiveConfig(
        perceptual=PerceptualConfig(weight=0.0),
        adversarial=AdversarialConfig(start_images=16, discriminator=DiscriminatorConfig(8, 1)),
        alignment=AlignmentConfig(cos_margin=0.0, distance_margin=0.0),
    )
    return train_tokenizer.Config(
        output=str(folder),
        data=ImagesConfig("demo", size=8, crop="random", flip=True, limit=30, workers=2),
        tokenizer=AUTOENCODER,
        objective=objective,
        stages=(train_tokenizer.StageConfig(48, weight=0.05, cos_margin=0.2),),
        training=replace(TRAINING, **training),
    )


def joint_recipe(folder: Path, **training: Any) -> train_joint.Config:
    """Return a recipe of both networks with random crops, flips, sampled posteriors, label dropout, a discriminator."""
    objective = replace(
        train_joint.Config().objective,
        perceptual=PerceptualConfig(weight=0.0),
        adversarial=AdversarialConfig(
            weight=0.1, adaptive=False, start_images=16, discriminator=DiscriminatorConfig(8, 1)
        ),
    )
    return train_joint.Config(
        output=str(folder),
        data=ImagesConfig("demo", size=8, crop="random", flip=True, limit=30, workers=2),
        tokenizer=AUTOENCODER,
        transformer=train_dit.TransformerConfig("S/2", width=32, depth=2, heads=2),
        objective=objective,
        alignment=train_joint.JointAlignmentConfig(block=1, projector=train_joint.ProjectorConfig(hidden=24)),
        training=replace(TRAINING, **training),
    )


def write_latents(folder: Path, count: int = 30, class_channels: int = 0) -> Path:
    """Write random latents of 8 x 4 x 4 in three classes, class tokens if asked for, and a tokenizer of their shape."""
    settings = LatentSettings(
        image_size=8, class_names=("a", "b", "c"), class_token="teacher" if class_channels else None
    )
    writer = LatentWriter(folder / "latents", count, settings, count)
    for shard in writer.missing():
        latents = rng.normal(0, "latents", range(count), (8, 4, 4)) * 2 + 1
        names = ("class tokens", "mirrored class tokens") if class_channels else ()
        tokens = [rng.normal(0, name, range(count), (class_channels,)) for name in names]
        writer.write(shard, [(latents, latents.flip(3), torch.arange(count) % 3, *tokens)])
    writer.finish()
    torch.manual_seed(0)
    model = AutoencoderKL(AUTOENCODER)
    Tokenizer(model, LatentStatistics(torch.ones(8), 2 * torch.ones(8), count), {}).save_pretrained(
        folder / "tokenizer"
    )
    return folder


def transformer_recipe(folder: Path, data: Path, **training: Any) -> train_dit.Config:
    """Return a recipe with flips, label dropout, random times and noise."""
    return train_dit.Config(
        output=str(folder),
        latents=str(data / "latents"),
        tokenizer=str(data / "tokenizer"),
        transformer=train_dit.TransformerConfig("S/1", width=32, depth=2, heads=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, gradient_clip=1.0),
        training=replace(TRAINING, **training),
    )
