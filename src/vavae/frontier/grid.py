"""The cells of a frontier: what is trained and measured, each named by a hash of all that its numbers depend on.

A tokenizer's name is the hash of its resolved recipe and of the images. A generator's is the hash of its own recipe and
of its tokenizer's name. So a cell that several tables need is one cell, and a changed recipe changes the cells it
concerns, and no others.
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
from vavae.stages.run_folder import IGNORED_KEYS
from vavae.teachers.registry import TEACHERS
from vavae.tokenizer import AutoencoderConfig
from vavae.training.ema import AveragesConfig
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
# What a run may change on its way and the runner never sets: in the names of cells since the first results.
_NEVER_SET = frozenset(
    {
        "latents_on_device",
        "training.milestone_images",
        "training.parallel",
        "training.preview_images",
        "training.wandb",
    }
)
# Where things lie and how they are run: no number depends on it.
_ASIDE = (IGNORED_KEYS - _NEVER_SET) | {
    "training.ema_warmup",  # the runner never sets it, and it is younger than the first results
    "latents",
    "tokenizer",
    "sampling",  # belongs to the measurement
    "data.images",  # their fingerprint says more, also of the range
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
        teacher: `none`, or a teacher's name, with its input size after an @ where it is not the grid's.
        loss: Which parts of the alignment loss; `none` where there is no teacher.
        seed: Seed of its training, and of its generators'.
    """

    dimension: int
    teacher: str
    loss: Loss
    seed: int

    @classmethod
    def of(cls, dimension: int, teacher: str, loss: Loss, seed: int) -> "TokenizerCell":
        """No teacher and no loss are the same."""
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
        tokenizer: Whose latents it is trained on.
        size: With patch: `S/1`.
        row: Up to which row of the ladder it is LightningDiT; `rope` is all of it.
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
    """One piece of work with one result file.

    Attributes:
        kind: What is done: a tokenizer or a generator is trained and measured, or one already trained is measured.
        cell: Of what.
        name: Hash of what it is trained with.
        result: Name of the result file: kind, `name`, and a hash of how it is measured.
        needs: Name of the job whose models it uses; "" for none.
    """

    kind: Kind
    cell: Cell
    name: str
    result: str
    needs: str = ""

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return f"{self.kind} {self.cell.label}"


def digest(*parts: Any) -> str:
    """16 hexadecimal digits of the sha256 over plain values."""
    text = json.dumps(to_plain(parts), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _telling(values: Any, prefix: str = "") -> dict[str, Any]:
    """A plain recipe as dotted keys with values, without what no number depends on."""
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
    """All cells of a recipe, in the order in which they are worked on.

    Args:
        config: The recipe.
        fingerprints: Of the training and the test images.

    Raises:
        UserError: A size, a teacher's input size or a loss that does not exist.
    """

    def __init__(self, config: Config, fingerprints: tuple[str, str]) -> None:
        self.config = config
        self.fingerprints = fingerprints
        self.folder = Path(config.output)
        for cell in self.generators:  # a wrong size or teacher is named before anything is trained
            self.generator(cell).transformer.resolve(cell.tokenizer.dimension, self.side, 10)
            self.tokenizer(cell.tokenizer)
        if config.measure.teacher is not None:
            self.teacher(config.measure.teacher, "measure.teacher")

    @property
    def side(self) -> int:
        """Height and width of a latent."""
        return self.config.data.latent_size(2 ** (len(self.config.tokenizer.channel_multipliers) - 1))[0]

    # What the experiments ask for

    def table2(self) -> Iterator[GeneratorCell]:
        """Cells of table 2, seed by seed."""
        wanted = self.config.experiments.table2
        for seed in wanted.seeds:
            for size in wanted.sizes:
                for dimension in wanted.dimensions:
                    for teacher in wanted.teachers:
                        yield GeneratorCell(TokenizerCell.of(dimension, teacher, "full", seed), size)

    def table4(self) -> Iterator[GeneratorCell]:
        """Cells of table 4."""
        wanted = self.config.experiments.table4
        for seed in wanted.seeds:
            for teacher in wanted.teachers:
                yield GeneratorCell(TokenizerCell.of(wanted.dimension, teacher, "full", seed), wanted.size)

    def table5(self) -> Iterator[GeneratorCell]:
        """Cells of table 5."""
        wanted = self.config.experiments.table5
        for seed in wanted.seeds:
            for loss in wanted.losses:
                yield GeneratorCell(TokenizerCell.of(wanted.dimension, wanted.teacher, loss, seed), wanted.size)

    def convergence(self) -> Iterator[GeneratorCell]:
        """Cells of figure 4, left."""
        wanted = self.config.experiments.convergence
        for seed in wanted.seeds:
            for teacher in wanted.teachers:
                yield GeneratorCell(TokenizerCell.of(wanted.dimension, teacher, "full", seed), wanted.size)

    def ladder(self) -> Iterator[tuple[LadderRow, GeneratorCell]]:
        """Rows of table 1 with their cells."""
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
        """Every generator once; first seeds first, so that a stopped grid is a smaller grid."""
        found = [*self.table2(), *self.convergence(), *self.table4(), *self.table5(), *(c for _, c in self.ladder())]
        every = dict.fromkeys(found)
        seeds = list(dict.fromkeys(cell.tokenizer.seed for cell in every))
        return tuple(sorted(every, key=lambda cell: seeds.index(cell.tokenizer.seed)))

    @cached_property
    def curves(self) -> frozenset[GeneratorCell]:
        """Generators that are measured along their run."""
        return frozenset(self.convergence())

    @cached_property
    def tokenizers(self) -> tuple[TokenizerCell, ...]:
        """Every tokenizer once."""
        return tuple(dict.fromkeys(cell.tokenizer for cell in self.generators))

    # Recipes

    def teacher(self, name: str, key: str = "experiments") -> train_tokenizer.TeacherConfig:
        """A teacher at the input size that gives the latent's grid, or at the one after its @.

        Raises:
            UserError: There is none of that name, and `key` asks for it.
        """
        plain, _, side = name.partition("@")
        spec = next((spec for spec in TEACHERS if spec.name == plain), None)
        if spec is None and "/" not in plain and not Path(plain).is_dir():
            known = ", ".join(spec.name for spec in TEACHERS)
            raise UserError(f"{key}: teacher '{plain}' is no known name, folder or hub model (names: {known})")
        size: int | None = None
        if side:
            if not side.isdigit():
                raise UserError(f"{key}: teacher '{name}': {side!r} is no input size")
            size = int(side)
        elif spec is not None and not spec.name.startswith("sam-"):  # SAM takes its own size only
            size = spec.patch * self.side
        return train_tokenizer.TeacherConfig(plain, size, cache_features=self.config.tokenizer.cache_features)

    def _alignment(self, loss: Loss) -> AlignmentConfig:
        base = self.config.tokenizer.objective.alignment
        if loss == "none":
            return AlignmentConfig(enabled=False)  # settings of what is off must not tell two cells apart
        changes: dict[Loss, dict[str, Any]] = {
            "full": {"enabled": True},
            "no-margin": {"enabled": True, "cos_margin": 0.0, "distance_margin": 0.0},
            # One term alone gets half the weight, as published.
            "no-mcos": {"enabled": True, "cos_weight": 0.0, "weight": base.weight / 2},
            "no-mdms": {"enabled": True, "distance_weight": 0.0, "weight": base.weight / 2},
        }
        return replace(base, **changes[loss])

    def work_folder(self, kind: str, name: str) -> Path:
        """Where the models of a cell lie."""
        return self.folder / "work" / f"{kind}-{name}"

    def tokenizer(self, cell: TokenizerCell) -> train_tokenizer.Config:
        """Recipe of a tokenizer, without its place."""
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
            # Without alignment it is not used, and must not tell two cells apart.
            teacher=train_tokenizer.TeacherConfig() if cell.teacher == NONE else self.teacher(cell.teacher),
            objective=replace(recipe.objective, alignment=self._alignment(cell.loss)),
            optimizer=recipe.optimizer,
            discriminator_optimizer=recipe.discriminator_optimizer,
            training=replace(engine, precision=recipe.precision),
            compile=recipe.compile,
        )

    def placed_tokenizer(self, cell: TokenizerCell) -> train_tokenizer.Config:
        """Recipe of a tokenizer, to be run."""
        recipe = self.tokenizer(cell)
        if recipe.teacher.cache_features:
            features = str(self.folder / "teacher-features")
            recipe = replace(recipe, teacher=replace(recipe.teacher, features_folder=features))
        return replace(recipe, output=str(self.tokenizer_folder(cell) / "run"))

    def tokenizer_folder(self, cell: TokenizerCell) -> Path:
        """Holds `run` and the latents."""
        return self.work_folder("tokenizer", self.tokenizer_name(cell))

    @property
    def _kind_of_latents(self) -> tuple[str, bool, str]:
        """What latents of one tokenizer may differ in."""
        return self.config.tokenizer.latent_dtype, self.config.tokenizer.flips, self.config.measure.precision

    def latents_folder(self, cell: TokenizerCell) -> Path:
        """Latents of the training images; those made in another way lie beside them."""
        return self.tokenizer_folder(cell) / f"latents-{digest(self._kind_of_latents)[:8]}"

    def encoding(self, cell: TokenizerCell) -> encode.Config:
        """Recipe of the latents of the training images."""
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
        """Recipe of a generator, without its place."""
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
        """Recipe of a generator, to be run."""
        tokenizer = self.encoding(cell.tokenizer)
        return replace(
            self.generator(cell),
            output=str(self.generator_folder(cell) / "run"),
            latents=tokenizer.output,
            tokenizer=tokenizer.tokenizer,
        )

    def generator_folder(self, cell: GeneratorCell) -> Path:
        """Holds `run`."""
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
        """Hash of the recipe and the training images."""
        own = to_plain(self.tokenizer(cell))
        del own["frechet"]  # watches a training, and changes nothing of it
        return digest("tokenizer", _telling(own), self.fingerprints[0])

    def generator_name(self, cell: GeneratorCell) -> str:
        """Hash of the recipe, the tokenizer and how its latents are made."""
        own = _telling(to_plain(self.generator(cell)))
        del own["initial"]  # the runner never sets it, and it is younger than the first results
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
        """The job of a kind for a cell."""
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
        """All work, each job after the one it needs; cells of one hash are one job."""
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
    """LightningDiT without what the rows of Table 1 after `row` add.

    The rows before `beta2` have AdamW's usual 0.999, those before `batch` a quarter of the batch and half of the
    learning rate; DiT predicts noise on the variance-preserving path. Images seen stay the same.
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
