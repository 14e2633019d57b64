"""Recipes of generators that differ from the whole LightningDiT: rows of Table 1, and methods that align it."""

from dataclasses import replace

from vavae.flow import TimeDistribution
from vavae.frontier.config import ROWS, Config, LadderRow, Method, MethodsConfig
from vavae.stages import train_dit, train_joint, train_tokenizer
from vavae.stages.hidden_alignment import HiddenAlignmentConfig, ProjectorConfig
from vavae.stages.joint_config import JointAlignmentConfig
from vavae.teachers.config import TeacherConfig


def aligned(
    recipe: train_dit.Config, config: Config, method: Method, teacher: TeacherConfig, class_channels: int
) -> train_dit.Config:
    """Return a recipe with REPA, iREPA or REG; weights are the published ones of REPA, the same for all."""
    wanted = config.experiments.alignment
    convolution = method == "irepa"
    projector = ProjectorConfig("conv" if convolution else "mlp", wanted.projector_hidden)
    images = replace(config.data, crop="center")
    alignment = HiddenAlignmentConfig(
        images, (teacher,), wanted.block, projector, normalization="zscore" if convolution else "none"
    )
    token = class_channels if method == "reg" else None
    return replace(recipe, alignment=alignment, transformer=replace(recipe.transformer, class_token=token))


def jointly(
    recipe: train_dit.Config,
    tokenizer: train_tokenizer.Config,
    wanted: MethodsConfig,
    teacher: TeacherConfig,
    block: int,
) -> train_joint.Config:
    """Return the recipe that trains the transformer of `recipe` together with `tokenizer`, which is trained already."""
    return train_joint.Config(
        data=replace(tokenizer.data, flip=recipe.flip),
        tokenizer=tokenizer.tokenizer,
        teacher=replace(teacher, cache_features=teacher.cache_features and not recipe.flip),
        objective=replace(tokenizer.objective, reduction="mean"),
        transformer=recipe.transformer,
        flow=recipe.flow,
        alignment=JointAlignmentConfig(block, ProjectorConfig(hidden=wanted.projector_hidden)),
        sampling=recipe.sampling,
        transformer_optimizer=recipe.optimizer,
        training=recipe.training,
        compile=tokenizer.compile,
    )


def down_to(config: train_dit.Config, row: LadderRow) -> train_dit.Config:
    """Return the recipe of LightningDiT without the changes of the rows of Table 1 after `row`.

    Rows before `beta2` have AdamW's default of 0.999. Rows before `batch` have a quarter of the batch size and half of
    the learning rate. DiT predicts noise on the variance-preserving path. The number of images is the same.
    """
    later = set(ROWS[ROWS.index(row) + 1 :])
    transformer, flow, optimizer, training = config.transformer, config.flow, config.optimizer, config.training
    switches = {name: False for name in ("rope", "rmsnorm", "swiglu") if name in later}
    transformer = replace(transformer, **switches)  # type: ignore[arg-type]
    if "direction" in later:
        flow = replace(flow, direction_weight=0.0)
    if "lognorm" in later:
        flow = replace(flow, times=TimeDistribution(kind="uniform"))
    if "rectified-flow" in later:
        flow = replace(flow, path="vp", prediction="noise")
    if "beta2" in later:
        optimizer = replace(optimizer, betas=(optimizer.betas[0], 0.999))
    if "batch" in later:
        optimizer = replace(optimizer, learning_rate=optimizer.learning_rate / 2)
        training = replace(training, batch_size=max(1, training.batch_size // 4))
    return replace(config, transformer=transformer, flow=flow, optimizer=optimizer, training=training)
