"""The recipe of a joint training."""

from dataclasses import dataclass, field

from vavae.errors import UserError
from vavae.flow import FlowConfig
from vavae.losses import AdversarialConfig, AlignmentConfig, ObjectiveConfig
from vavae.losses.checks import check_not_negative
from vavae.models import SamplingConfig
from vavae.stages import tokenizer_config
from vavae.stages.hidden_alignment import ProjectorConfig
from vavae.stages.transformer_config import TransformerConfig
from vavae.training.optimizer import OptimizerConfig
from vavae.training.trainer import TrainingConfig


@dataclass(frozen=True)
class JointAlignmentConfig:
    """Alignment of the transformer's tokens with the teacher, which tunes both networks.

    Attributes:
        block: Number of the block whose tokens are aligned, counted from 1.
        projector: Map from tokens to the teacher's channels.
        weight: Factor of the term in the transformer's loss.
        tokenizer_weight: Factor of the term in the tokenizer's loss.
    """

    block: int = 8
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    weight: float = 0.5
    tokenizer_weight: float = 1.5

    def __post_init__(self) -> None:
        check_not_negative("alignment", self, "weight", "tokenizer_weight")
        if self.block < 1:
            raise UserError(f"alignment.block must be at least 1, got {self.block}")


def _objective() -> ObjectiveConfig:
    adversarial = AdversarialConfig(weight=0.1, adaptive=False, start_images=0)
    return ObjectiveConfig(adversarial=adversarial, alignment=AlignmentConfig(enabled=False), reduction="mean")


def _adamw() -> OptimizerConfig:
    return OptimizerConfig("adamw", 1e-4, (0.9, 0.999), gradient_clip=1.0)


@dataclass(frozen=True)
class Config(tokenizer_config.Config):
    """Train a tokenizer and a diffusion transformer together (REPA-E, arXiv 2504.10483).

    Attributes:
        output: Run folder; a second call with the same recipe resumes the run.
        data: Training images; their classes are the transformer's labels.
        tokenizer: Shape of the autoencoder.
        representation: Must be null: the encoder of a representation autoencoder is frozen.
        initial: Starting weights of the tokenizer, as for `train-tokenizer`; the statistics of its latents, if it has
            some, start the batch normalization. null starts from random weights.
        initial_transformer: Starting weights of the transformer, as `initial` of `train-dit`; null starts from random
            weights.
        teacher: The foundation model that tokens of the transformer are aligned with.
        objective: The tokenizer's loss terms; the alignment of its own latents must be off.
        stages: Must be empty.
        transformer: Shape of the transformer, a LightningDiT.
        flow: Path, prediction and times of flow matching.
        alignment: Alignment of the transformer's tokens, which tunes both networks.
        flow_reaches_tokenizer: Let the flow loss tune the tokenizer too. Its latents collapse: an experiment that
            shows why it must not.
        sampling: Defaults that are saved with the generator.
        optimizer: Optimizer of the autoencoder.
        discriminator_optimizer: Optimizer of the discriminator.
        transformer_optimizer: Optimizer of transformer and projector.
        training: How long and how. The averages are those of the transformer and of the statistics of the latents; the
            tokenizer is not averaged, as published.
        compile: Compile encoder, decoder, LPIPS and transformer with torch.compile, each as one graph.
        frechet: Fréchet distance of few reconstructions, every `training.validation_images`.
    """

    output: str = "runs/joint"
    objective: ObjectiveConfig = field(default_factory=_objective)
    optimizer: OptimizerConfig = field(default_factory=_adamw)
    discriminator_optimizer: OptimizerConfig = field(default_factory=_adamw)
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(images=102_400_000, ema_decay=0.9999, ema_warmup=False)
    )
    initial_transformer: str | None = None
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    alignment: JointAlignmentConfig = field(default_factory=JointAlignmentConfig)
    flow_reaches_tokenizer: bool = False
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    transformer_optimizer: OptimizerConfig = field(default_factory=_adamw)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.representation is not None:
            raise UserError("representation must be null for a joint training, since its encoder is frozen")
        if self.objective.alignment.enabled:
            raise UserError(
                "objective.alignment.enabled must be false for a joint training, which aligns the transformer's tokens"
            )
        if self.transformer.has_head:
            raise UserError(
                f"transformer.size must be a LightningDiT for a joint training, got {self.transformer.size}"
            )
        if self.transformer.class_token is not None or self.transformer.auxiliary_block is not None:
            raise UserError("transformer.class_token and transformer.auxiliary_block must be null for a joint training")
        if self.transformer.routing.kind != "none":
            raise UserError(
                f"transformer.routing.kind must be none for a joint training, got {self.transformer.routing.kind}"
            )
        self.transformer.check_guidance(self.sampling)
