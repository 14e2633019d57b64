"""Convert between published files, folders of ours and folders of diffusers."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from vavae.checkpoints import folder as files
from vavae.checkpoints.loading import open_checkpoint
from vavae.checkpoints.locations import resolve
from vavae.checkpoints.published import Weights
from vavae.checkpoints.published_recipes import convert_recipe, published_training
from vavae.checkpoints.statistics import read_statistics, scaling_statistics
from vavae.config import from_plain, to_plain
from vavae.config.image_size import square_side
from vavae.data import LatentDataset, write_published_layout
from vavae.data.latent_writer import write_published_statistics
from vavae.data.latents import PUBLISHED_STATISTICS_NAME
from vavae.data.moments import convert_moments
from vavae.errors import UserError, errors_name
from vavae.flow import PathName, Prediction
from vavae.io.files import chosen, is_free, save_torch, user_path, whole_folder, written_whole
from vavae.io.yaml_files import dump_yaml
from vavae.models import Generator, Tokenizer
from vavae.models.representation import saved_part
from vavae.tokenizer import AutoencoderKL, LatentStatistics
from vavae.transformer import DiTDH

# Forms of all but tokenizers and generators, which have each.
_TARGETS = {
    "recipe": ("native",),
    "latents": ("published",),
    "moments": ("native",),
    "statistics": ("native", "published"),
}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Config:
    """Convert a checkpoint, statistics, latents or a recipe.

    Attributes:
        source: What to convert: a checkpoint (.pt, .pth, .ckpt, .safetensors), `latents_stats.pt`, a folder of a
            tokenizer, generator or latents (also those of EDM2 and REPA, `img-mean-std-*.npy`), a folder of
            diffusers, a short name of `vavae models`, a hub id, or a published YAML configuration.
        output: The folder to write, which must be empty, or left by such a call that was killed; a file for a recipe
            and for statistics.
        to: `native` is our folder, `published` files that the published code loads, `diffusers` a folder that
            diffusers loads.
        dtype: Type in which a native folder's weights are stored; float16 and bfloat16 halve them, and are widened
            when they are read.
        teacher: Encoder of a published decoder (RAE): a teacher's name or folder, such as dinov2-registers-base.
        tokenizer: The tokenizer a published transformer was trained on, in any of these forms.
        statistics: Statistics of the latents: `latents_stats.pt`, RAE's `stat.pt`, or a folder with them. Published
            autoencoders and transformers need them, or `scaling_factor`.
        scaling_factor: The one factor that latents are multiplied with, instead of statistics; SD-VAE's is 0.18215.
        shift_factor: What is subtracted from latents before that.
        weights: Which weights of a checkpoint with several: averaged (`ema`), not averaged (`model`), or the name of a
            set; `auto` prefers averaged ones.
        heads: Number of attention heads of a transformer or an RAE decoder, where its weights do not show it; with a
            decoder as `tokenizer` it is the decoder's.
        path: Path of a published transformer, if its file does not say; linear by default.
        prediction: What a published transformer predicts, if its file does not say; velocity by default.
    """

    source: str | None = None
    output: str | None = None
    to: Literal["native", "published", "diffusers"] = "native"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    teacher: str | None = None
    tokenizer: str | None = None
    statistics: str | None = None
    scaling_factor: float | None = None
    shift_factor: float = 0.0
    weights: Weights = "auto"
    heads: int | None = None
    path: PathName | None = None
    prediction: Prediction | None = None

    def __post_init__(self) -> None:
        if self.statistics is not None and self.scaling_factor is not None:
            raise UserError(f"scaling_factor must be null with statistics, got {self.scaling_factor}: give one of them")
        if self.shift_factor != 0 and self.scaling_factor is None:
            raise UserError(f"shift_factor must be 0 without a scaling_factor, got {self.shift_factor}")
        if self.dtype != "float32" and self.to != "native":
            raise UserError(f"dtype must be float32 for {self.to} files, got {self.dtype}")


def run(config: Config) -> Path:
    """Convert, print what was taken, assumed and left out, and return what was written.

    Raises:
        UserError: The source cannot be read, needs another option, or cannot have the form that `to` asks for.
    """
    if config.source is None or config.output is None:
        missing = "source" if config.source is None else "output"
        raise UserError(f"{missing} is missing: give 'vavae convert SOURCE OUTPUT'")
    source, output = resolve(config.source), user_path(config.output)
    if not is_free(output):
        raise UserError(f"output must be a new file or an empty folder, got {output}, which exists")
    with chosen("output", output):
        output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output.parent).close()  # a read-only folder is named before the work
    with _quiet():
        kind = _kind(source, config.weights)
        if config.dtype != "float32" and kind in _TARGETS:
            raise UserError(f"dtype must be float32 for {kind}, got {config.dtype}")
        if config.to not in _TARGETS.get(kind, (config.to,)):
            raise UserError(f"to must be {' or '.join(_TARGETS[kind])} for {kind}, got {config.to}")
        _refuse_unused(config, kind, source)
        {
            "recipe": _recipe,
            "latents": _latents,
            "moments": lambda _, source, output: print(f"{source}: {convert_moments(source, output)}"),
            "statistics": _statistics,
            "tokenizer": _tokenizer,
            "generator": _generator,
        }[kind](config, source, output)
    print(f"{kind}: {output}")
    return output


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's own reports: this command prints them."""
    logger = logging.getLogger("vavae.checkpoints")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _kind(source: Path, weights: Weights) -> str:
    form = files.form_of(source)
    if form == "checkpoint":
        kind = open_checkpoint(source, weights).kind
        return {"autoencoder": "tokenizer", "decoder": "tokenizer", "transformer": "generator"}.get(kind, kind)
    if form == "pipeline":
        return "generator" if files.holds_generator(source) else "tokenizer"
    return "tokenizer" if form == "diffusers" else form


def _is_decoder(checkpoint: Path, config: Config) -> bool:
    return open_checkpoint(checkpoint, config.weights).kind == "decoder"


def _refuse_unused(config: Config, kind: str, source: Path) -> None:
    """Raise UserError for an option that would change nothing."""
    models = [source] if kind in ("tokenizer", "generator") else []
    if kind == "generator" and config.tokenizer is not None:
        models.append(resolve(config.tokenizer))
    forms = [files.form_of(path) for path in models]
    published = kind == "generator" and forms[0] == "checkpoint", "is for published transformers"
    decoders = [p for p, form in zip(models, forms, strict=True) if form == "checkpoint" and _is_decoder(p, config)]
    uses = {
        "tokenizer": (kind in ("generator", "recipe"), "is for generators and for recipes that train one"),
        "statistics": (bool(models), "is for tokenizers and generators"),
        "scaling_factor": (
            kind == "tokenizer" or len(models) == 2,
            "is for tokenizers, also one that is given with --tokenizer",
        ),
        "weights": ("checkpoint" in forms, "is for checkpoints, which may hold several"),
        "teacher": (bool(decoders), "is for decoders of representation autoencoders"),
        "heads": (published[0] or bool(decoders), "is for published transformers and decoders"),
        **dict.fromkeys(("path", "prediction"), published),
    }
    for field in fields(config):
        used, purpose = uses.get(field.name, (True, ""))
        if not used and getattr(config, field.name) != field.default:
            raise UserError(f"{field.name}: {purpose}, not for {source} ({kind})")


def _weights(config: Config, source: Path) -> Weights:
    """Return which weights to take: the option is for the checkpoint among transformer and tokenizer."""
    return config.weights if files.form_of(source) == "checkpoint" else "auto"


def _read_tokenizer(config: Config, name: str | Path, heads: int | None = None) -> Tokenizer:
    factor = config.scaling_factor
    statistics = config.statistics if factor is None else "identity"
    weights, teacher = _weights(config, resolve(name)), config.teacher
    tokenizer = Tokenizer.from_pretrained(name, statistics=statistics, weights=weights, teacher=teacher, heads=heads)
    if factor is not None:
        tokenizer.statistics = scaling_statistics(tokenizer.latent_channels, factor, config.shift_factor)
    if tokenizer.report is not None:
        print(tokenizer.report)
    return tokenizer


def _tokenizer(config: Config, source: Path, output: Path) -> None:
    tokenizer = _read_tokenizer(config, config.source or source, config.heads)
    with whole_folder(output):
        if config.to == "native":
            tokenizer.save_pretrained(output, _DTYPES[config.dtype])
        elif config.to == "diffusers":
            if getattr(tokenizer.autoencoder, "noise_kind", "uniform") != "uniform":
                print("  training noise is uniform in diffusers; representation.noise_kind normal is not taken over")
            tokenizer.save_diffusers(output)
        else:
            _write_published_tokenizer(tokenizer, output)


def _generator(config: Config, source: Path, output: Path) -> None:
    tokenizer, heads = None, config.heads
    if config.tokenizer is not None:
        decoder = config.teacher is not None  # which only decoders may have
        tokenizer = _read_tokenizer(config, config.tokenizer, heads if decoder else None)
        heads = None if decoder else heads
    statistics: LatentStatistics | str | None = config.statistics
    if tokenizer is not None and config.scaling_factor is not None:
        statistics = tokenizer.statistics
    generator = Generator.from_pretrained(
        config.source or source,
        tokenizer=tokenizer,
        statistics=statistics,
        weights=_weights(config, source),
        heads=heads,
        path=config.path,
        prediction=config.prediction,
    )
    if generator.report is not None:
        print(generator.report)
    if config.to == "published":
        square_side("the image size", generator.image_size, "the published code")
        if generator.config.routing.kind == "sprint":
            raise UserError("the published code has no transformers with routing.kind sprint, as this generator is")
        if generator.config.auxiliary_block is not None:
            raise UserError("the published code has no transformers with auxiliary_block, as this generator has")
    with whole_folder(output):
        if config.to == "native":
            generator.save_pretrained(output, _DTYPES[config.dtype])
        elif config.to == "diffusers":
            if generator.sampling.solver != "euler":
                print(f"  the pipeline takes Euler steps; the solver {generator.sampling.solver} is not taken over")
            generator.save_diffusers(output)
        else:
            _write_published_generator(generator, output)


def _write_published_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights and statistics under VA-VAE's names, or under RAE's, whose teacher is not written."""
    weights, statistics = saved_part(tokenizer.autoencoder).state_dict(), tokenizer.statistics
    if isinstance(tokenizer.autoencoder, AutoencoderKL):
        _write_published(folder / "autoencoder.pt", weights, statistics)
        return
    print(f"  only the decoder is written: its teacher is {tokenizer.autoencoder.encoder.name}")
    save_torch(dict(weights), folder / "model.pt")
    save_torch({"mean": statistics.mean, "var": statistics.published_variance()}, folder / files.RAE_STATISTICS)


def _write_published_generator(generator: Generator, output: Path) -> None:
    _write_published_tokenizer(generator.tokenizer, output / "tokenizer")
    if generator.class_names:
        print("  published checkpoints have no names of classes: they are not taken over")
    if generator.config.label_dropout == 0:
        print("  published checkpoints do not say that label_dropout was 0: do not guide samples without labels")
    if getattr(generator.config, "positions", "recompute") != "recompute":
        print("  published checkpoints compute positions for each grid: positions interpolate is not taken over")
    if isinstance(generator.transformer, DiTDH):
        print("  RAE's checkpoints have no configuration: the sampling settings are not taken over")
        save_torch(dict(generator.transformer.state_dict()), output / "stage2_model.pt")
        return
    training, notes = published_training(to_plain(generator.sampling), generator.path, generator.prediction)
    for note in notes:
        print(f"  {note}")
    state = {"ema": dict(generator.transformer.state_dict()), "config": training}
    _write_published(output / "lightningdit.pt", state, generator.tokenizer.statistics)


def _write_published(path: Path, content: Any, statistics: LatentStatistics) -> None:
    """Write weights as the published code loads them, and the statistics in the same folder."""
    save_torch(dict(content), path)
    write_published_statistics(path.parent / PUBLISHED_STATISTICS_NAME, statistics)


def _statistics(config: Config, source: Path, output: Path) -> None:
    statistics = read_statistics(source)
    if config.to == "native":
        files.write_tensors(output, statistics.to_dict())
    else:
        write_published_statistics(output, statistics)


def _latents(config: Config, source: Path, output: Path) -> None:
    latents = LatentDataset(source)
    write_published_layout(latents, output)
    flips = " and as many of mirrored images" if latents.has_flips else ""
    left_out = "; class tokens are left out" if latents.class_channels else ""
    shape = "x".join(map(str, latents.shape))
    print(f"{source}: {len(latents):,} latents {shape}{flips}, with their statistics{left_out}")


def _recipe(config: Config, source: Path, output: Path) -> None:
    from vavae.stages import sample, train_dit, train_tokenizer

    recipe = convert_recipe(source)
    if config.tokenizer is not None:
        if recipe.command != "train-dit":
            raise UserError(f"tokenizer: is for generators and for recipes that train one, not for {source}")
        recipe.values["tokenizer"] = config.tokenizer
    stages = {"train-dit": train_dit.Config, "train-tokenizer": train_tokenizer.Config, "sample": sample.Config}
    stage: type[Any] = stages[recipe.command]
    with errors_name(source):
        from_plain(stage, recipe.values)  # as its command will read it
    values = {field.name: recipe.values[field.name] for field in fields(stage) if field.name in recipe.values}
    lines = [
        f"# Converted from {source.name}, a published configuration.",
        f"# Run: vavae {recipe.command} {'--config ' if recipe.command == 'sample' else ''}{output.name}",
        *(f"# {line.removeprefix('  ')}" for line in recipe.lines()),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    body = dump_yaml(to_plain(values), default_flow_style=None, width=110)
    with written_whole(output) as temporary:
        temporary.write_text("\n".join(lines) + "\n" + body)
    print(f"{source}: a recipe for 'vavae {recipe.command}'", *recipe.lines(), sep="\n")
