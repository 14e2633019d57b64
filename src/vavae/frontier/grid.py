"""The cells of a frontier and the jobs that train and measure them, named by hashes.

The name of a tokenizer is the hash of its resolved recipe and of the images. The name of a generator is the hash of its
own recipe and of its tokenizer's name. So several tables share a cell, and a changed recipe renames only the cells that
depend on the change.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vavae.config import to_plain
from vavae.errors import UserError
from vavae.flow import FlowConfig, TimeDistribution
from vavae.frontier.config import Config, Kind, LadderRow, Loss
from vavae.losses import AlignmentConfig
from vavae.stages import encode, train_dit, train_tokenizer
from vavae.teachers.registry import TEACHERS
from vavae.tokenizer import AutoencoderConfig
from vavae.training.ema import AveragesConfig
from vavae.training.run_folder import IGNORED_KEYS
from vavae.training.trainer import TrainingConfig

NONE = "none"
ROWS: tuple[LadderRow, ...] = (
    "dit", "rectified-flow", "batch", "beta2", "lognorm", "direction", "swiglu", "rmsnorm", "rope", "aligned",
)  # fmt: skip
ROW_NAMES = {
    "dit": "DiT",
    "rectified-flow": "+ rectified flow",
    "batch": "+ batch × 4, learning rate × 2",
    "beta2": "+ AdamW β₂ 0.95",
    "lognorm": "+ logit-normal times",
    "direction": "+ velocity direction loss",
    "swiglu": "+ SwiGLU",
    "rmsnorm": "+ RMSNorm",
    "rope": "+ RoPE",
    "aligned": "+ patch 1, aligned tokenizer",
}
LOSS_NAMES = {
    "none": "no alignment",
    "full": "full",
    "no-mcos": "without mcos",
    "no-mdms": "without mdms",
    "no-margin": "without margins",
}
# Keys that a run may change and a frontier never sets. They have been in the hashes since the first results.
_NEVER_SET = frozenset(
    {
        "latents_on_device",
        "training.milestone_images",
        "training.parallel",
        "training.preview_images",
        "training.wandb",
    }
)
# Keys that no number depends on: paths, devices, logging.
_ASIDE = (IGNORED_KEYS - _NEVER_SET) | {
    "training.ema_warmup",  # never set by a frontier, and newer than the first results
    "latents",
    "tokenizer",
    "sampling",  # in the hash of the measurement
    "data.images",  # the fingerprint of the images is hashed, which covers the gray range
    "data.gray_range",
    "data.image_column",
    "data.label_column",
    "training.log_images",
}


@dataclass(frozen=True)
class TokenizerCell:
    """A tokenizer of the grid.

    Attributes:
        dimension: Channels of the latent.
        teacher: `none`, or a teacher's name, with an input size after an @ to override the default.
        loss: Parts of the alignment loss; `none` without a teacher.
        seed: Seed of its training and of its generators' training.
    """

    dimension: int
    teacher: str
    loss: Loss
    seed: int

    @classmethod
    def of(cls, dimension: int, teacher: str, loss: Loss, seed: int) -> "TokenizerCell":
        """Return the cell; without a teacher or without a loss, both are `none`."""
        off = teacher == NONE or loss == "none"
        return cls(dimension, NONE if off else teacher, "none" if off else loss, seed)

    @property
    def label(self) -> str:
        """`d 16, dinov2-small-focus, seed 0`."""
        parts = (self.loss,) if self.loss not in ("full", "none") else ()
        return ", ".join((f"d {self.dimension}", self.teacher, *parts, f"seed {self.seed}"))


@dataclass(frozen=True)
class GeneratorCell:
    """A generator of the grid.

    Attributes:
        tokenizer: The tokenizer of its latents.
        size: Size with patch, for example `S/1`.
        row: Last row of Table 1 that it includes; `rope` is the whole LightningDiT.
    """

    tokenizer: TokenizerCell
    size: str
    row: LadderRow = "rope"

    @property
    def label(self) -> str:
        """`S/1 on d 16, none, seed 0`."""
        row = "" if self.row == "rope" else f" ({self.row})"
        return f"{self.size}{row} on {self.tokenizer.label}"


Cell = TokenizerCell | GeneratorCell


@dataclass(frozen=True)
class Job:
    """One piece of work on a cell, with one result file.

    Attributes:
        kind: `tokenizer` and `generator` train and measure; `uniformity` and `curve` measure a trained model.
        cell: The cell.
        name: Hash of the recipe of training.
        result: Name of the result file: kind, `name`, and a hash of the protocol.
        needs: Name of the job that trains the models it uses; "" for none.
    """

    kind: Kind
    cell: Cell
    name: str
    result: str
    needs: str = ""

    @property
    def label(self) -> str:
        """Kind and cell, for logs."""
        return f"{self.kind} {self.cell.label}"


def digest(*parts: Any) -> str:
    """Return 16 hexadecimal digits of the sha256 over plain values."""
    text = json.dumps(to_plain(parts), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _telling(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return a plain recipe as dotted keys with values, without the keys that no number depends on."""
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}".lstrip(".")
        if isinstance(value, dict) and name != "sampling":
            found |= _telling(value, name)
        elif name not in _ASIDE:
            found[name] = value
    return found


class Grid:
    """All cells of a recipe, in the order of the jobs.

    Args:
        config: The recipe.
        fingerprints: Of the training and the test images.

    Raises:
        UserError: A size, a teacher or its input size does not exist.
    """

    def __init__(self, config: Config, fingerprints: tuple[str, str]) -> None:
        self.config = config
        self.fingerprints = fingerprints
        self.folder = Path(config.output)
        for cell in self.generators:  # a wrong size or teacher is reported before training
            self.generator(cell).transformer.resolve(cell.tokenizer.dimension, self.side, 10)
            self.tokenizer(cell.tokenizer)
        if config.measure.teacher is not None:
            self.teacher(config.measure.teacher, "measure.teacher")

    @property
    def side(self) -> int:
        """Height and width of a latent."""
        return self.config.data.latent_size(2 ** (len(self.config.tokenizer.channel_multipliers) - 1))[0]

    # Cells of the experiments

    def table2(self) -> Iterator[GeneratorCell]:
        """Yield the cells of Table 2, seed by seed."""
        wanted = self.config.experiments.table2
        for seed in wanted.seeds:
            for size in wanted.sizes:
                for dimension in wanted.dimensions:
                    for teacher in wanted.teachers:
                        yield GeneratorCell(TokenizerCell.of(dimension, teacher, "full", seed), size)

    def table4(self) -> Iterator[GeneratorCell]:
        """Yield the cells of Table 4."""
        wanted = self.config.experiments.table4
        for seed in wanted.seeds:
            for teacher in wanted.teachers:
                yield GeneratorCell(TokenizerCell.of(wanted.dimension, teacher, "full", seed), wanted.size)

    def table5(self) -> Iterator[GeneratorCell]:
        """Yield the cells of Table 5."""
        wanted = self.config.experiments.table5
        for seed in wanted.seeds:
            for loss in wanted.losses:
                yield GeneratorCell(TokenizerCell.of(wanted.dimension, wanted.teacher, loss, seed), wanted.size)

    def convergence(self) -> Iterator[GeneratorCell]:
        """Yield the cells of Figure 4, left."""
        wanted = self.config.experiments.convergence
        for seed in wanted.seeds:
            for teacher in wanted.teachers:
                yield GeneratorCell(TokenizerCell.of(wanted.dimension, teacher, "full", seed), wanted.size)

    def ladder(self) -> Iterator[tuple[LadderRow, GeneratorCell]]:
        """Yield the rows of Table 1 with their cells."""
        wanted = self.config.experiments.ladder
        for seed in wanted.seeds:
            for row in (row for row in ROWS if row in wanted.rows):
                if row == "aligned":
                    aligned = TokenizerCell.of(wanted.dimension, wanted.teacher, "full", seed)
                    yield row, GeneratorCell(aligned, f"{wanted.size}/1")
                else:
                    plain = TokenizerCell.of(wanted.dimension, NONE, "none", seed)
                    yield row, GeneratorCell(plain, f"{wanted.size}/2", row)

    @cached_property
    def generators(self) -> tuple[GeneratorCell, ...]:
        """Every generator once, sorted by seed, so that a stopped grid has complete seeds."""
        found = [*self.table2(), *self.convergence(), *self.table4(), *self.table5(), *(c for _, c in self.ladder())]
        every = dict.fromkeys(found)
        seeds = list(dict.fromkeys(cell.tokenizer.seed for cell in every))
        return tuple(sorted(every, key=lambda cell: seeds.index(cell.tokenizer.seed)))

    @cached_property
    def curves(self) -> frozenset[GeneratorCell]:
        """Generators with a gFID curve along training."""
        return frozenset(self.convergence())

    @cached_property
    def tokenizers(self) -> tuple[TokenizerCell, ...]:
        """Every tokenizer once."""
        return tuple(dict.fromkeys(cell.tokenizer for cell in self.generators))

    # Recipes

    def teacher(self, name: str, key: str = "experiments") -> train_tokenizer.TeacherConfig:
        """Return a teacher at the input size that gives the latent's grid, or at the size after its @.

        Raises:
            UserError: The teacher is unknown; `key` is the key of the recipe that names it.
        """
        plain, _, side = name.partition("@")
        spec = next((spec for spec in TEACHERS if spec.name == plain), None)
        if spec is None and "/" not in plain and not Path(plain).is_dir():
            known = ", ".join(spec.name for spec in TEACHERS)
            raise UserError(
                f"{key}: a teacher must be a known name, a folder or a hub model, got '{plain}' (names: {known})"
            )
        size: int | None = None
        if side:
            if not side.isdigit():
                raise UserError(f"{key}: the input size of teacher '{name}' must be an integer, got {side!r}")
            size = int(side)
        elif spec is not None and not spec.name.startswith("sam-"):  # SAM has a fixed input size
            size = spec.patch * self.side
        return train_tokenizer.TeacherConfig(plain, size, cache_features=self.config.tokenizer.cache_features)

    def _alignment(self, loss: Loss) -> AlignmentConfig:
        base = self.config.tokenizer.objective.alignment
        if loss == "none":
            return AlignmentConfig(enabled=False)  # settings of a loss that is off must not change the name
        changes: dict[Loss, dict[str, Any]] = {
            "full": {"enabled": True},
            "no-margin": {"enabled": True, "cos_margin": 0.0, "distance_margin": 0.0},
            # A single term has half the weight, as published.
            "no-mcos": {"enabled": True, "cos_weight": 0.0, "weight": base.weight / 2},
            "no-mdms": {"enabled": True, "distance_weight": 0.0, "weight": base.weight / 2},
        }
        return replace(base, **changes[loss])

    def work_folder(self, kind: str, name: str) -> Path:
        """Return the folder of a cell's models."""
        return self.folder / "work" / f"{kind}-{name}"

    def tokenizer(self, cell: TokenizerCell) -> train_tokenizer.Config:
        """Return the recipe of a tokenizer, without paths."""
        recipe, config = self.config.tokenizer, self.config
        engine = self._engine(recipe.images, recipe.batch_size, cell.seed, recipe.ema_decay)
        return train_tokenizer.Config(
            data=replace(config.data, crop="random" if recipe.random_crop else "center"),
            tokenizer=AutoencoderConfig(
                cell.dimension,
                recipe.base_channels,
                recipe.channel_multipliers,
                recipe.blocks_per_level,
                recipe.attention_levels,
            ),
            # Without alignment the teacher is not used and must not change the name.
            teacher=train_tokenizer.TeacherConfig() if cell.teacher == NONE else self.teacher(cell.teacher),
            objective=replace(recipe.objective, alignment=self._alignment(cell.loss)),
            optimizer=recipe.optimizer,
            discriminator_optimizer=recipe.discriminator_optimizer,
            training=replace(engine, precision=recipe.precision),
            compile=recipe.compile,
        )

    def placed_tokenizer(self, cell: TokenizerCell) -> train_tokenizer.Config:
        """Return the recipe of a tokenizer with its paths."""
        recipe = self.tokenizer(cell)
        if recipe.teacher.cache_features:
            features = str(self.folder / "teacher-features")
            recipe = replace(recipe, teacher=replace(recipe.teacher, features_folder=features))
        return replace(recipe, output=str(self.tokenizer_folder(cell) / "run"))

    def tokenizer_folder(self, cell: TokenizerCell) -> Path:
        """Return the folder that contains `run` and the latents."""
        return self.work_folder("tokenizer", self.tokenizer_name(cell))

    @property
    def _kind_of_latents(self) -> tuple[str, bool, str]:
        """Settings in which the latents of one tokenizer can differ."""
        return self.config.tokenizer.latent_dtype, self.config.tokenizer.flips, self.config.measure.precision

    def latents_folder(self, cell: TokenizerCell) -> Path:
        """Return the folder of the latents of the training images; its name contains the hash of their settings."""
        return self.tokenizer_folder(cell) / f"latents-{digest(self._kind_of_latents)[:8]}"

    def encoding(self, cell: TokenizerCell) -> encode.Config:
        """Return the recipe of the latents of the training images."""
        folder = self.tokenizer_folder(cell)
        return encode.Config(
            tokenizer=str(folder / "run" / "tokenizer"),
            output=str(self.latents_folder(cell)),
            data=self.config.data,
            flips=self.config.tokenizer.flips,
            dtype=self.config.tokenizer.latent_dtype,
            seed=cell.seed,
            batch_size=self.config.measure.batch_size,
            device=self.config.device,
            precision=self.config.measure.precision,
        )

    def generator(self, cell: GeneratorCell) -> train_dit.Config:
        """Return the recipe of a generator, without paths."""
        recipe = self.config.generator
        images = recipe.images_of_size.get(cell.size, recipe.images)
        engine = self._engine(images, recipe.batch_size, cell.tokenizer.seed, recipe.ema_decay)
        full = train_dit.Config(
            transformer=recipe.shape(cell.size, "experiments"),
            flip=self.config.tokenizer.flips,
            sampling=recipe.sampling,
            optimizer=recipe.optimizer,
            training=replace(engine, precision=recipe.precision, averages=self._averages(images)),
            compile=recipe.compile,
        )
        return down_to(full, cell.row)

    def _averages(self, images: int) -> AveragesConfig:
        recipe = self.config.generator
        if not recipe.curve_points:
            return AveragesConfig()
        return AveragesConfig((), (recipe.curve_width,), images // recipe.curve_points)

    def placed_generator(self, cell: GeneratorCell) -> train_dit.Config:
        """Return the recipe of a generator with its paths."""
        tokenizer = self.encoding(cell.tokenizer)
        return replace(
            self.generator(cell),
            output=str(self.generator_folder(cell) / "run"),
            latents=tokenizer.output,
            tokenizer=tokenizer.tokenizer,
        )

    def generator_folder(self, cell: GeneratorCell) -> Path:
        """Return the folder that contains `run`."""
        return self.work_folder("generator", self.generator_name(cell))

    def _engine(self, images: int, batch_size: int, seed: int, ema_decay: float | None) -> TrainingConfig:
        return TrainingConfig(
            images=images,
            batch_size=batch_size,
            seed=seed,
            device=self.config.device,
            ema_decay=ema_decay,
            log_images=max(batch_size, images // 50),
            checkpoint_images=max(batch_size, images // 4),
            keep_checkpoints=1,
            tensorboard=False,
        )

    # Names

    def tokenizer_name(self, cell: TokenizerCell) -> str:
        """Return the hash of the recipe and the training images."""
        own = to_plain(self.tokenizer(cell))
        del own["frechet"]  # validation does not change a training
        own["teacher"]["normalisation"] = own["teacher"].pop("normalization")  # spelled so in the first results
        return digest("tokenizer", _telling(own), self.fingerprints[0])

    def generator_name(self, cell: GeneratorCell) -> str:
        """Return the hash of the recipe, the tokenizer and the settings of its latents."""
        own = _telling(to_plain(self.generator(cell)))
        del own["initial"]  # never set by a frontier, and newer than the first results
        own["normalisation"] = own.pop("normalization")  # spelled so in the first results
        return digest("generator", own, self.tokenizer_name(cell.tokenizer), self._kind_of_latents)

    def shown_name(self, cell: Cell) -> str:
        """Return the name of a cell on the page, with its seed if the grid has several.

        `d 16, none` for a tokenizer; `M/2 on d 16, none: + RMSNorm` for a generator in a row of Table 1.
        """
        if isinstance(cell, TokenizerCell):
            parts = [f"d {cell.dimension}", cell.teacher]
            parts += [LOSS_NAMES[cell.loss]] if cell.loss not in ("full", "none") else []
            parts += [f"seed {cell.seed}"] if len({each.seed for each in self.tokenizers}) > 1 else []
            return ", ".join(parts)
        row = next((ROW_NAMES[row] for row, each in self.ladder() if each == cell), "")
        return f"{cell.size} on {self.shown_name(cell.tokenizer)}{f': {row}' if row else ''}"

    def job(self, kind: Kind, cell: Cell) -> Job:
        """Return the job of a kind on a cell."""
        measure = self.config.measure
        if isinstance(cell, TokenizerCell):
            name = self.tokenizer_name(cell)
            shape = (measure.latents, measure.precision, self.fingerprints[1])
            if kind == "uniformity":
                return Job(kind, cell, name, f"{kind}-{name}-{digest(shape, measure.tsne_seeds)}", name)
            how = digest(shape, measure.network, measure.reconstructions, measure.teacher)
            return Job(kind, cell, name, f"{kind}-{name}-{how}")
        name = self.generator_name(cell)
        how = digest(
            measure.network,
            measure.samples if kind == "generator" else measure.curve_samples,
            measure.reference_images,
            measure.seed,
            self.config.generator.sampling,
            self.config.generator.fp32_sampling,
        )
        needs = self.tokenizer_name(cell.tokenizer) if kind == "generator" else name
        return Job(kind, cell, name, f"{kind}-{name}-{how}", needs)

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All jobs, each after the job that it needs; cells with the same hash are one job."""
        found: list[Job] = []
        for cell in self.generators:
            found += [self.job("tokenizer", cell.tokenizer), self.job("generator", cell)]
            found += [self.job("curve", cell)] if cell in self.curves else []
            found += [self.job("uniformity", cell.tokenizer)]
        once: dict[str, Job] = {}
        for job in found:
            once.setdefault(job.result, job)
        return tuple(once.values())


def down_to(config: train_dit.Config, row: LadderRow) -> train_dit.Config:
    """Return the recipe of LightningDiT without the changes of the rows of Table 1 after `row`.

    Rows before `beta2` have AdamW's default of 0.999. Rows before `batch` have a quarter of the batch size and half of
    the learning rate. DiT predicts noise on the variance-preserving path. The number of images is the same.
    """
    place = ROWS.index(row)

    def has(name: LadderRow) -> bool:
        return place >= ROWS.index(name)

    transformer = replace(
        config.transformer,
        rope=config.transformer.rope and has("rope"),
        rmsnorm=config.transformer.rmsnorm and has("rmsnorm"),
        swiglu=config.transformer.swiglu and has("swiglu"),
    )
    flow = config.flow
    if not has("direction"):
        flow = replace(flow, direction_weight=0.0)
    if not has("lognorm"):
        flow = replace(flow, times=TimeDistribution(kind="uniform"))
    if not has("rectified-flow"):
        flow = FlowConfig("vp", "noise", flow.times, flow.direction_weight)
    optimizer, training = config.optimizer, config.training
    if not has("beta2"):
        optimizer = replace(optimizer, betas=(optimizer.betas[0], 0.999))
    if not has("batch"):
        optimizer = replace(optimizer, learning_rate=optimizer.learning_rate / 2)
        training = replace(training, batch_size=max(1, training.batch_size // 4))
    return replace(config, transformer=transformer, flow=flow, optimizer=optimizer, training=training)
