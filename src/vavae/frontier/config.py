"""The recipe of a frontier: data, recipes of all tokenizers and generators, measurements, and the grid."""

from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal, get_args

from vavae.config import flat, to_plain
from vavae.config.image_size import square_side
from vavae.data.images import ImagesConfig
from vavae.device import Precision
from vavae.errors import UserError
from vavae.models.representation import RepresentationConfig
from vavae.stages import train_dit, train_tokenizer
from vavae.transformer import ditdh
from vavae.transformer.sizes import PATCH_SIZES, SIZES

Kind = Literal["tokenizer", "uniformity", "generator", "curve", "hidden"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Loss = Literal["full", "no-mcos", "no-mdms", "no-margin", "none"]

LadderRow = Literal[
    "dit", "rectified-flow", "batch", "beta2", "lognorm", "direction", "swiglu", "rmsnorm", "rope", "aligned"
]
ROWS: tuple[LadderRow, ...] = get_args(LadderRow)

Method = Literal["none", "repa", "irepa", "reg", "joint"]

PUBLISHED_SIZES = (*SIZES, *(f"{ditdh.PREFIX}{name}" for name in ditdh.SIZES))

ROW_NAMES: dict[str, str] = {
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
LOSS_NAMES: dict[str, str] = {
    "none": "no alignment",
    "full": "full",
    "no-mcos": "without mcos",
    "no-mdms": "without mdms",
    "no-margin": "without margins",
}
METHOD_NAMES: dict[Method, str] = {
    "none": "none",
    "repa": "REPA",
    "irepa": "iREPA",
    "reg": "REG",
    "joint": "joint (REPA-E)",
}

_SHAPE = ("width", "depth", "heads", "head_width", "head_depth", "head_heads")
# Keys that the grid sets in the recipes of the cells, so that `tokenizer` and `generator` must not.
_SET_BY_GRID = {
    "tokenizer": (
        *("output", "data", "initial", "stages", "representation"),
        *("tokenizer.latent_channels", "objective.alignment.enabled"),
        *("teacher.name", "teacher.input_size", "teacher.features_folder", "training.seed", "training.device"),
    ),
    "generator": (
        *("output", "latents", "validation_latents", "tokenizer", "initial", "training.seed", "training.device"),
        *("alignment", *(f"transformer.{name}" for name in ("size", "patch_size", "class_token", *_SHAPE))),
    ),
}


@cache
def _defaults(config_class: type) -> dict[str, Any]:
    return flat(to_plain(config_class()))


def differing(config: Any) -> dict[str, Any]:
    """Return the values that differ from the defaults of the class of `config`, by dotted key."""
    config_class: type = type(config)
    defaults = _defaults(config_class)
    return {
        key: value for key, value in flat(to_plain(config)).items() if key not in defaults or defaults[key] != value
    }


@dataclass(frozen=True)
class SizeConfig:
    """A size of the transformer: a further one, or a published one with another length of training.

    Attributes:
        width: Channels of a token; null for a published size, here and below.
        depth: Number of blocks.
        heads: Attention heads.
        head_width: Channels of a token in the wide head, which makes it a DiT^DH; null for a LightningDiT, here and
            below.
        head_depth: Number of blocks of that head.
        head_heads: Its attention heads.
        images: Latents that generators of this size see; null is `generator.training.images`.
    """

    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    head_width: int | None = None
    head_depth: int | None = None
    head_heads: int | None = None
    images: int | None = None


@dataclass(frozen=True)
class MeasureConfig:
    """Settings of the measurements.

    Attributes:
        network: Feature network of rFID and gFID: `inception`, or `teacher:NAME@SIDE`, whose distances are called FD
            since they are not FIDs.
        samples: Samples per generator.
        curve_samples: Samples per point of a curve.
        reference_images: Training images that samples are compared with; null for all.
        reconstructions: Test images that are reconstructed; null for all.
        latents: Maximum number of test latents for uniformity, probe and cosine, and of training latents for the
            probe.
        tsne_seeds: Runs of t-SNE that are averaged for the uniformity.
        teacher: Teacher of the cosine, the same for all tokenizers; null measures no cosine.
        batch_size: Images per batch.
        precision: Compute precision of the tokenizers.
        sampling_precision: Compute precision of the samples; the paper samples in float32.
        seed: Seed of the samples.
    """

    network: str = "inception"
    samples: int = 50_000
    curve_samples: int = 10_000
    reference_images: int | None = None
    reconstructions: int | None = None
    latents: int = 10_000
    tsne_seeds: int = 10
    teacher: str | None = "dinov2-small-focus"
    batch_size: int = 250
    precision: Precision = "fp32"
    sampling_precision: Precision = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "curve_samples", "batch_size", "tsne_seeds", "reference_images", "reconstructions"):
            value = getattr(self, name)
            least = 1 if name in ("batch_size", "tsne_seeds") else 2
            if value is not None and value < least:
                raise UserError(f"measure.{name} must be at least {least}, got {value}")
        if self.latents <= 30:
            raise UserError(f"measure.latents must be more than 30 for t-SNE, got {self.latents}")

    @property
    def is_fid(self) -> bool:
        """Whether distances are FIDs."""
        return self.network.startswith("inception")


@dataclass(frozen=True)
class Table2Config:
    """Table 2 and Figures 2, 4 (right) and 6: dimensions × teachers × sizes.

    Attributes:
        dimensions: Channels of the latent.
        teachers: `none` and names of teachers; NAME@SIDE overrides the input size, which by default gives the
            latent's grid.
        sizes: Sizes of the generator.
        seeds: One tokenizer with its generators per seed; empty leaves the table out.
    """

    dimensions: tuple[int, ...] = (16, 32, 64)
    teachers: tuple[str, ...] = ("none", "dinov2-small-focus")
    sizes: tuple[str, ...] = ("S/1",)
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class TeachersConfig:
    """Generators that differ by the teacher of their tokenizer.

    Attributes:
        dimension: Channels of the latent.
        teachers: As in table 2.
        size: Size of the generator.
        seeds: Empty leaves the table or figure out.
    """

    dimension: int = 32
    teachers: tuple[str, ...] = ("none", "dinov2-small-focus", "resnet50", "mobile-sam")
    size: str = "S/1"
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class LatentsConfig:
    """Latents aligned with a teacher against the teacher's own (RAE), with each transformer.

    Attributes:
        dimension: Channels of the aligned latent; the teacher's own has the teacher's width.
        teacher: The teacher, by a known name; `@SIDE` as in table 2.
        sizes: Sizes of the generators, of LightningDiT and DiT^DH.
        seeds: Empty leaves the table out.
    """

    dimension: int = 32
    teacher: str = "dinov2-small-focus"
    sizes: tuple[str, ...] = ("S/1", "DiTDH-S/1")
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class MethodsConfig:
    """Methods that align the transformer while it trains, on latents of one tokenizer without alignment.

    Attributes:
        dimension: Channels of the latent.
        teacher: The teacher, by a known name. Its input size gives the grid of the tokens; `@SIDE` overrides it.
        size: Size of the generator, a LightningDiT.
        block: Number of the aligned and measured block, as `alignment.block` of `vavae train-dit`.
        projector_hidden: Width of the hidden layers of the projector (iREPA's has none).
        methods: `none`; `repa`; `irepa`; `reg`, which is REPA with a class token; `joint` (REPA-E), which also tunes
            the tokenizer, by the settings of `vavae train-joint` and the published optimizer.
        seeds: Empty leaves the table out.
    """

    dimension: int = 32
    teacher: str = "dinov2-small-focus"
    size: str = "S/1"
    block: int | None = None
    projector_hidden: int = 2048
    methods: tuple[Method, ...] = get_args(Method)
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table5Config:
    """Table 5: which part of the alignment loss.

    Attributes:
        dimension: Channels of the latent.
        teacher: The teacher.
        losses: `full`, `no-mcos`, `no-mdms` (each with half the weight, as published), `no-margin`, `none`.
        size: Size of the generator.
        seeds: Empty leaves the table out.
    """

    dimension: int = 32
    teacher: str = "dinov2-small-focus"
    losses: tuple[Loss, ...] = ("none", "full", "no-mcos", "no-mdms", "no-margin")
    size: str = "S/1"
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class LadderConfig:
    """Table 1: from DiT to LightningDiT, row by row, on latents of one tokenizer without alignment.

    Attributes:
        dimension: Channels of the latent.
        teacher: Teacher of the last row's tokenizer.
        size: Size of the generator without patch; the last row has patch 1, the others 2.
        rows: Names of the rows.
        seeds: Empty leaves the table out.
    """

    dimension: int = 16
    teacher: str = "dinov2-small-focus"
    size: str = "S"
    rows: tuple[LadderRow, ...] = ROWS
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExperimentsConfig:
    """The grid. A cell that several experiments need is trained once; Table 6 shows all tokenizers.

    Attributes:
        table2: Dimensions, teachers and sizes.
        table4: Teachers (Table 4).
        table5: Parts of the loss.
        convergence: Curves of gFID with and without alignment (Figure 4, left), at each
            `generator.training.averages.snapshot_images`; the effect is largest at the highest dimension.
        ladder: Parts of LightningDiT.
        latents: Aligned latents or the teacher's own.
        alignment: REPA, iREPA, REG and REPA-E.
    """

    table2: Table2Config = field(default_factory=Table2Config)
    table4: TeachersConfig = field(default_factory=TeachersConfig)
    table5: Table5Config = field(default_factory=Table5Config)
    convergence: TeachersConfig = field(default_factory=lambda: TeachersConfig(64, ("none", "dinov2-small-focus")))
    ladder: LadderConfig = field(default_factory=LadderConfig)
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    alignment: MethodsConfig = field(default_factory=MethodsConfig)

    def __post_init__(self) -> None:
        for section in fields(self):
            for name, value in vars(getattr(self, section.name)).items():
                key = f"experiments.{section.name}.{name}"
                if value == () and name != "seeds":
                    raise UserError(f"{key} must not be empty; seeds [] leaves the table out")
                # A seed counted twice would look like two.
                if isinstance(value, tuple) and len(set(value)) < len(value):
                    raise UserError(f"{key} must not contain duplicates, got {list(value)}")


@dataclass(frozen=True)
class Config:
    """Train and measure a grid of tokenizers and generators, and write the paper's tables and figures.

    Attributes:
        output: Folder of all files; the page is `frontier.html` in it. The same command resumes, a changed recipe
            trains only new cells, and several processes on one folder share the jobs.
        title: Heading of the page.
        data: The images; of a folder without a test part `holdout` images are kept for testing. `crop: random` is
            for the training of tokenizers, as published; latents and metrics use center crops.
        tokenizer: Recipe of all tokenizers, with the keys of `vavae train-tokenizer`. Channels of the latent, teacher,
            parts of the alignment loss and seed come from the grid. `objective.alignment` describes the loss `full`.
        representation: Decoder of the representation autoencoders, whose latents are a teacher's own. All other keys
            of their training are those of `tokenizer`, and their generators have RAE's `shift: dimension` in training
            and sampling.
        generator: Recipe of all generators, with the keys of `vavae train-dit`. Size and seed come from the grid.
            `sampling` is for the tables and figures (the paper samples without guidance); `flip: true` stores and uses
            the latents of mirrored images; with `compile`, sampling compiles the blocks too.
        sizes: Sizes of the transformer by name. The grid names a size with its patch, for example `tiny/1`, like the
            published ones (`S/1`, `B/2`).
        latent_dtype: Stored type of the latents of the training images.
        measure: Settings of the measurements.
        experiments: The grid.
        device: auto, cpu, cuda, cuda:1, mps, …
        workers: Processes that share the jobs of this call. Several processes use a GPU better that small models do
            not fill; several GPUs are assigned in turn.
        time_limit: Minutes after which this call saves its state, writes the page and ends; null for no limit.
        kinds: Kinds of jobs to run: tokenizer, uniformity (t-SNE, which needs no GPU), generator, curve, hidden (hidden
            states); empty for all.
        page_only: Write tables, figures and page from the finished jobs, without training.
    """

    output: str = "runs/frontier"
    title: str = "The frontier in miniature"
    data: ImagesConfig = field(default_factory=lambda: ImagesConfig("cifar10", 32))
    tokenizer: train_tokenizer.Config = field(default_factory=train_tokenizer.Config)
    representation: RepresentationConfig = field(default_factory=RepresentationConfig)
    generator: train_dit.Config = field(default_factory=train_dit.Config)
    sizes: dict[str, SizeConfig] = field(default_factory=dict)
    latent_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    experiments: ExperimentsConfig = field(default_factory=ExperimentsConfig)
    device: str = "auto"
    workers: int = 1
    time_limit: float | None = None
    kinds: tuple[Kind, ...] = ()
    page_only: bool = False

    def __post_init__(self) -> None:
        if self.data.flip:
            raise UserError("data.flip must be false: generator.flip uses the latents of mirrored images")
        for part, keys in _SET_BY_GRID.items():
            for key in differing(getattr(self, part)):
                if any(key == own or key.startswith(f"{own}.") for own in keys):
                    raise UserError(f"{part}.{key} is set by the grid: use data, sizes, experiments or device")
        if self.data.crop == "random" and self.tokenizer.teacher.cache_features:
            raise UserError("data.crop random needs tokenizer.teacher.cache_features false")
        square_side("data.size", self.data.size, "'vavae frontier'")
        self.data.latent_size(self.tokenizer.tokenizer.factor)  # refuses sizes that do not divide
        for name, size in self.sizes.items():
            shape, head = (size.width, size.depth, size.heads), (size.head_width, size.head_depth, size.head_heads)
            if name not in PUBLISHED_SIZES and None in shape:
                known = ", ".join(PUBLISHED_SIZES)
                raise UserError(f"sizes.{name} must have width, depth and heads; only {known} are published")
            if name not in PUBLISHED_SIZES and None in head and any(head):
                raise UserError(f"sizes.{name} must have head_width, head_depth and head_heads, or none of them")
            if size.images is not None and size.images < 1:
                raise UserError(f"sizes.{name}.images must be at least 1, got {size.images}")
        if self.workers < 1:
            raise UserError(f"workers must be at least 1, got {self.workers}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise UserError(f"time_limit must be a positive number of minutes, got {self.time_limit}")
        averages, images = self.generator.training.averages, self.generator.training.images
        if len(averages.widths) > 1:
            raise UserError(f"generator.training.averages.widths must be one number, got {list(averages.widths)}")
        if self.experiments.convergence.seeds and (averages.snapshot_images or images) * 2 > images:
            raise UserError(
                "experiments.convergence: generator.training.averages must have widths, and snapshot_images of at most "
                f"half of generator.training.images, got {averages.snapshot_images}"
            )

    def transformer(self, size: str, key: str) -> train_dit.TransformerConfig:
        """Return the transformer of a size with its patch.

        Raises:
            UserError: The size is unknown; `key` is the key of the recipe that names it.
        """
        name, _, patch = size.partition("/")
        names = dict.fromkeys((*self.sizes, *PUBLISHED_SIZES))
        known = [f"{each}/{number}" for each in names for number in PATCH_SIZES]
        if size not in known:
            raise UserError(f"{key}: '{size}' must be a size with its patch: {', '.join(known)}")
        own = self.sizes.get(name, SizeConfig())
        base = name if name in PUBLISHED_SIZES else "DiTDH-S" if own.head_width else "S"
        shape = {key: getattr(own, key) for key in _SHAPE}
        if base.startswith(ditdh.PREFIX):
            return replace(self.generator.transformer, size=base, patch_size=int(patch), **shape)
        return replace(self.generator.transformer, size=f"{base}/{patch}", **shape)
