"""Options of the demo and the recipes that it trains, sized for two CPU cores.

With the default budget these are the recipes `small/tokenizer` and `small/transformer`, which a test compares.
"""

from dataclasses import dataclass
from pathlib import Path

from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.losses import AdversarialConfig, AlignmentConfig, DiscriminatorConfig, ObjectiveConfig
from vavae.models import SamplingConfig
from vavae.stages import encode, train_dit, train_tokenizer
from vavae.tokenizer import AutoencoderConfig
from vavae.training.optimizer import OptimizerConfig
from vavae.training.schedule import ScheduleConfig
from vavae.training.trainer import TrainingConfig

ALIGNED, UNALIGNED = "aligned", "unaligned"
FACTOR = 4  # pixels per latent position, along each side
# Small: the number of steps decides in a few minutes of training; batches of 64 cost 1.1 dB.
TOKENIZER_BATCH = 16
SAMPLING = SamplingConfig(steps=50, shift=0.3, guidance_scale=3.0, guidance_start=0.1)


@dataclass(frozen=True)
class Budget:
    """How much work the demo does.

    Attributes:
        train_images: Largest number of training images.
        test_images: Largest number of test images.
        tokenizer_images: Images that the tokenizer sees.
        adversarial_from: Images after which the discriminator joins.
        generator_images: Latents that the transformer sees.
        width: Width of the transformer.
        depth: Depth of the transformer.
        samples: Samples for the Fréchet distance.
        samples_per_class: Samples of each class on the page.
        tsne_points: Points of the t-SNE map.
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


@dataclass(frozen=True)
class Config:
    """Train an aligned tokenizer and a generator on its latents, measure both, and write a page about them.

    Attributes:
        output: Run folder. The page is `report.html` in it, every number is in `results.json`. A second call with the
            same settings resumes where the first one stopped.
        images: `demo` (embedded CIFAR-10 images), `cifar10` (all of it), or a folder: one sub-folder per class, or
            images without classes.
        size: Side to which images are cropped and resized, a multiple of 4. Time grows with its square.
        compare: Also train a tokenizer without alignment and its generator, with the same budget.
        quick: Use a small part of the budget, to see that everything works; the images are not good.
        teacher: The foundation model to align with; `vavae assets list` and `vavae train-tokenizer --help` name others.
        seed: Seed of every random number.
        device: auto, cpu, cuda, mps, …
    """

    output: str = "runs/demo"
    images: str = "demo"
    size: int = 32
    compare: bool = False
    quick: bool = False
    teacher: str = "dinov2-small-focus"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % FACTOR:
            raise UserError(f"size must be a multiple of {FACTOR} of at least 16, got {self.size}")

    @property
    def budget(self) -> Budget:
        """How much work this demo does."""
        return QUICK if self.quick else DEFAULT

    @property
    def teacher_size(self) -> int | None:
        """Input size of the teacher: patches of DINOv2 (14 px) match latent positions; None is the teacher's own."""
        return 14 * self.size // FACTOR if self.teacher.startswith("dinov2") else None

    def folder(self, run: str, part: str = "") -> Path:
        """Return the folder of a run (aligned or unaligned), or of a part of it."""
        return Path(self.output) / run / part

    def data(self, split: str = "train") -> ImagesConfig:
        """Return the images of a split; a tenth of a folder without a test part is kept for testing."""
        limit = self.budget.train_images if split == "train" else self.budget.test_images
        return ImagesConfig(self.images, self.size, limit=limit, holdout=0.1, workers=2)

    def tokenizer(self, run: str) -> train_tokenizer.Config:
        """Return the recipe of stage 1."""
        budget = self.budget
        schedule = ScheduleConfig("cosine", warmup_images=budget.tokenizer_images // 20, final=0.05)
        discriminator = DiscriminatorConfig(32, 2)
        return train_tokenizer.Config(
            output=str(self.folder(run, "tokenizer")),
            data=self.data(),
            tokenizer=AutoencoderConfig(16, 32, (1, 2, 4), blocks_per_level=1, attention_levels=()),
            teacher=train_tokenizer.TeacherConfig(self.teacher, input_size=self.teacher_size, cache_features=True),
            objective=ObjectiveConfig(
                adversarial=AdversarialConfig(start_images=budget.adversarial_from, discriminator=discriminator),
                # Stronger than published (weight 0.1, margins 0.5 and 0.25), to have an effect in so short a training.
                alignment=AlignmentConfig(enabled=run == ALIGNED, weight=1.0, cos_margin=0.2, distance_margin=0.1),
            ),
            optimizer=OptimizerConfig("adam", 1.2e-3, (0.9, 0.95), schedule=schedule),
            discriminator_optimizer=OptimizerConfig("adam", 5e-4, (0.5, 0.9)),
            training=self._training(
                budget.tokenizer_images, TOKENIZER_BATCH, 0.95, min(256, budget.tokenizer_images // 4), 4_096
            ),
        )

    def encode(self, run: str) -> encode.Config:
        """Return the recipe of the encoding."""
        return encode.Config(
            tokenizer=str(self.folder(run, "tokenizer/tokenizer")),
            output=str(self.folder(run, "latents")),
            data=self.data(),
            seed=self.seed,
            batch_size=250,
            device=self.device,
            precision="auto",
        )

    def transformer(self, run: str) -> train_dit.Config:
        """Return the recipe of stage 2."""
        budget = self.budget
        schedule = ScheduleConfig("linear", warmup_images=budget.generator_images // 20, final=0.1)
        return train_dit.Config(
            output=str(self.folder(run, "generator")),
            latents=str(self.folder(run, "latents")),
            tokenizer=str(self.folder(run, "tokenizer/tokenizer")),
            transformer=train_dit.TransformerConfig("S/2", budget.width, budget.depth, budget.width // 64),
            sampling=SAMPLING,
            optimizer=OptimizerConfig("adamw", 1e-3, (0.9, 0.95), gradient_clip=1.0, schedule=schedule),
            training=self._training(budget.generator_images, 128, 0.98, min(512, budget.generator_images // 5), 10_240),
        )

    def _training(self, images: int, batch_size: int, ema_decay: float, log: int, checkpoint: int) -> TrainingConfig:
        return TrainingConfig(
            images=images,
            batch_size=batch_size,
            seed=self.seed,
            device=self.device,
            ema_decay=ema_decay,
            log_images=log,
            checkpoint_images=checkpoint,
            keep_checkpoints=1,
        )
