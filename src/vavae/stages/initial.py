"""Load starting weights from an earlier run, a model's folder or a published checkpoint."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vavae.checkpoints import folder as files
from vavae.checkpoints.loading import load_autoencoder, load_decoder, load_transformer
from vavae.checkpoints.locations import known_model, resolve
from vavae.checkpoints.published_recipes import recorded_flow
from vavae.checkpoints.shapes import size_name
from vavae.checkpoints.statistics import read_statistics, scaled, statistics_file
from vavae.errors import UserError, errors_name, one_line
from vavae.flow import FlowConfig, PathName, Prediction
from vavae.io.yaml_files import read_yaml
from vavae.losses import TokenizerObjective
from vavae.models import Generator
from vavae.models.published import published_latents
from vavae.models.representation import Autoencoder, RepresentationAutoencoder
from vavae.models.representation_files import load_representation
from vavae.tokenizer import LatentStatistics
from vavae.training.checkpoint import CheckpointFolder
from vavae.transformer import LightningDiTConfig, Transformer, TransformerShape

# Published names of modules that only training uses -> names in our objective.
_PUBLISHED = {"loss.discriminator.": "discriminator.", "linear_proj.": "alignment.linear_proj."}
# Settings of the blocks; a transformer that differs in one of them cannot use the weights.
_ARCHITECTURE = ("width", "depth", "widths", "depths", "heads", "swiglu", "rope", "rmsnorm", "qk_norm", "adaln_shift")
_CLASS_TOKEN = ("cls_projectors2", "wg_norm", "final_layer.linear_cls")
_TABLE = "y_embedder.embedding_table"
_REMARKS = {_TABLE: '; its row of "no label" is taken', "pos_embed": "; recomputed", "feat_rope": "; recomputed"}


def load_initial(source: str, autoencoder: Autoencoder, objective: TokenizerObjective) -> str:
    """Load weights into `autoencoder` and, if the source has them, into discriminator and projection of `objective`.

    Args:
        source: The run folder of an earlier training, or a folder, hub id or file that `Tokenizer.from_pretrained`
            reads. Runs and published training checkpoints have discriminator and projection.
        autoencoder: It must have the source's shape.
        objective: Modules that the source lacks stay unchanged.

    Returns:
        One line that names the loaded and the new modules; it is printed too.

    Raises:
        UserError: The source cannot be read, has another shape, or is a run that has not ended.
    """
    with errors_name("initial"):
        weights, training = _read(source, autoencoder)
        files.load_strictly(autoencoder, weights, source)
    taken, new = ["autoencoder"], []
    for part in ("discriminator", "alignment"):
        module, given = getattr(objective, part), _below(training, f"{part}.")
        if isinstance(module, nn.Module) and given:
            try:
                module.load_state_dict(given)
            except RuntimeError as error:
                raise UserError(f"initial: {source}: {part}: {one_line(error)[:300]}") from error
            taken.append(part)
        elif isinstance(module, nn.Module):
            new.append(part)
    return _report("initial", source, ", ".join(taken), new)


def initial_statistics(source: str) -> LatentStatistics | None:
    """Return the statistics of the latents of a tokenizer that `load_initial` reads; None if it has none.

    Raises:
        UserError: As `load_initial`.
    """
    path = resolve(source, "tokenizer")
    if (path / "checkpoints").is_dir():
        trained = [path / "tokenizer", path / "generator" / "tokenizer"]
        path = next((folder for folder in trained if folder.is_dir()), path)
    found = statistics_file(path)
    return load_autoencoder(path).statistics if found is None else read_statistics(found)


def _report(key: str, source: str, taken: str, new: Sequence[str], notes: Sequence[str] = ()) -> str:
    """Print and return what was loaded, what is new, and the notes, one on a line, after the key of the recipe."""
    rest = f"; new: {', '.join(new)}" if new else ""
    text = "\n".join([f"{key}: {taken} from {source}{rest}", *(f"{key}: {note}" for note in notes)])
    print(text, flush=True)
    return text


def _read(source: str, autoencoder: Autoencoder) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the autoencoder and the tensors of the objective."""
    path = resolve(source, "tokenizer")
    if (path / "checkpoints").is_dir():
        found = CheckpointFolder(path / "checkpoints").load_newest()
        if found is None:
            raise UserError(f"{source} must have an undamaged checkpoint")
        _check_ended(path, source, found[1].get("images_seen", 0))
        return _below(found[0], "model/autoencoder/"), _below(found[0], "model/objective/")
    if (representation := load_representation(path)) is not None:
        return representation.model.state_dict(), {}
    if isinstance(autoencoder, RepresentationAutoencoder):
        decoder = load_decoder(path, heads=autoencoder.decoder.shape["heads"])[0]
        return {f"decoder.{name}": value for name, value in decoder.state_dict().items()}, {}
    loaded = load_autoencoder(path)
    training: dict[str, Tensor] = {}
    for published, ours in _PUBLISHED.items():
        training |= {ours + name: value for name, value in _below(loaded.training, published).items()}
    return loaded.model.state_dict(), training


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_ended(run: Path, source: str, seen: int) -> None:
    """Raise UserError for a run that has seen fewer images than its recipe says: its weights are not the final ones."""
    recipe = run / "recipe.yaml"
    if not recipe.exists():
        return
    try:
        wanted = int(read_yaml(recipe)["training"]["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{recipe} must hold the number training.images, which every run writes") from error
    if seen < wanted:
        raise UserError(
            f"{source} must be a run that has ended, and was stopped after {seen:,} of {wanted:,} images: "
            "resume it first"
        )


@dataclass(frozen=True, eq=False)
class _Source:
    """A transformer and its training; None and () mean that the source does not record a value."""

    model: Transformer
    path: PathName | None
    prediction: Prediction | None
    statistics: LatentStatistics | None
    class_names: tuple[str, ...] = ()


def load_initial_transformer(
    source: str,
    transformer: Transformer,
    flow: FlowConfig,
    statistics: LatentStatistics,
    class_names: Sequence[str] = (),
    key: str = "initial",
) -> str:
    """Load the weights of another transformer into the layers of `transformer` that have the same shape.

    Averaged weights are loaded if the source has them. Of the table of labels, the row for "no label" is loaded for any
    number of classes; every other layer is loaded completely or not at all. Position tables of another grid stay as
    computed. With `learn_sigma`, the outputs for sigma are left out.

    Args:
        source: A generator's folder or hub id, the run folder of a training that has ended, or a published
            checkpoint.
        transformer: It must have the source's width, depth, heads and switches.
        flow: It must have the source's path and prediction, if the source records them.
        statistics: The statistics that normalize the latents of this training.
        class_names: Names of this training's labels, or ().
        key: Key of the recipe that names the source, for messages.

    Returns:
        A line that names the loaded and the new layers, and lines on differences of the data; they are printed too.

    Raises:
        UserError: The source cannot be read, or differs in the architecture or the flow; the message names the key.
    """
    with errors_name(key):
        found = _read_transformer(source, transformer.config)
    former, ours = found.model.config, transformer.config
    _check_same(f"{key} {source}", found, ours, flow)
    given, notes = found.model.state_dict(), []
    if isinstance(former, LightningDiTConfig) and former.learn_sigma:
        given |= _without_sigma(given, former)
        notes.append("the outputs for sigma, which sampling drops, are left out")
    present = transformer.state_dict()
    different = [name for name, value in present.items() if name not in given or given[name].shape != value.shape]
    new = {_layer(name): name in given for name in different}  # whether the source has such a layer
    taken = {name: given[name] for name in present if _layer(name) not in new}
    transformer.load_state_dict(taken, strict=False)
    if left := dict.fromkeys(_layer(name) for name in given if name not in present):
        notes.append(f"left out: {', '.join(left)}")
    if _TABLE in new:
        with torch.no_grad():
            transformer.y_embedder.embedding_table.weight[-1] = given[f"{_TABLE}.weight"][-1]
    described = [
        f"{layer} ({_shape(layer, ours)}, has {_shape(layer, former)}{_REMARKS.get(layer, '')})" if there else layer
        for layer, there in new.items()
    ]
    notes += _data_notes(found, ours, statistics, class_names)
    return _report(key, source, f"{len(taken)} of {len(present)} tensors", described, notes)


def _layer(name: str) -> str:
    """Return the layer of a parameter or buffer."""
    return name.rpartition(".")[0] or name


def _shape(layer: str, config: TransformerShape) -> str:
    """Return the numbers that the shape of a layer depends on, in words."""
    if layer == _TABLE:
        return f"{config.num_classes} classes"
    if layer in ("x_embedder.proj", "s_embedder.proj", "final_layer.linear", "auxiliary_head.linear"):
        return f"{config.latent_channels} channels in patches of {config.patch_size}"
    if layer in _CLASS_TOKEN:
        return f"class token of {config.class_token} channels"
    and_token = " and a class token" if layer == "pos_embed" and config.class_token is not None else ""
    return f"grid {config.grid[0]}x{config.grid[1]}{and_token}"


def _without_sigma(tensors: Mapping[str, Tensor], config: LightningDiTConfig) -> dict[str, Tensor]:
    """Return the last layer without its second set of channels; its rows are (patch, patch, channels)."""
    last = {name: tensors[name] for name in ("final_layer.linear.weight", "final_layer.linear.bias")}
    squares = {name: value.unflatten(0, (config.patch_size**2, -1)) for name, value in last.items()}
    return {name: value[:, : config.latent_channels].flatten(0, 1) for name, value in squares.items()}


def _read_transformer(source: str, ours: TransformerShape) -> _Source:
    if known_model(source) is not None:
        return _of_generator(Generator.from_pretrained(source))
    path = resolve(source, "generator")
    if (path / "checkpoints").is_dir():
        path = path / "generator"
        if not path.is_dir():
            raise UserError(
                f"{source} must be a generator, a checkpoint or a training run that has ended, and has no generator/: "
                "let the run end first"
            )
    if files.form_of(path) != "checkpoint":
        return _of_generator(Generator.from_pretrained(path))
    try:
        loaded = load_transformer(path)
    except UserError:  # the weights may not show the number of heads; the recipe does
        loaded = load_transformer(path, heads=ours.heads if isinstance(ours, LightningDiTConfig) else None)
    known, multiplier, _ = published_latents(path, loaded, None)
    normalization = None if known is None else scaled(known, multiplier)
    return _Source(loaded.model, *recorded_flow(loaded.training, path), normalization)


def _of_generator(generator: Generator) -> _Source:
    statistics = generator.tokenizer.statistics
    return _Source(generator.transformer, generator.path, generator.prediction, statistics, generator.class_names)


def _check_same(source: str, found: _Source, ours: TransformerShape, flow: FlowConfig) -> None:
    former = found.model.config
    if type(former) is not type(ours):
        names = [type(shape).__name__.removesuffix("Config") for shape in (former, ours)]
        raise UserError(f"transformer.size must be a {names[0]}, as {source} is, got a {names[1]}")
    keys = [key for key in _ARCHITECTURE if hasattr(ours, key)]
    values = {f"transformer.{key}": (getattr(former, key), getattr(ours, key)) for key in keys}
    routings = [(shape.routing.kind, *shape.routed_blocks) for shape in (former, ours)]
    if any(kind == "sprint" for kind, *_ in routings):
        pairs = zip(("kind", "start", "stop"), *routings, strict=True)
        values |= {f"transformer.routing.{key}": (wanted, given) for key, wanted, given in pairs}
    values |= {"flow.path": (found.path, flow.path), "flow.prediction": (found.prediction, flow.prediction)}
    for key, (wanted, given) in values.items():
        if wanted is not None and wanted != given:
            raise UserError(
                f"{key} must be {json.dumps(wanted)}, as in {source}{_named(former)}, got {json.dumps(given)}"
            )


def _named(shape: TransformerShape) -> str:
    return f" ({size_name(shape)})" if isinstance(shape, LightningDiTConfig) else ""


def _data_notes(
    found: _Source, ours: TransformerShape, statistics: LatentStatistics, class_names: Sequence[str]
) -> list[str]:
    """Return notes on differences between the data of both trainings."""
    notes, former = [], found.statistics
    pairs = enumerate(zip(found.class_names, class_names, strict=False))
    renamed = [(i, old, new) for i, (old, new) in pairs if old != new]
    if renamed and ours.num_classes == found.model.config.num_classes:
        i, old, new = renamed[0]
        notes.append(f"class {i} was {old!r} and is {new!r}: rows are taken by number")
    remedy = "train on latents of its tokenizer, with --tokenizer its tokenizer and --normalization tokenizer"
    if former is None:
        notes.append(f"the statistics that normalized its latents are unknown; if they differ from these: {remedy}")
    elif former.mean.shape == statistics.mean.shape and not former.equals(statistics):
        i = int(((former.mean - statistics.mean).abs() / former.std).argmax())
        numbers = [float(values.flatten()[i]) for one in (former, statistics) for values in (one.mean, one.std)]
        notes.append(
            f"WARNING: its latents were normalized by other statistics than these (number {i}: mean {numbers[0]:.4g} "
            f"and deviation {numbers[1]:.4g}, here {numbers[2]:.4g} and {numbers[3]:.4g}): {remedy}"
        )
    return notes
