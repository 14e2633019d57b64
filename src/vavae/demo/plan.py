"""Options of the demo and its recipes: `small/tokenizer` and `small/transformer`, sized for two CPU cores."""

from dataclasses import dataclass, replace
from pathlib import Path

from vavae.config import load_recipe
from vavae.config.recipes import package_recipe
from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.models import SamplingConfig
from vavae.stages import encode, train_dit, train_tokenizer
from vavae.training.optimizer import OptimizerConfig
from vavae.training.trainer import TrainingConfig

ALIGNED, UNALIGNED = "aligned", "unaligned"
FACTOR = 4  # pixels per latent position, along each side
SAMPLING = SamplingConfig(steps=25, shift=0.3, guidance_scale=3.0, guidance_start=0.1)


@dataclass(frozen=True)
class Budget:
    """How much work the demo does."""

    train_images: int = 1000  # largest number of training images
    test_images: int = 400  # largest number of test images
    tokenizer_images: int = 3_840  # images that the tokenizer sees
    generator_images: int = 8_192  # latents that the transformer sees
    width: int = 192  # of the transformer
    depth: int = 6  # of the transformer
    samples: int = 400  # samples for the Fréchet distance
    samples_per_class: int = 5  # samples of each class on the page


DEFAULT = Budget()
QUICK = Budget(
    train_images=160,
    test_images=80,
    tokenizer_images=512,
    generator_images=1_280,
    width=128,
    depth=3,
    samples=40,
    samples_per_class=2,
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
        """Return the recipe of stage 1: `small/tokenizer`, at this budget and with these images and teacher."""
        recipe = load_recipe(train_tokenizer.Config, package_recipe("small/tokenizer"))
        alignment, images = recipe.objective.alignment, self.budget.tokenizer_images
        return replace(
            recipe,
            output=str(self.folder(run, "tokenizer")),
            data=self.data(),
            teacher=replace(recipe.teacher, name=self.teacher, input_size=self.teacher_size),
            objective=replace(recipe.objective, alignment=replace(alignment, enabled=run == ALIGNED)),
            optimizer=_warmed_up(recipe.optimizer, images),
            training=self._training(recipe.training, images, images // 4),
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
        """Return the recipe of stage 2: `small/transformer`, at this budget."""
        recipe, budget = load_recipe(train_dit.Config, package_recipe("small/transformer")), self.budget
        shape = replace(recipe.transformer, width=budget.width, depth=budget.depth, heads=budget.width // 64)
        return replace(
            recipe,
            output=str(self.folder(run, "generator")),
            latents=str(self.folder(run, "latents")),
            tokenizer=str(self.folder(run, "tokenizer/tokenizer")),
            transformer=shape,
            optimizer=_warmed_up(recipe.optimizer, budget.generator_images),
            training=self._training(recipe.training, budget.generator_images, budget.generator_images // 5),
        )

    def _training(self, recipe: TrainingConfig, images: int, log_images: int) -> TrainingConfig:
        log_images = min(recipe.log_images, log_images)
        return replace(
            recipe, images=images, seed=self.seed, device=self.device, log_images=log_images, keep_checkpoints=1
        )


def _warmed_up(optimizer: OptimizerConfig, images: int) -> OptimizerConfig:
    """Return the optimizer with a warm-up over a twentieth of the training."""
    return replace(optimizer, schedule=replace(optimizer.schedule, warmup_images=images // 20))
