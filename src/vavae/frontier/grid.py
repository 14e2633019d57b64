"""The cells of a frontier and the jobs that train and measure them, named by hashes.

The name of a tokenizer is the hash of its recipe, as far as it differs from the defaults, and of the images. The name
of a generator is the hash of its own recipe and of its tokenizer's name. So several tables share a cell, a changed
recipe renames only the cells that depend on the change, and a new key of a recipe renames none.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from vavae.config import to_plain
from vavae.errors import UserError
from vavae.frontier.config import (
    LOSS_NAMES,
    METHOD_NAMES,
    ROW_NAMES,
    ROWS,
    Config,
    Kind,
    LadderRow,
    Loss,
    Method,
    TeachersConfig,
    differing,
)
from vavae.frontier.recipes import aligned, down_to, jointly
from vavae.losses import AlignmentConfig
from vavae.stages import encode, train_dit, train_joint, train_tokenizer
from vavae.stages.hidden_alignment import HiddenAlignmentConfig
from vavae.teachers.config import TeacherConfig
from vavae.teachers.registry import TEACHERS, TeacherSpec, teacher_spec
from vavae.tokenizer import AutoencoderConfig
from vavae.training.run_folder import IGNORED_KEYS
from vavae.transformer import LightningDiTConfig, TransformerShape

NONE = "none"
# Keys that no number of a cell depends on: paths, devices, logging.
_NOT_IN_NAMES = IGNORED_KEYS | {
    "latents",
    "tokenizer",
    "data.images",  # the fingerprint of the images is hashed, which covers the next three too
    "data.gray_range",
    "data.image_column",
    "data.label_column",
    "training.log_images",
    "training.validation_images",
}
# `sampling` is in the hash of the measurement; validation does not change a training.
_GROUPS_NOT_IN_NAMES = ("sampling.", "frechet.", "alignment.data.")


@dataclass(frozen=True)
class TokenizerCell:
    """A tokenizer of the grid."""

    dimension: int  # channels of the latent
    teacher: str  # `none`, or a teacher's name, with an input size after an @ to override the default
    loss: Loss  # parts of the alignment loss; `none` without a teacher
    seed: int  # seed of its training and of its generators' training
    own: bool = False  # whether the latent is the teacher's own

    @classmethod
    def of(cls, dimension: int, teacher: str, loss: Loss, seed: int) -> "TokenizerCell":
        """Return the cell; without a teacher or without a loss, both are `none`."""
        off = teacher == NONE or loss == "none"
        return cls(dimension, NONE if off else teacher, "none" if off else loss, seed)

    @property
    def label(self) -> str:
        """`d 16, dinov2-small-focus, seed 0`."""
        parts = (LOSS_NAMES[self.loss],) if self.loss not in ("full", "none") else ()
        own = "'s own" if self.own else ""
        return ", ".join((f"d {self.dimension}", f"{self.teacher}{own}", *parts, f"seed {self.seed}"))


@dataclass(frozen=True)
class GeneratorCell:
    """A generator of the grid."""

    tokenizer: TokenizerCell
    size: str  # size with patch, for example `S/1`
    row: LadderRow = "rope"  # last row of Table 1 that it includes; `rope` is the whole LightningDiT
    method: Method = "none"  # how the transformer is aligned

    @classmethod
    def of(cls, dimension: int, teacher: str, size: str, seed: int, loss: Loss = "full") -> "GeneratorCell":
        """Return the cell of the whole LightningDiT on the latents of a tokenizer."""
        return cls(TokenizerCell.of(dimension, teacher, loss, seed), size)

    @property
    def label(self) -> str:
        """`S/1 on d 16, none, seed 0`, with the row of Table 1 or the method, if there is one."""
        parts = ([] if self.row == "rope" else [ROW_NAMES[self.row]]) + (
            [] if self.method == "none" else [METHOD_NAMES[self.method]]
        )
        return f"{self.size} on {self.tokenizer.label}" + "".join(f": {part}" for part in parts)


Cell = TokenizerCell | GeneratorCell


@dataclass(frozen=True)
class Job:
    """One piece of work on a cell, with one result file."""

    kind: Kind  # `tokenizer` and `generator` train and measure; the others measure a trained model
    cell: Cell
    name: str  # hash of the recipe of training
    result: str  # name of the result file: kind, `name`, and a hash of the protocol
    needs: str = ""  # name of the job that trains the models it uses; "" for none

    @property
    def label(self) -> str:
        """Kind and cell, for logs."""
        return f"{self.kind} {self.cell.label}"


def _spec(name: str, key: str) -> TeacherSpec:
    """Return the teacher of a name with or without an input size; UserError, which names `key`, if it is unknown."""
    spec = teacher_spec(name.partition("@")[0])
    if spec is None:
        raise UserError(f"{key} must be one of {', '.join(spec.name for spec in TEACHERS)}, got {name}")
    return spec


def digest(*parts: Any) -> str:
    """Return 16 hexadecimal digits of the sha256 over plain values."""
    text = json.dumps(to_plain(parts), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _named_by(recipe: Any) -> dict[str, Any]:
    """Return the values of a recipe of training that name its cell, by dotted key."""
    return {
        key: value
        for key, value in differing(recipe).items()
        if key not in _NOT_IN_NAMES and not key.startswith(_GROUPS_NOT_IN_NAMES)
    }


class Grid:
    """All cells of a recipe, in the order of the jobs; `fingerprints` identify training and test images.

    Raises:
        UserError: A size, a teacher or its input size does not exist.
    """

    def __init__(self, config: Config, fingerprints: tuple[str, str]) -> None:
        self.config = config
        self.fingerprints = fingerprints
        self.folder = Path(config.output)
        self._names: dict[Cell, str] = {}
        for cell in self.generators:  # a wrong size or teacher is reported before training
            self.shape(cell)
            self.recipe(cell)
            self.tokenizer(cell.tokenizer)
        if config.measure.teacher is not None:
            self.teacher(config.measure.teacher, self.aligned_side, "measure.teacher")

    @property
    def aligned_side(self) -> int:
        """Height and width of a latent that is not a teacher's own."""
        return self.config.data.latent_size(self.config.tokenizer.tokenizer.factor)[0]

    def side(self, cell: TokenizerCell) -> int:
        """Return height and width of the latents of a tokenizer."""
        if not cell.own:
            return self.aligned_side
        return self.config.data.latent_size(self.config.representation.patch_size)[0]

    # Cells of the experiments

    def table2(self) -> Iterator[GeneratorCell]:
        """Yield the cells of Table 2, seed by seed."""
        wanted = self.config.experiments.table2
        for seed, size, dimension, teacher in product(wanted.seeds, wanted.sizes, wanted.dimensions, wanted.teachers):
            yield GeneratorCell.of(dimension, teacher, size, seed)

    def by_teacher(self, wanted: TeachersConfig) -> Iterator[GeneratorCell]:
        """Yield the cells of Table 4, or of Figure 4 (left)."""
        for seed, teacher in product(wanted.seeds, wanted.teachers):
            yield GeneratorCell.of(wanted.dimension, teacher, wanted.size, seed)

    def table5(self) -> Iterator[GeneratorCell]:
        """Yield the cells of Table 5."""
        wanted = self.config.experiments.table5
        for seed, loss in product(wanted.seeds, wanted.losses):
            yield GeneratorCell.of(wanted.dimension, wanted.teacher, wanted.size, seed, loss)

    def latents(self) -> Iterator[GeneratorCell]:
        """Yield the cells of aligned latents and the teacher's own.

        Raises:
            UserError: The teacher has no short name.
        """
        wanted = self.config.experiments.latents
        for seed in wanted.seeds:
            plain = TokenizerCell.of(wanted.dimension, wanted.teacher, "full", seed)
            width = _spec(wanted.teacher, "experiments.latents.teacher").width
            own = TokenizerCell(width, wanted.teacher, "none", seed, own=True)
            yield from (GeneratorCell(tokenizer, size) for tokenizer in (plain, own) for size in wanted.sizes)

    def by_method(self) -> Iterator[GeneratorCell]:
        """Yield the cells of the methods that align the transformer."""
        wanted = self.config.experiments.alignment
        for seed, method in product(wanted.seeds, wanted.methods):
            plain = TokenizerCell.of(wanted.dimension, NONE, "none", seed)
            yield GeneratorCell(plain, wanted.size, method=method)

    def ladder(self) -> Iterator[tuple[LadderRow, GeneratorCell]]:
        """Yield the rows of Table 1 with their cells."""
        wanted = self.config.experiments.ladder
        for seed, row in product(wanted.seeds, ROWS):
            if row not in wanted.rows:
                continue
            if row == "aligned":
                yield row, GeneratorCell.of(wanted.dimension, wanted.teacher, f"{wanted.size}/1", seed)
            else:
                plain = TokenizerCell.of(wanted.dimension, NONE, "none", seed)
                yield row, GeneratorCell(plain, f"{wanted.size}/2", row)

    @cached_property
    def generators(self) -> tuple[GeneratorCell, ...]:
        """Every generator once, sorted by seed, so that a stopped grid has complete seeds."""
        found = [*self.table2(), *self.curves, *self.by_teacher(self.config.experiments.table4), *self.table5()]
        every = dict.fromkeys([*found, *(cell for _, cell in self.ladder()), *self.latents(), *self.by_method()])
        seeds = list(dict.fromkeys(cell.tokenizer.seed for cell in every))
        return tuple(sorted(every, key=lambda cell: seeds.index(cell.tokenizer.seed)))

    @cached_property
    def curves(self) -> tuple[GeneratorCell, ...]:
        """Generators with a gFID curve along training."""
        return tuple(self.by_teacher(self.config.experiments.convergence))

    @cached_property
    def tokenizers(self) -> tuple[TokenizerCell, ...]:
        """Every tokenizer once."""
        return tuple(dict.fromkeys(cell.tokenizer for cell in self.generators))

    # Recipes

    def teacher(self, name: str, side: int, key: str = "experiments") -> TeacherConfig:
        """Return a teacher at the input size that gives a grid of `side`, or at the size after its @.

        Raises:
            UserError: The teacher is unknown; `key` is the key of the recipe that names it.
        """
        plain, _, given = name.partition("@")
        spec = teacher_spec(plain)
        if spec is None and "/" not in plain and not Path(plain).is_dir():
            known = ", ".join(spec.name for spec in TEACHERS)
            raise UserError(
                f"{key}: a teacher must be a known name, a folder or a hub model, got '{plain}' (names: {known})"
            )
        size: int | None = None
        if given:
            if not given.isdigit():
                raise UserError(f"{key}: the input size of teacher '{name}' must be an integer, got {given!r}")
            size = int(given)
        elif spec is not None and not spec.name.startswith("sam-"):  # SAM has a fixed input size
            size = spec.patch * side
        return replace(self.config.tokenizer.teacher, name=plain, input_size=size)

    @cached_property
    def aligning_teacher(self) -> TeacherConfig:
        """The teacher of the methods that align the transformer, at the input size that gives the grid of tokens.

        Raises:
            UserError: The teacher has no short name, or the size is a DiT^DH.
        """
        wanted, key = self.config.experiments.alignment, "experiments.alignment"
        spec = _spec(wanted.teacher, f"{key}.teacher")
        shape = self.config.transformer(wanted.size, f"{key}.size")
        if shape.has_head:
            raise UserError(f"{key}.size must be a LightningDiT, got {wanted.size}")
        return replace(self.teacher(wanted.teacher, self.aligned_side // shape.patch, key), name=spec.name)

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

    def tokenizer(self, cell: TokenizerCell) -> train_tokenizer.Config:
        """Return the recipe of a tokenizer, without paths."""
        base = self.config.tokenizer
        return replace(
            base,
            data=self.config.data,
            tokenizer=AutoencoderConfig() if cell.own else replace(base.tokenizer, latent_channels=cell.dimension),
            representation=self.config.representation if cell.own else None,
            # Without alignment the teacher is not used and must not change the name.
            teacher=TeacherConfig() if cell.teacher == NONE else self.teacher(cell.teacher, self.side(cell)),
            objective=replace(base.objective, alignment=self._alignment(cell.loss)),
            training=replace(base.training, seed=cell.seed, device=self.config.device),
        )

    def placed_tokenizer(self, cell: TokenizerCell) -> train_tokenizer.Config:
        """Return the recipe of a tokenizer with its paths."""
        recipe = self.tokenizer(cell)
        if recipe.teacher.cache_features:
            features = str(self.folder / "teacher-features")
            recipe = replace(recipe, teacher=replace(recipe.teacher, features_folder=features))
        return replace(recipe, output=str(self.cell_folder(cell) / "run"))

    @property
    def _kind_of_latents(self) -> tuple[str, bool, str]:
        """Settings in which the latents of one tokenizer can differ."""
        return self.config.latent_dtype, self.config.generator.flip, self.config.measure.precision

    def latents_folder(self, cell: TokenizerCell) -> Path:
        """Return the folder of the latents of the training images; its name contains the hash of their settings."""
        tokens = [self._class_token] if self._with_class_tokens(cell) else []
        return self.cell_folder(cell) / f"latents-{digest(self._kind_of_latents, *tokens)[:8]}"

    @property
    def _class_token(self) -> str:
        """The teacher of the class tokens, as `vavae encode` takes it."""
        teacher = self.aligning_teacher
        return teacher.name if teacher.input_size is None else f"{teacher.name}@{teacher.input_size}"

    def _with_class_tokens(self, cell: TokenizerCell) -> bool:
        """Return whether a generator needs class tokens with the latents of a tokenizer."""
        return any(each.method == "reg" and each.tokenizer == cell for each in self.generators)

    def encoding(self, cell: TokenizerCell) -> encode.Config:
        """Return the recipe of the latents of the training images."""
        return encode.Config(
            tokenizer=str(self.cell_folder(cell) / "run" / "tokenizer"),
            output=str(self.latents_folder(cell)),
            data=replace(self.config.data, crop="center"),
            flips=self.config.generator.flip,
            dtype=self.config.latent_dtype,
            seed=cell.seed,
            batch_size=self.config.measure.batch_size,
            device=self.config.device,
            precision=self.config.measure.precision,
            class_token=self._class_token if self._with_class_tokens(cell) else None,
        )

    def generator(self, cell: GeneratorCell) -> train_dit.Config:
        """Return the recipe of a generator, without paths."""
        base, size = self.config.generator, self.config.sizes.get(cell.size.partition("/")[0])
        images = (size.images if size is not None else None) or base.training.images
        full = replace(
            base,
            transformer=self.config.transformer(cell.size, "experiments"),
            training=replace(base.training, images=images, seed=cell.tokenizer.seed, device=self.config.device),
        )
        if cell.tokenizer.own:
            times = replace(base.flow.times, shift="dimension")
            flow, sampling = replace(base.flow, times=times), replace(base.sampling, shift="dimension")
            full = replace(full, flow=flow, sampling=sampling)
        if cell.method in ("repa", "irepa", "reg"):
            width = _spec(self.aligning_teacher.name, "experiments.alignment.teacher").width
            full = aligned(full, self.config, cell.method, self.aligning_teacher, width)
        return down_to(full, cell.row)

    def shape(self, cell: GeneratorCell) -> TransformerShape:
        """Return the complete shape of a generator's transformer, for ten classes."""
        return self.generator(cell).transformer.resolve(cell.tokenizer.dimension, self.side(cell.tokenizer), 10)

    def block(self, cell: GeneratorCell) -> int:
        """Return the number of the block whose hidden states are aligned and measured.

        Raises:
            UserError: It does not exist.
        """
        shape = self.shape(cell)
        assert isinstance(shape, LightningDiTConfig)  # see `aligning_teacher`
        return HiddenAlignmentConfig(block=self.config.experiments.alignment.block).block_of(shape.depth)

    def recipe(self, cell: GeneratorCell) -> train_dit.Config | train_joint.Config:
        """Return the recipe that trains a generator, without paths."""
        recipe = self.generator(cell)
        if cell.method != "joint":
            return recipe
        block, tokenizer = self.block(cell), self.tokenizer(cell.tokenizer)
        return jointly(recipe, tokenizer, self.config.experiments.alignment, self.aligning_teacher, block)

    def placed_generator(self, cell: GeneratorCell) -> train_dit.Config | train_joint.Config:
        """Return the recipe that trains a generator, with its paths."""
        recipe, encoding = self.recipe(cell), self.encoding(cell.tokenizer)
        features, output = str(self.folder / "teacher-features"), str(self.cell_folder(cell) / "run")
        if isinstance(recipe, train_joint.Config):
            teacher = replace(recipe.teacher, features_folder=features)
            return replace(recipe, output=output, initial=encoding.tokenizer, teacher=teacher)
        if recipe.alignment is not None:
            teachers = tuple(replace(one, features_folder=features) for one in recipe.alignment.teachers)
            recipe = replace(recipe, alignment=replace(recipe.alignment, teachers=teachers))
        return replace(recipe, output=output, latents=encoding.output, tokenizer=encoding.tokenizer)

    # Names

    def name(self, cell: Cell) -> str:
        """Return the hash of a cell's recipe and of its images or its tokenizer."""
        if cell not in self._names:
            if isinstance(cell, TokenizerCell):
                parts: tuple[Any, ...] = ("tokenizer", _named_by(self.tokenizer(cell)), self.fingerprints[0])
            else:
                trained_on = self.name(cell.tokenizer), self._kind_of_latents
                parts = ("generator", _named_by(self.recipe(cell)), *trained_on)
            self._names[cell] = digest(*parts)
        return self._names[cell]

    def cell_folder(self, cell: Cell) -> Path:
        """Return the folder that contains `run`, and the latents of a tokenizer."""
        kind = "tokenizer" if isinstance(cell, TokenizerCell) else "generator"
        return self.folder / "work" / f"{kind}-{self.name(cell)}"

    def shown_name(self, cell: Cell) -> str:
        """Return the label of a cell for the page, without the seed if the grid has only one."""
        several = len({each.seed for each in self.tokenizers}) > 1
        return cell.label if several else re.sub(r", seed \d+", "", cell.label)

    def job(self, kind: Kind, cell: Cell) -> Job:
        """Return the job of a kind on a cell."""
        measure, name = self.config.measure, self.name(cell)
        if isinstance(cell, TokenizerCell):
            how: list[Any] = [measure.latents, measure.precision, self.fingerprints[1]]
            if kind == "uniformity":
                return Job(kind, cell, name, f"{kind}-{name}-{digest(how, measure.tsne_seeds)}", name)
            how += [measure.network, measure.reconstructions, measure.teacher]
            return Job(kind, cell, name, f"{kind}-{name}-{digest(how)}")
        if kind == "hidden":
            seen = [measure.latents, self.fingerprints[1], measure.seed, self._class_token, self.block(cell)]
            return Job(kind, cell, name, f"{kind}-{name}-{digest(seen)}", name)
        how = [measure.samples if kind == "generator" else measure.curve_samples, measure.reference_images]
        how += [measure.network, measure.seed, measure.sampling_precision, differing(self.generator(cell).sampling)]
        needs = self.name(cell.tokenizer) if kind == "generator" else name
        return Job(kind, cell, name, f"{kind}-{name}-{digest(how)}", needs)

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All jobs, each after the job that it needs; cells with the same hash are one job."""
        found: list[Job] = []
        measured = set(self.by_method())
        for cell in self.generators:
            found += [self.job("tokenizer", cell.tokenizer), self.job("generator", cell)]
            found += [self.job("curve", cell)] if cell in self.curves else []
            found += [self.job("hidden", cell)] if cell in measured else []
            found += [self.job("uniformity", cell.tokenizer)]
        once: dict[str, Job] = {}
        for job in found:
            once.setdefault(job.result, job)
        return tuple(once.values())
