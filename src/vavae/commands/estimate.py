"""Estimate what a training needs before it starts: parameters, operations, memory, disk, and hours on named GPUs."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vavae.config import load_recipe, to_plain
from vavae.config.image_size import height_width
from vavae.config.recipes import package_recipe, recipe_file, recipe_names
from vavae.data import LatentDataset
from vavae.device import Compute
from vavae.errors import UserError
from vavae.io.yaml_files import read_yaml
from vavae.stages import encode, train_dit, train_joint, train_tokenizer
from vavae.stages.costs import JointCosts, TokenizerCosts, TransformerCosts, vit_costs
from vavae.stages.hidden_alignment import Projectors
from vavae.teachers.config import TeacherConfig
from vavae.teachers.registry import teacher_spec
from vavae.training.config import TrainingConfig
from vavae.training.gpus import GPUS, GpuName
from vavae.training.optimizer import OptimizerConfig
from vavae.training.state import state_bytes
from vavae.training.throughput import USUAL_MFU, format_bytes, format_seconds, training_seconds

# TF32 products, which convolutions use in float32, have half the rate of bf16 on all these GPUs.
_FP32_SHARE = 0.5
# Of a GPU's memory; the rest is for the driver and for workspaces of kernels, which are not counted.
_USABLE = 0.95


@dataclass(frozen=True)
class Config:
    """Estimate a training.

    Attributes:
        recipe: Recipe of `train-tokenizer`, `train-dit` or `train-joint`: a file, or a name that `vavae recipes` lists.
        gpu: The GPUs.
        count: How many of each work together.
        mfu: Share of the peak that the training reaches.
        latent_shape: Channels, height and width of the latents of a `train-dit` recipe; null reads the folder of
            latents or the tokenizer's recipe.
        classes: Classes of the latents, or of the images of `train-joint`; null reads the folder of latents.
        dataset_images: Images of the data set, for the size of the latents; null reads the folder of latents.
        json: Print JSON.
    """

    recipe: str = "imagenet256/lightningdit-xl-64ep"
    gpu: tuple[GpuName, ...] = ("RTX 4090", "L40S", "A100", "H100", "H200")
    count: int = 1
    mfu: float = USUAL_MFU
    latent_shape: tuple[int, int, int] | None = None
    classes: int | None = None
    dataset_images: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise UserError(f"mfu must be above 0 and at most 1, got {self.mfu}")
        for name in ("count", "classes", "dataset_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.latent_shape is not None and min(self.latent_shape) < 1:
            raise UserError(f"latent_shape must be three numbers of at least 1, got {list(self.latent_shape)}")


@dataclass(frozen=True)
class OneGpu:
    """The training on one kind of GPU.

    Attributes:
        images_at_once: The largest part of a batch that fits, by halving, as training finds it; None if one image does
            not fit.
        memory: Peak in bytes with that many images, or with one.
        hours: Time of the whole run.
    """

    name: str
    peak_tflops: float
    memory_gb: float
    images_at_once: int | None
    memory: int
    hours: float


@dataclass(frozen=True)
class Estimate:
    """What a training needs; sizes in bytes, memory of each GPU.

    Attributes:
        parameters: Trained parameters by part.
        frozen: Parameters of frozen networks.
        flops_per_image: Operations of one image in a training step, without recomputation; the mean over the run.
        memory: By part; activations are of `images_at_once` images.
        disk: By part.
        notes: What was read, assumed or left out.
    """

    recipe: str
    command: str
    steps: int
    batch_size: int
    precision: Compute
    parameters: dict[str, int]
    frozen: dict[str, int]
    flops_per_image: float
    images_at_once: int
    memory: dict[str, int]
    disk: dict[str, int]
    gpus: list[OneGpu] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_training_recipe(name: str) -> tuple[str, Path, Any]:
    """Return command, file and configuration of a recipe for a training.

    Raises:
        UserError: The recipe does not exist, or it is for another command.
    """
    path = recipe_file(name)
    keys = set(read_yaml(path))
    stages = {"train-tokenizer": train_tokenizer, "train-dit": train_dit, "train-joint": train_joint}
    known = {command: {f.name for f in fields(stage.Config)} for command, stage in stages.items()}
    shared = set.intersection(*known.values())
    command = min(known, key=lambda one: len(keys - known[one]))
    # One unknown key is a mistake, which is reported when the recipe is built; more are the keys of another command.
    if not keys & (known[command] - shared) or len(keys - known[command]) > 1:
        raise UserError(f"recipe must be one of train-tokenizer, train-dit or train-joint, got {path}")
    return command, path, load_recipe(stages[command].Config, path)


def _maker(output: str, near: Path) -> Path | None:
    """Return the recipe that writes to `output`: one next to `near`, or one of the package."""
    candidates = [*sorted(near.parent.glob("*.yaml")), *map(package_recipe, recipe_names())]
    return next((path for path in candidates if read_yaml(path).get("output") == output), None)


@dataclass(frozen=True)
class _Needs:
    """What a recipe trains."""

    costs: TokenizerCosts | TransformerCosts | JointCosts
    modules: dict[str, nn.Module]
    averaged: Sequence[str]  # names of the modules that are averaged
    optimizers: Mapping[str, tuple[OptimizerConfig, Sequence[nn.Parameter]]]
    flops: float  # of one image
    frozen: dict[str, int]  # parameters
    disk: dict[str, int]  # bytes, next to those of the run folder


def estimate(config: Config) -> Estimate:
    """Return the estimate for a recipe.

    Raises:
        UserError: The recipe cannot be read, or the numbers do not fit together.
    """
    command, path, recipe = read_training_recipe(config.recipe)
    training: TrainingConfig = recipe.training
    precision: Compute = "fp32" if training.precision == "fp32" else "bf16"
    notes: list[str] = []
    if command == "train-dit":
        needs = _transformer(config, recipe, path, precision, notes)
    else:
        needs = _tokenizer(recipe, precision, notes)
    if command == "train-joint":
        needs = _joint(config, recipe, needs, notes)
    if precision == "fp32":
        notes.append(f"precision fp32: {_FP32_SHARE:.0%} of the bf16 peak, as TF32 convolutions have")

    # Memory
    state = state_bytes(needs.modules, needs.averaged, training.num_averages, needs.optimizers)
    shards = config.count if training.parallel == "shard" else 1
    fixed = {name: size // shards for name, size in state.items()} | {"frozen networks": 4 * sum(needs.frozen.values())}
    trained = [p for _, parameters in needs.optimizers.values() for p in parameters if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    share = -(-training.batch_size // config.count)
    at_once = min(training.micro_batch or share, share)
    step = _StepMemory(needs.costs, at_once, training.micro_batch is None)
    memory = {**fixed, "gradients": gradients // shards, "activations": max(0, step(at_once) - gradients)}

    # Disk: one checkpoint more than are kept, while it is written
    milestones = 0 if training.milestone_images is None else training.images // training.milestone_images
    networks = [needs.modules[name] for name in ("autoencoder", "transformer") if name in needs.modules]
    model = sum(value.nbytes for network in networks for value in network.state_dict().values())
    checkpoints = (training.keep_checkpoints + 1 + milestones) * sum(state.values())
    disk = {"checkpoints": checkpoints, "model": model * (2 if training.best else 1), **needs.disk}

    besides = sum(fixed.values()) - (gradients - gradients // shards)  # a step counts all gradients
    gpus = [_on_gpu(config, name, training, precision, needs.flops, besides, step) for name in config.gpu]
    return Estimate(
        recipe=config.recipe,
        command=command,
        steps=training.steps,
        batch_size=training.batch_size,
        precision=precision,
        parameters=_by_part(needs.modules),
        frozen=needs.frozen,
        flops_per_image=needs.flops,
        images_at_once=at_once,
        memory=memory,
        disk=disk,
        gpus=gpus,
        notes=notes,
    )


def _on_gpu(
    config: Config,
    name: GpuName,
    training: TrainingConfig,
    precision: Compute,
    flops: float,
    fixed: int,
    step: "_StepMemory",
) -> OneGpu:
    gpu = GPUS[name]
    peak = gpu.tflops * (1.0 if precision == "bf16" else _FP32_SHARE)
    images = step.largest(_USABLE * gpu.memory_gb * 1e9 - fixed)
    hours = training_seconds(training, flops, config.mfu * peak, config.count) / 3600
    return OneGpu(name, peak, gpu.memory_gb, images, fixed + step(images or step.smallest), hours)


class _StepMemory:
    """Memory of a step, counted for two numbers of images and a line through them, since each count takes seconds.

    Args:
        costs: What counts it.
        at_once: Images that training works on at once, if they fit.
        halved: Whether training takes half of them where they do not.
    """

    def __init__(self, costs: TokenizerCosts | TransformerCosts | JointCosts, at_once: int, halved: bool) -> None:
        self._most = at_once
        self.smallest = 1 if halved else at_once
        few, many = max(1, at_once // 16), max(2, at_once)
        last = costs.step_bytes(many)
        self._slope = (last - costs.step_bytes(few)) / (many - few)
        self._start = last - self._slope * many

    def __call__(self, images: int) -> int:
        return round(self._start + self._slope * images)

    def largest(self, room: float) -> int | None:
        """Return the number of images at once that fits into `room` bytes; None if none does."""
        size = self._most
        while size > self.smallest and self(size) > room:
            size = -(-size // 2)
        return size if self(size) <= room else None


def _by_part(modules: dict[str, nn.Module]) -> dict[str, int]:
    """Return the trained parameters of each network's parts."""
    counts: dict[str, int] = {}
    for name, module in modules.items():
        for part, parameter in module.named_parameters():
            if parameter.requires_grad:
                label = f"{name}.{part.partition('.')[0]}"
                counts[label] = counts.get(label, 0) + parameter.numel()
    return counts


def _teacher(recipe: TeacherConfig, notes: list[str]) -> tuple[int, float, int]:
    """Return a teacher's channels, and operations per image and parameters if it works in every step."""
    spec = teacher_spec(recipe.name)
    width = 1024 if spec is None else spec.width
    if spec is None:
        notes.append(f"teacher {recipe.name}: assumed to have {width} channels")
    side = max(height_width(recipe.input_size or (spec.input_size if spec else 224)))
    work = None if spec is None else vit_costs(spec, side)
    if work is None:
        notes.append(f"left out: work and memory of the teacher {recipe.name}")
    elif recipe.cache_features:
        notes.append("left out: the teacher's one pass over the data and the features it keeps")
    else:
        return width, *work
    return width, 0.0, 0


def _tokenizer(recipe: train_tokenizer.Config, precision: Compute, notes: list[str]) -> _Needs:
    width, flops, frozen = None, 0.0, {}
    joint = isinstance(recipe, train_joint.Config)
    if joint or recipe.objective.alignment.enabled or recipe.representation is not None:
        width, flops, frozen["teacher"] = _teacher(recipe.teacher, notes)
    costs = TokenizerCosts(recipe, width, precision)
    autoencoder, objective = costs.networks()
    for name, network in objective.frozen.items():
        frozen[name] = sum(p.numel() for p in network.parameters())
    modules = {"autoencoder": autoencoder, "objective": objective}
    optimizers = train_tokenizer.optimizers(recipe, autoencoder, objective)
    return _Needs(costs, modules, ["autoencoder"], optimizers, flops + costs.flops(), frozen, {})


def _joint(config: Config, recipe: train_joint.Config, tokenizer: _Needs, notes: list[str]) -> _Needs:
    """Add transformer and alignment to the needs of a joint recipe's tokenizer."""
    if config.classes is None:
        notes.append("assumed: 1,000 classes (--classes)")
    notes.append("memory is an upper bound: both networks at their peaks at once")
    assert isinstance(tokenizer.costs, TokenizerCosts)
    costs = JointCosts(recipe, tokenizer.costs.teacher_width or 0, tokenizer.costs.precision, config.classes or 1000)
    added = costs.networks()
    trained = [parameter for module in added.values() for parameter in module.parameters()]
    return replace(
        tokenizer,
        costs=costs,
        modules=tokenizer.modules | added,
        averaged=list(added),
        optimizers={**tokenizer.optimizers, "transformer": (recipe.transformer_optimizer, trained)},
        flops=tokenizer.flops - tokenizer.costs.flops() + costs.flops(),
    )


def _transformer(config: Config, recipe: train_dit.Config, path: Path, precision: Compute, notes: list[str]) -> _Needs:
    shape, classes, images = config.latent_shape, config.classes, config.dataset_images
    stored = encode.Config()
    if Path(recipe.latents).is_dir():
        latents = LatentDataset(recipe.latents)
        shape, classes, images = shape or latents.shape, classes or latents.num_classes, images or len(latents)
    elif shape is None:
        maker = _maker(recipe.tokenizer.removesuffix("/tokenizer"), path)
        if maker is None:
            raise UserError(
                f"latents: {recipe.latents} does not exist, and no recipe makes {recipe.tokenizer}: "
                "give --latent_shape CHANNELS,HEIGHT,WIDTH"
            )
        made = load_recipe(train_tokenizer.Config, maker)
        spec = teacher_spec(made.teacher.name)
        shape = TokenizerCosts(made, None if spec is None else spec.width, precision).latent_shape
        notes.append(f"latents of {' x '.join(map(str, shape))}: by the recipe {maker.stem}")
    if classes is None:
        classes = 1000
        notes.append("assumed: 1,000 classes (--classes)")
    if (encoded := _maker(recipe.latents, path)) is not None:
        stored = load_recipe(encode.Config, encoded)
    resolved = recipe.transformer.resolve(shape[0], (shape[1], shape[2]), classes)
    costs = TransformerCosts(resolved, recipe.flow, precision, recipe.transformer.activation_checkpointing)
    size = math.prod(shape) * (4 if stored.dtype == "float32" else 2) + 4 * (recipe.transformer.class_token or 0)
    size *= 2 if stored.flips else 1
    if images is None:
        notes.append(f"left out: latents, {size / 1e3:,.1f} kB per image (--dataset_images)")
    modules: dict[str, nn.Module] = {"transformer": costs.network()}
    work, tokens = costs.work(recipe.training.images), resolved.token_count
    flops, frozen = work.flops or 0.0, {}
    if work.tokens != tokens:
        kind = resolved.routing.kind
        notes.append(f"routing {kind}: a block sees {work.tokens} of {tokens} tokens, mean over blocks and run")
    if recipe.alignment is not None:
        teachers = [_teacher(teacher, notes) for teacher in recipe.alignment.teachers]
        with FakeTensorMode():
            projectors = Projectors(recipe.alignment, resolved, [width for width, *_ in teachers])
        modules["projectors"] = projectors
        aligned = recipe.alignment.active_share(recipe.training.images)
        flops += aligned * (projectors.flops() + sum(work for _, work, _ in teachers))
        frozen["teachers"] = sum(parameters for *_, parameters in teachers)
        notes.append("left out: activations of the projectors")
    optimizers = {"transformer": (recipe.optimizer, [p for module in modules.values() for p in module.parameters()])}
    disk = {} if images is None else {"latents": images * size}
    return _Needs(costs, modules, ["transformer"], optimizers, flops, frozen, disk)


def _lines(found: Estimate, config: Config) -> Iterator[str]:
    """Yield the text of an estimate above its table."""
    yield (
        f"{found.recipe}: {found.command}, {found.steps:,} steps of {found.batch_size:,} images, {found.precision}, "
        f"{config.count} GPU{'s' * (config.count > 1)}"
    )
    yield from (f"  {note}" for note in found.notes)
    parameters, frozen = sum(found.parameters.values()), sum(found.frozen.values())
    yield f"parameters   {parameters:,} trained{f', {frozen:,} frozen' if frozen else ''}"
    yield from _rows({part: f"{count:,}" for part, count in (found.parameters | found.frozen).items()})
    total = found.flops_per_image * found.steps * found.batch_size
    yield f"work         {_operations(found.flops_per_image)} per image in a step, {_operations(total)} in all"
    at_once = f"{found.images_at_once:,} images at once, or fewer where they do not fit"
    for name, parts in ((f"memory       on each GPU with {at_once}", found.memory), ("disk", found.disk)):
        yield name
        sizes = {part: size for part, size in parts.items() if size} | {"sum": sum(parts.values())}
        yield from _rows({part: format_bytes(size) for part, size in sizes.items()})


def _rows(parts: dict[str, str]) -> Iterator[str]:
    """Yield one line for each part, its value to the right."""
    yield from (f"  {part:<32}{value:>13}" for part, value in parts.items())


def _operations(count: float) -> str:
    unit, size = next((u for u in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)) if count >= u[1]), ("GFLOP", 1e9))
    return f"{float(f'{count / size:.3g}'):,g} {unit}"


def run(config: Config) -> None:
    """Print the estimate as a table or as JSON.

    Raises:
        UserError: As `estimate`.
    """
    found = estimate(config)
    if config.json:
        print(json.dumps(to_plain(found), indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    print("\n".join(_lines(found, config)))
    table = Table(box=None, pad_edge=False)
    for heading in ("GPU", "peak TFLOP/s", "memory", "images at once", "used", f"time at {config.mfu:.0%}"):
        table.add_column(heading, justify="left" if heading == "GPU" else "right")
    for gpu in found.gpus:
        fits = "does not fit" if gpu.images_at_once is None else f"{gpu.images_at_once:,}"
        time = format_seconds(gpu.hours * 3600).removeprefix("about ")
        table.add_row(
            gpu.name, f"{gpu.peak_tflops:,.0f}", f"{gpu.memory_gb:,.0f} GB", fits, format_bytes(gpu.memory), time
        )
    Console().print(table)
