"""Load networks from folders of ours, published files and folders of diffusers."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from vavae.checkpoints import folder as files
from vavae.checkpoints.diffusers_autoencoder import (
    add_quant_conv,
    check_diffusers_config,
    diffusers_statistics,
    from_diffusers_names,
    is_diffusers,
)
from vavae.checkpoints.published import Ignored, Kind, LoadReport, Unwrapped, Weights, unwrap
from vavae.checkpoints.published_rae import decoder_of, infer_ditdh, is_ditdh
from vavae.checkpoints.published_repa import from_repa, is_repa
from vavae.checkpoints.reading import check_tensors, read_safetensors, read_with_placeholders
from vavae.checkpoints.shapes import (
    check_autoencoder,
    check_transformer,
    infer_autoencoder,
    infer_transformer,
    size_name,
)
from vavae.checkpoints.statistics import read_statistics
from vavae.config import from_plain
from vavae.device import without_values
from vavae.errors import UserError, errors_name
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics, ViTDecoder
from vavae.transformer import DiTDH, DiTDHConfig, LightningDiT, LightningDiTConfig, Transformer
from vavae.transformer.sizes import parse_size, size_names

log = logging.getLogger(__name__)

C = TypeVar("C")
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class LoadedAutoencoder:
    """An autoencoder from a checkpoint."""

    model: AutoencoderKL  # the network, on the CPU
    # Statistics of its latents, from a folder of ours or of diffusers; None for published files.
    statistics: LatentStatistics | None
    provenance: dict[str, Any]  # its training, or the name of the file or folder that was converted
    report: LoadReport | None = None  # the parts that were loaded and left out; None for a folder of ours
    # Tensors that only training uses, under their published names: discriminator and projection.
    training: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LoadedTransformer:
    """A transformer from a checkpoint."""

    model: Transformer  # the network, on the CPU
    report: LoadReport  # the parts that were loaded and left out
    training: Mapping[str, Any]  # the published training configuration; empty if the checkpoint has none
    statistics: LatentStatistics | None = None  # of the batch normalization of its latents (REPA-E)


def build(make: Callable[[C], N], config: C, tensors: dict[str, Tensor], source: str | Path) -> N:
    """Make a network and load its weights, on the CPU, in eval mode.

    Raises:
        UserError: See `load_strictly`.
    """
    with without_values():
        network = make(config)
    files.load_strictly(network, tensors, source)
    return network.eval()


def open_checkpoint(path: Path, weights: Weights = "auto", kind: Kind | None = None) -> Unwrapped:
    """Read a checkpoint file, or the one in a published folder, and find the network in it.

    Raises:
        UserError: See `read_checkpoint` and `unwrap`.
    """
    file = files.published_file(path) if path.is_dir() else path
    if file is None:
        raise UserError(f"{path}: must have a checkpoint")
    files.refuse_part(file)
    content, placeholders = read_with_placeholders(file)
    found = unwrap(content, file, weights, kind)
    classes = [name for name in placeholders if name != "argparse.Namespace"]  # whose values are read
    return replace(found, ignored=(*found.ignored, *(Ignored(name, 1, "class that is not loaded") for name in classes)))


def own_transformer(folder: Path) -> tuple[Transformer, dict[str, Any]]:
    """Return the transformer in a generator's folder of ours, on the CPU, and the content of `config.json`.

    Raises:
        UserError: Names the file or key that is missing, damaged or wrong.
    """
    architecture = files.read_config(folder, "generator").get("architecture", "LightningDiT")
    if architecture == "DiTDH":  # loading compares all shapes
        return _own(folder, "generator", "transformer", DiTDHConfig, lambda *_: None, DiTDH)
    if architecture != "LightningDiT":
        raise UserError(f"{folder / files.CONFIG}: architecture must be LightningDiT or DiTDH, got {architecture!r}")
    return _own(folder, "generator", "transformer", LightningDiTConfig, check_transformer, LightningDiT)


def _own(
    folder: Path,
    model: Literal["tokenizer", "generator"],
    key: str,
    config_class: type[Any],
    check: Callable[[Any, dict[str, Tensor], Path], None],
    make: Callable[[Any], N],
) -> tuple[N, dict[str, Any]]:
    """Read the network whose configuration is in `config.json` under `key`."""
    content, path = files.read_model(folder, model), folder / files.WEIGHTS
    with errors_name(folder / files.CONFIG):
        if not isinstance(content.get(key), dict):
            raise UserError(f"{key} must be a set of keys, got {str(content.get(key))[:60]}")
        config = from_plain(config_class, content[key])
    tensors = read_safetensors(path)
    check(config, tensors, path)
    return build(make, config, tensors, path), content


def load_autoencoder(path: Path, weights: Weights = "auto") -> LoadedAutoencoder:
    """Load an autoencoder from a folder of ours, a published file or folder, or a folder or file of diffusers.

    Raises:
        UserError: The source has another network, or a part is missing.
    """
    form, name = files.form_of(path), path.name
    if form in ("tokenizer", "generator"):
        path = path if form == "tokenizer" else files.subfolder(path, "tokenizer")
        network, content = _own(path, "tokenizer", "autoencoder", AutoencoderConfig, check_autoencoder, AutoencoderKL)
        if content.get("image_range", [-1, 1]) != [-1, 1]:
            raise UserError(f"{path / files.CONFIG}: image_range must be [-1, 1], got {content['image_range']}")
        return LoadedAutoencoder(network, read_statistics(path / files.STATISTICS), content.get("provenance") or {})
    config: dict[str, Any] | None = None
    if form == "pipeline":
        path = files.subfolder(path, "vae")
        form = files.form_of(path)
    if form == "diffusers":
        config = files.read_config(path)
        if config.get("_class_name") == files.DIFFUSERS_RAE:
            raise UserError(f"{path}: holds a representation autoencoder, not an AutoencoderKL; read it as a Tokenizer")
        path = diffusers_weights(path)
    elif form != "checkpoint":
        raise UserError(f"{path}: holds {files.describe_form(form)}, not a tokenizer")
    found = open_checkpoint(path, weights, "autoencoder")
    tensors, statistics = _network(found, "autoencoder", path), None
    if is_diffusers(tensors):
        tensors, notes = from_diffusers_names(tensors, path)
        if config is None and (path.parent / files.CONFIG).is_file():
            config = files.read_config(path.parent)
    else:
        notes = add_quant_conv(tensors)
    shape = infer_autoencoder(tensors, path)
    if found.batch_norm:
        statistics = _batch_norm(found.batch_norm, path)
        shape = infer_autoencoder(tensors, path, math.isqrt(statistics.channels // shape.latent_channels))
    if config is not None:
        where = path.parent / files.CONFIG
        check_diffusers_config(config, shape, where)
        if not found.batch_norm:
            statistics = diffusers_statistics(config, shape.latent_channels, where)
    model = build(AutoencoderKL, shape, tensors, path)
    attention = "" if shape.decoder_attention else ", no attention on the decoder's way up"
    what = f"autoencoder f{shape.factor} d{shape.latent_channels}, widths {shape.widths}{attention}"
    report = _report(path, what, model, found, notes)
    return LoadedAutoencoder(model, statistics, {"converted_from": name}, report, found.extra)


def _batch_norm(tensors: dict[str, Tensor], path: Path) -> LatentStatistics:
    """Return the running statistics of a batch normalization of latents as their statistics."""
    with errors_name(path):
        return LatentStatistics.from_dict({name: value.clone() for name, value in tensors.items()})


def load_transformer(path: Path, weights: Weights = "auto", heads: int | None = None) -> LoadedTransformer:
    """Load a LightningDiT from a published file, or from an exported pipeline.

    `heads` counts the attention heads if the shapes do not show them.

    Raises:
        UserError: The source has another network, a part is missing, or it differs from its configuration.
    """
    exported, form = None, files.form_of(path)
    if form == "pipeline":
        folder = files.subfolder(path, "transformer")
        exported, path = _exported_config(folder), diffusers_weights(folder)
    elif form != "checkpoint":
        raise UserError(f"{path}: holds {files.describe_form(form)}, not a transformer")
    found = open_checkpoint(path, weights, "transformer")
    tensors = _network(found, "transformer", path)
    if is_ditdh(tensors):
        ditdh = build(DiTDH, infer_ditdh(tensors, path), tensors, path)
        what = f"DiTDH {ditdh.config.summary}, {ditdh.config.num_classes} classes"
        return LoadedTransformer(ditdh, _report(path, what, ditdh, found, []), found.training)
    notes: list[str] = []
    if is_repa(tensors, found.extra, found.training):
        tensors, notes = from_repa(tensors)
    if exported is not None:
        check_transformer(exported, tensors, path)
    shape = exported or infer_transformer(tensors, path, heads)
    named = _published_size(found.training)
    differs = named not in (None, size_name(shape))
    if differs and named in size_names() and parse_size(str(named))[0].width == shape.width:
        # The size's width with another depth: the last blocks are missing.
        raise UserError(f"{path}: its configuration says {named}, its weights are {size_name(shape)}")
    notes += [f"its configuration says {named}"] if differs else []
    _check_configuration(found.training, shape, path)
    model = build(LightningDiT, shape, tensors, path)
    what = f"LightningDiT {size_name(shape)} for latents {shape.latent_channels}x{'x'.join(map(str, shape.latent_hw))}"
    report = _report(path, f"{what}, {shape.num_classes} classes", model, found, notes)
    statistics = _batch_norm(found.batch_norm, path) if found.batch_norm else None
    return LoadedTransformer(model, report, found.training, statistics)


def load_decoder(path: Path, weights: Weights = "auto", heads: int | None = None) -> tuple[ViTDecoder, LoadReport]:
    """Load the decoder of a representation autoencoder from a published file or folder.

    Raises:
        UserError: The source has another network, or a part is missing.
    """
    found = open_checkpoint(path, weights)
    tensors = _network(found, "decoder", path)
    model = build(lambda given: decoder_of(given, path, heads), tensors, tensors, path)
    return model, _report(path, model.summary, model, found, [])


def _network(found: Unwrapped, kind: Kind, path: Path) -> dict[str, Tensor]:
    """Return the checked tensors of a network of this kind."""
    words: dict[Kind, str] = {
        "autoencoder": "an autoencoder",
        "decoder": "the decoder of a representation autoencoder, which needs its teacher (--teacher NAME)",
        "transformer": "a transformer",
        "statistics": "statistics of latents",
    }
    if found.kind != kind:
        raise UserError(f"{path}: holds {words[found.kind]}, not {words[kind]}")
    check_tensors(found.tensors, path)
    return found.tensors


def diffusers_weights(folder: Path) -> Path:
    """Return the file of weights in a folder of diffusers.

    Raises:
        UserError: There is none.
    """
    for name in files.DIFFUSERS_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: must have {' or '.join(files.DIFFUSERS_WEIGHTS)}")


def _exported_config(folder: Path) -> LightningDiTConfig:
    """Return the configuration of a transformer that was exported for diffusers, without diffusers' own `_` keys."""
    values = {key: value for key, value in files.read_config(folder).items() if not key.startswith("_")}
    with errors_name(folder / files.CONFIG):
        return from_plain(LightningDiTConfig, values)


def _published_size(training: Mapping[str, Any]) -> str | None:
    model = training.get("model")
    name = model.get("model_type") if isinstance(model, Mapping) else None
    return name.removeprefix("LightningDiT-") if isinstance(name, str) else None


def _check_configuration(training: Mapping[str, Any], shape: LightningDiTConfig, path: Path) -> None:
    """Raise UserError unless the configuration fits the weights, whose shapes alone could fit another network."""
    held = {
        "model.use_rope": shape.rope,
        "model.use_rmsnorm": shape.rmsnorm,
        "model.use_swiglu": shape.swiglu,
        "model.use_qknorm": shape.qk_norm,
        "model.wo_shift": not shape.adaln_shift,
        "model.in_chans": shape.latent_channels,
        "data.num_classes": shape.num_classes,
    }
    for name, value in held.items():
        section, key = name.split(".")
        values = training.get(section)
        stated = values.get(key) if isinstance(values, Mapping) else None
        if isinstance(stated, int) and stated != value:
            raise UserError(f"{path}: its configuration says {name} {stated}, its weights say {value}")


def _report(path: Path, what: str, model: nn.Module, found: Unwrapped, notes: list[str]) -> LoadReport:
    state = model.state_dict()
    numbers = sum(value.numel() for value in state.values())
    report = LoadReport(str(path), what, len(state), numbers, found.weights, tuple(notes), found.ignored)
    if notes or found.ignored:
        log.warning("%s", report)
    return report
