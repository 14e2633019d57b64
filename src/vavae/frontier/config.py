"""The recipe of a frontier: data, settings of all tokenizers and generators, measurements, and the grid."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vavae.config.image_size import square_side
from vavae.data.images import ImagesConfig
from vavae.device import Precision
from vavae.errors import UserError
from vavae.losses import ObjectiveConfig
from vavae.models import SamplingConfig
from vavae.stages.train_dit import TransformerConfig
from vavae.training.compile import Compilation
from vavae.training.optimizer import OptimizerConfig
from vavae.transformer.sizes import PATCH_SIZES, SIZES

Kind = Literal["tokenizer", "uniformity", "generator", "curve"]
KINDS: tuple[Kind, ...] = ("tokenizer", "uniformity", "generator", "curve")

Loss = Literal["full", "no-mcos", "no-mdms", "no-margin", "none"]

LadderRow = Literal[
    "dit",
    "rectified-flow",
    "batch",
    "beta2",
    "lognorm",
    "direction",
    "swiglu",
    "rmsnorm",
    "rope",
    "aligned",
]


def _positive(section: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{section}.{name} must be at least 1, got {value}")


def _listed(section: str, **values: tuple[Any, ...]) -> None:
    """Check the lists of a table: not empty, and without duplicates, since a seed counted twice would look like two."""
    for name, value in values.items():
        if not value and name != "seeds":
            raise UserError(f"experiments.{section}.{name} must not be empty; seeds [] leaves the table out")
        if len(set(value)) < len(value):
            raise UserError(f"experiments.{section}.{name} must not contain duplicates, got {list(value)}")


@dataclass(frozen=True)
class TokenizerRecipe:
    """Settings of all tokenizers; channels of the latent, teacher, loss and seed come from the experiments.

    Attributes:
        images: Images that each tokenizer sees.
        batch_size: Images per step.
        base_channels: Width before multiplication by `channel_multipliers`.
        channel_multipliers: One per resolution level; n levels downsample by 2^(n-1).
        blocks_per_level: Residual blocks per level.
        attention_levels: Levels with attention.
        objective: All loss terms. Its `alignment` describes the loss `full` and is on with a teacher.
        optimizer: Optimizer of autoencoder and projection.
        discriminator_optimizer: Optimizer of the discriminator.
        ema_decay: Decay of the averaged weights, which are measured; null measures the weights themselves.
        compile: Compile encoder, decoder and LPIPS.
        precision: Compute precision of training.
        random_crop: Train on random crops of images larger than `data.size`, as published. Latents and metrics use
            center crops. Needs `cache_features` false.
        cache_features: Run each teacher once over the training images and store its features on the disk.
        latent_dtype: Stored type of the latents of the training images.
        flips: Train generators on the latents of mirrored images too.
    """

    images: int = 1_000_000
    batch_size: int = 64
    base_channels: int = 32
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    blocks_per_level: int = 1
    attention_levels: tuple[int, ...] = ()
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", 1e-4, (0.5, 0.9)))
    discriminator_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", 1e-4, (0.5, 0.9)))
    ema_decay: float | None = None
    compile: bool = False
    precision: Precision = "auto"
    random_crop: bool = False
    cache_features: bool = True
    latent_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    flips: bool = True

    def __post_init__(self) -> None:
        _positive("tokenizer", images=self.images, batch_size=self.batch_size, base_channels=self.base_channels)
        if not self.channel_multipliers:
            raise UserError("tokenizer.channel_multipliers must have one number per resolution level, got none")
        if self.random_crop and self.cache_features:
            raise UserError("tokenizer.random_crop: true needs tokenizer.cache_features false")


@dataclass(frozen=True)
class SizeConfig:
    """A size of the transformer in addition to the published ones.

    Attributes:
        width: Channels of a token.
        depth: Number of blocks.
        heads: Attention heads.
    """

    width: int
    depth: int
    heads: int


@dataclass(frozen=True)
class GeneratorRecipe:
    """Settings of all generators; size and seed come from the experiments.

    Attributes:
        images: Latents that each generator sees.
        images_of_size: Exceptions by size, for example `{B/1: 204800000}`.
        batch_size: Latents per step.
        sizes: Further sizes by name. The experiments name a size with its patch, for example `tiny/1`, like the
            published ones (`S/1`, `B/2`).
        optimizer: Optimizer of the transformer.
        ema_decay: Decay of the averaged weights, which are measured.
        sampling: Sampling for the tables and figures; the paper samples without guidance.
        curve_points: Number of averaged weights along the run that are stored for the curves of gFID; 0 for none.
        curve_width: Length of these averages, relative to the run so far (arXiv 2312.02696).
        compile: Compile the transformer, `true` as one graph or `blocks` each block; sampling then compiles the blocks
            too.
        precision: Compute precision of training.
        fp32_sampling: Draw samples in float32, as published, rather than in the precision of training.
    """

    images: int = 5_000_000
    images_of_size: dict[str, int] = field(default_factory=dict)
    batch_size: int = 256
    sizes: dict[str, SizeConfig] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_decay: float = 0.9999
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    curve_points: int = 0
    curve_width: float = 0.1
    compile: Compilation = False
    precision: Precision = "auto"
    fp32_sampling: bool = True

    def __post_init__(self) -> None:
        _positive("generator", images=self.images, batch_size=self.batch_size)
        for size, images in self.images_of_size.items():
            _positive("generator.images_of_size", **{size: images})
            self.shape(size, "generator.images_of_size")
        if self.curve_points < 0 or self.curve_points > self.images // self.batch_size:
            raise UserError(f"generator.curve_points must be from 0 to the number of steps, got {self.curve_points}")

    def shape(self, size: str, key: str) -> TransformerConfig:
        """Return the transformer of a size with its patch.

        Raises:
            UserError: The size is unknown; `key` is the key of the recipe that names it.
        """
        name, _, patch = size.partition("/")
        known = [f"{each}/{number}" for each in (*self.sizes, *SIZES) for number in PATCH_SIZES]
        if size not in known:
            raise UserError(f"{key}: '{size}' must be a size with its patch: {', '.join(known)}")
        if name in self.sizes:
            own = self.sizes[name]
            return TransformerConfig(f"S/{patch}", own.width, own.depth, own.heads)
        return TransformerConfig(size)


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
        precision: Compute precision of the tokenizers; generators have their own.
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

    def __post_init__(self) -> None:
        _listed("table2", dimensions=self.dimensions, teachers=self.teachers, sizes=self.sizes, seeds=self.seeds)


@dataclass(frozen=True)
class Table4Config:
    """Table 4: which teacher.

    Attributes:
        dimension: Channels of the latent.
        teachers: As in table 2.
        size: Size of the generator.
        seeds: Empty leaves the table out.
    """

    dimension: int = 32
    teachers: tuple[str, ...] = ("none", "dinov2-small-focus", "resnet50", "mobile-sam")
    size: str = "S/1"
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _listed("table4", teachers=self.teachers, seeds=self.seeds)


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

    def __post_init__(self) -> None:
        _listed("table5", losses=self.losses, seeds=self.seeds)


@dataclass(frozen=True)
class ConvergenceConfig:
    """Figure 4 (left): gFID over training, with and without alignment; needs two `generator.curve_points` or more.

    Attributes:
        dimension: Channels of the latent; the effect is largest at the highest dimension.
        teachers: As in table 2.
        size: Size of the generator.
        seeds: Empty leaves the figure out.
    """

    dimension: int = 64
    teachers: tuple[str, ...] = ("none", "dinov2-small-focus")
    size: str = "S/1"
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _listed("convergence", teachers=self.teachers, seeds=self.seeds)


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
    rows: tuple[LadderRow, ...] = get_args(LadderRow)
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _listed("ladder", rows=self.rows, seeds=self.seeds)


@dataclass(frozen=True)
class ExperimentsConfig:
    """The grid. A cell that several experiments need is trained once; Table 6 shows all tokenizers.

    Attributes:
        table2: Dimensions, teachers and sizes.
        table4: Teachers.
        table5: Parts of the loss.
        convergence: Curves of gFID.
        ladder: Parts of LightningDiT.
    """

    table2: Table2Config = field(default_factory=Table2Config)
    table4: Table4Config = field(default_factory=Table4Config)
    table5: Table5Config = field(default_factory=Table5Config)
    convergence: ConvergenceConfig = field(default_factory=ConvergenceConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)


@dataclass(frozen=True)
class Config:
    """Train and measure a grid of tokenizers and generators, and write the paper's tables and figures.

    Attributes:
        output: Folder of all files; the page is `frontier.html` in it. The same command resumes, a changed recipe
            trains only new cells, and several processes on one folder share the jobs.
        title: Heading of the page.
        data: The images, center-cropped; of a folder without a test part `holdout` images are kept for testing.
        tokenizer: Settings of all tokenizers.
        generator: Settings of all generators.
        measure: Settings of the measurements.
        experiments: The grid.
        device: auto, cpu, cuda, cuda:1, mps, …
        workers: Processes that share the jobs of this call. Several processes use a GPU better that small models do
            not fill; several GPUs are assigned in turn.
        time_limit: Minutes after which this call saves its state, writes the page and ends; null for no limit.
        kinds: Kinds of jobs to run: tokenizer, uniformity (t-SNE, which needs no GPU), generator, curve; empty for
            all.
        page_only: Write tables, figures and page from the finished jobs, without training.
    """

    output: str = "runs/frontier"
    title: str = "The frontier in miniature"
    data: ImagesConfig = field(default_factory=lambda: ImagesConfig("cifar10", 32))
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    generator: GeneratorRecipe = field(default_factory=GeneratorRecipe)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    experiments: ExperimentsConfig = field(default_factory=ExperimentsConfig)
    device: str = "auto"
    workers: int = 1
    time_limit: float | None = None
    kinds: tuple[Kind, ...] = ()
    page_only: bool = False

    def __post_init__(self) -> None:
        if self.data.crop != "center" or self.data.flip:
            raise UserError(
                "data: crop must be center and flip false: tokenizers, latents and metrics use the same images"
            )
        side = square_side("data.size", self.data.size, "'vavae frontier'")
        factor = 2 ** (len(self.tokenizer.channel_multipliers) - 1)
        if side % factor:
            raise UserError(f"data.size must be a multiple of {factor}, the factor of the tokenizers, got {side}")
        if self.workers < 1:
            raise UserError(f"workers must be at least 1, got {self.workers}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise UserError(f"time_limit must be a positive number of minutes, got {self.time_limit}")
        if self.experiments.convergence.seeds and self.generator.curve_points < 2:
            raise UserError("experiments.convergence: generator.curve_points must be at least 2")
