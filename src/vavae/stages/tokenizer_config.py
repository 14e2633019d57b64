"""The recipe of a tokenizer's training."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.evaluation.validation import ReconstructionFrechetConfig, check_best, check_rhythm
from vavae.losses import EVALUATED_TERMS, ObjectiveConfig
from vavae.models.representation import RepresentationConfig
from vavae.teachers.config import TeacherConfig
from vavae.tokenizer import AutoencoderConfig
from vavae.training.optimizer import OptimizerConfig
from vavae.training.trainer import TrainingConfig


@dataclass(frozen=True)
class StageConfig:
    """A later part of the run in which the alignment differs; null keeps the value.

    Attributes:
        from_images: Images seen when the stage begins.
        weight: Factor of the alignment term.
        cos_margin: Margin of the cosine loss.
        distance_margin: Margin of the distance-matrix loss.
        train_projection: Whether the projection keeps learning.
    """

    from_images: int
    weight: float | None = None
    cos_margin: float | None = None
    distance_margin: float | None = None
    train_projection: bool | None = None

    def __post_init__(self) -> None:
        if self.from_images < 0:
            raise UserError(f"stages.from_images must be at least 0, got {self.from_images}")

    def applied(self, objective: ObjectiveConfig) -> ObjectiveConfig:
        """Return the objective of this stage, given the objective before it."""
        changes = {name: value for name, value in vars(self).items() if name != "from_images" and value is not None}
        return replace(objective, alignment=replace(objective.alignment, **changes))


@dataclass(frozen=True)
class Config:
    """Train a tokenizer.

    Attributes:
        output: Run folder; a second call with the same recipe resumes the run.
        data: Training images.
        tokenizer: Shape of the autoencoder.
        representation: Decoder of a representation autoencoder, which is trained instead of `tokenizer`: its latents
            are those of `teacher`, so alignment and KL do not apply.
        initial: Starting weights: the run folder of an earlier training (for autoencoder, projection and
            discriminator), a tokenizer's folder, hub id or short name (`vavae models`), or a published checkpoint;
            null starts from random weights.
        teacher: Used when the alignment term is enabled, or as the encoder of a representation autoencoder.
        objective: All loss terms at the beginning of the run.
        stages: Later changes of the alignment, in the order of `from_images`: the three stages of the published model
            are one recipe.
        optimizer: Optimizer of autoencoder and projection.
        discriminator_optimizer: Optimizer of the discriminator.
        training: How long and how.
        compile: Compile encoder, decoder and LPIPS with torch.compile, each as one graph.
        frechet: Fréchet distance of few reconstructions, every `training.validation_images`.
    """

    output: str = "runs/tokenizer"
    data: ImagesConfig = field(default_factory=ImagesConfig)
    tokenizer: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    representation: RepresentationConfig | None = None
    initial: str | None = None
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    stages: tuple[StageConfig, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", 1e-4, (0.5, 0.9)))
    discriminator_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", 1e-4, (0.5, 0.9)))
    training: TrainingConfig = field(default_factory=TrainingConfig)
    compile: bool = False
    frechet: ReconstructionFrechetConfig = field(default_factory=ReconstructionFrechetConfig)

    def __post_init__(self) -> None:
        self.data.latent_size(self.factor)  # refuses sizes that do not divide
        if self.representation is not None and self.objective.alignment.enabled:
            raise UserError(
                "objective.alignment.enabled must be false with representation, whose latents are the teacher's own"
            )
        self.objective.perceptual.check_size(self.data.size)
        self.objective.adversarial.check_size(self.data.size, self.training.images)
        if self.teacher.cache_features and (self.data.crop == "random" or self.data.flip):
            raise UserError("teacher.cache_features needs data.crop center and data.flip false")
        if any(a.from_images >= b.from_images for a, b in pairwise(self.stages)):
            raise UserError("stages.from_images must rise from stage to stage")
        if self.stages and not self.objective.alignment.enabled:
            raise UserError("stages change the alignment, so objective.alignment.enabled must be true")
        if any(stage.train_projection for stage in self.stages) and not self.objective.alignment.train_projection:
            raise UserError(
                "stages.train_projection needs objective.alignment.train_projection true: a projection that is frozen "
                "at the beginning has no optimizer"
            )
        check_rhythm(self.frechet.samples, self.training.validation_images)
        best, interval = self.training.best, self.training.validation_images
        check_best(best, interval, EVALUATED_TERMS, self.frechet.samples > 0)
        if self.training.parallel == "shard":
            raise UserError("training.parallel must be replicate for a tokenizer, got shard: its state is small")

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return self.tokenizer.factor if self.representation is None else self.representation.patch_size

    def stage_at(self, images_seen: int) -> int:
        """Return the number of stages that have begun."""
        return sum(images_seen >= stage.from_images for stage in self.stages)

    def objective_at(self, images_seen: int) -> ObjectiveConfig:
        """Return the objective after `images_seen` images."""
        objective = self.objective
        for stage in self.stages[: self.stage_at(images_seen)]:
            objective = stage.applied(objective)
        return objective
