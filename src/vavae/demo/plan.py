"""What the demo trains: recipes of both stages, sized for two CPU cores."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vavae.data.images import ImagesConfig
from vavae.device import resolve_device, resolve_precision
from vavae.losses import (
    AdversarialConfig,
    AlignmentConfig,
    DiscriminatorConfig,
    ObjectiveConfig,
)
from vavae.models import SamplingConfig
from vavae.stages import encode, train_dit, train_tokenizer
from vavae.tokenizer import AutoencoderConfig
from vavae.training.optimizer import OptimizerConfig
from vavae.training.schedule import ScheduleConfig
from vavae.training.trainer import TrainingConfig

ALIGNED, UNALIGNED = "aligned", "unaligned"
TOKENIZER_BATCH = 16  # small: in a few minutes the number of steps decides, and batches of 64 cost 1.1 dB


@dataclass(frozen=True)
class Budget:
    """How much work the demo does.

    Attributes:
        train_images: Training images at most.
        test_images: Test images at most.
        tokenizer_images: Images the tokenizer sees.
        adversarial_from: Images after which the discriminator joins.
        generator_images: Latents the transformer sees.
        width: Of the transformer.
        depth: Of the transformer.
        samples: Samples for the Fréchet distance.
        samples_per_class: Samples of each class on the page.
        tsne_points: Points of the t-SNE picture.
    """

    train_images: int = 5000
    test_images: int = 1000
    tokenizer_images: int = 16_384
    adversarial_from: int = 14_848
    generator_images: int = 30_720
    width: int = 256
    depth: int = 6
    samples: int = 500
    samples_per_class: int = 8
    tsne_points: int = 1000


DEFAULT = Budget()
QUICK = Budget(
    train_images=160,
    test_images=80,
    tokenizer_images=512,
    adversarial_from=384,
    generator_images=1_280,
    width=128,
    depth=3,
    samples=40,
    samples_per_class=2,
    tsne_points=80,
)

SAMPLING = SamplingConfig(steps=50, shift=0.3, guidance_scale=3.0, guidance_start=0.1)


@dataclass(frozen=True)
class Plan:
    """All recipes of one demo.

    Attributes:
        folder: Run folder of the demo.
        images: Image spec.
        size: Side of the images.
        teacher: Name of the teacher.
        budget: How much work.
        seed: Seed of everything.
        device: Device of everything.
    """

    folder: Path
    images: str
    size: int
    teacher: str
    budget: Budget
    seed: int
    device: str

    def data(self, split: str = "train") -> ImagesConfig:
        """The images of a split; a folder without a test part keeps a tenth for testing."""
        limit = self.budget.train_images if split == "train" else self.budget.test_images
        return ImagesConfig(self.images, self.size, limit=limit, holdout=0.1, workers=2)

    def teacher_config(self) -> train_tokenizer.TeacherConfig:
        """The teacher, with its features of the training images kept on the disk."""
        return train_tokenizer.TeacherConfig(self.teacher, input_size=self.teacher_size, cache_features=True)

    @property
    def teacher_size(self) -> int | None:
        """Input size of the teacher: for DINOv2's patches of 14 the one that gives the latent's grid."""
        return 14 * self.size // 4 if self.teacher.startswith("dinov2") else None

    @property
    def teacher_dtype(self) -> torch.dtype:
        """Type the teacher computes in, as in training."""
        precision = resolve_precision("auto", resolve_device(self.device))
        return torch.bfloat16 if precision == "bf16" else torch.float32

    def run_folder(self, name: str) -> Path:
        """Where the run `name` (aligned or unaligned) lies."""
        return self.folder / name

    def tokenizer(self, name: str) -> train_tokenizer.Config:
        """Recipe of stage 1."""
        budget = self.budget
        schedule = ScheduleConfig("cosine", warmup_images=budget.tokenizer_images // 20, final=0.05)
        return train_tokenizer.Config(
            output=str(self.run_folder(name) / "tokenizer"),
            data=self.data(),
            tokenizer=AutoencoderConfig(
                latent_channels=16,
                base_channels=32,
                channel_multipliers=(1, 2, 4),
                blocks_per_level=1,
                attention_levels=(),
            ),
            teacher=self.teacher_config(),
            objective=ObjectiveConfig(
                adversarial=AdversarialConfig(
                    start_images=budget.adversarial_from, discriminator=DiscriminatorConfig(32, 2)
                ),
                # Stronger than published (weight 0.1, margins 0.5 and 0.25): so short a training needs it to show.
                alignment=AlignmentConfig(enabled=name == ALIGNED, weight=1.0, cos_margin=0.2, distance_margin=0.1),
            ),
            optimizer=OptimizerConfig("adam", 1.2e-3, (0.9, 0.95), schedule=schedule),
            discriminator_optimizer=OptimizerConfig("adam", 5e-4, (0.5, 0.9)),
            training=TrainingConfig(
                images=budget.tokenizer_images,
                batch_size=TOKENIZER_BATCH,
                seed=self.seed,
                device=self.device,
                ema_decay=0.95,
                log_images=min(256, budget.tokenizer_images // 4),
                checkpoint_images=4_096,
                keep_checkpoints=1,
            ),
        )

    def encode(self, name: str) -> encode.Config:
        """Recipe of the encoding."""
        return encode.Config(
            tokenizer=str(self.run_folder(name) / "tokenizer" / "tokenizer"),
            output=str(self.run_folder(name) / "latents"),
            data=self.data(),
            seed=self.seed,
            batch_size=250,
            device=self.device,
            precision="auto",
        )

    def transformer(self, name: str) -> train_dit.Config:
        """Recipe of stage 2."""
        budget = self.budget
        schedule = ScheduleConfig("linear", warmup_images=budget.generator_images // 20, final=0.1)
        return train_dit.Config(
            output=str(self.run_folder(name) / "generator"),
            latents=str(self.run_folder(name) / "latents"),
            tokenizer=str(self.run_folder(name) / "tokenizer" / "tokenizer"),
            transformer=train_dit.TransformerConfig(
                "S/2", width=budget.width, depth=budget.depth, heads=budget.width // 64
            ),
            sampling=SAMPLING,
            optimizer=OptimizerConfig("adamw", 1e-3, (0.9, 0.95), gradient_clip=1.0, schedule=schedule),
            training=TrainingConfig(
                images=budget.generator_images,
                batch_size=128,
                seed=self.seed,
                device=self.device,
                ema_decay=0.98,
                log_images=min(512, budget.generator_images // 5),
                checkpoint_images=10_240,
                keep_checkpoints=1,
            ),
        )
