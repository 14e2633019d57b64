"""Load networks from published files and from folders of diffusers, strictly, with a report."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vavae.checkpoints import folder as files
from vavae.checkpoints.diffusers_autoencoder import (
    add_quant_conv,
    check_diffusers_config,
    diffusers_statistics,
    from_diffusers_names,
    is_diffusers,
)
from vavae.checkpoints.published import IgnoredSetting, LoadReport, Unwrapped, Weights, unwrap
from vavae.checkpoints.reading import check_tensors, read_with_placeholders
from vavae.checkpoints.shapes import check_transformer, infer_autoencoder, infer_transformer, size_name
from vavae.config import from_plain
from vavae.errors import UserError
from vavae.tokenizer import AutoencoderKL, LatentStatistics
from vavae.transformer import LightningDiT, LightningDiTConfig
from vavae.transformer.sizes import parse_size, size_names

log = logging.getLogger(__name__)

C = TypeVar("C")
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class LoadedAutoencoder:
    """An autoencoder from a checkpoint.

    Attributes:
        model: The network, on the CPU.
        statistics: Statistics of its latents from a configuration of diffusers; None for published files.
        report: What was loaded and what was left out.
        training: Tensors that only training uses, under their published names: discriminator and projection.
    """

    model: AutoencoderKL
    statistics: LatentStatistics | None
    report: LoadReport
    training: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class LoadedTransformer:
    """A transformer from a checkpoint.

    Attributes:
        model: The network, on the CPU.
        report: What was loaded and what was left out.
        training: The published training configuration, where the checkpoint holds it.
    """

    model: LightningDiT
    report: LoadReport
    training: Mapping[str, Any]


def build(make: Callable[[C], N], config: C, tensors: dict[str, Tensor], source: str | Path) -> N:
    """Return a network with these weights, on the CPU, in eval mode.

    Args:
        make: Makes the network of a configuration.
        config: The configuration.
        tensors: The state dict.
        source: The file, for messages.

    Raises:
        UserError: See `load_strictly`.
    """
    with torch.device("meta"):
        network = make(config)
    files.load_strictly(network, tensors, source)
    return network.eval()


def open_checkpoint(path: Path, weights: Weights = "auto") -> Unwrapped:
    """Read a checkpoint file, or the one in a published folder, and find the network in it.

    Raises:
        UserError: See `read_checkpoint` and `unwrap`.
    """
    file = files.published_file(path) if path.is_dir() else path
    if file is None:
        raise UserError(f"{path}: holds no checkpoint")
    files.refuse_part(file)
    content, placeholders = read_with_placeholders(file)
    found = unwrap(content, file, weights)
    # The values of a Namespace are read.
    classes = [
        IgnoredSetting(name, 1, "class that is not loaded") for name in placeholders if name != "argparse.Namespace"
    ]
    return replace(found, left_aside=(*found.left_aside, *classes))


def load_autoencoder(path: Path, weights: Weights = "auto") -> LoadedAutoencoder:
    """Load an autoencoder from a published file, or from a folder or file of diffusers.

    Raises:
        UserError: There is no autoencoder, or a part of it is missing.
    """
    config: dict[str, Any] | None = None
    if path.is_dir() and files.form_of(path) == "pipeline":
        path = files.subfolder(path, "vae")
    if path.is_dir() and files.form_of(path) == "diffusers":
        config = files.read_config(path)
        path = _diffusers_weights(path)
    found = open_checkpoint(path, weights)
    if found.kind != "autoencoder":
        raise UserError(f"{path}: holds {_WORDS[found.kind]}, not an autoencoder")
    tensors, statistics = found.tensors, None
    notes: list[str] = []
    if is_diffusers(tensors):
        tensors, notes = from_diffusers_names(tensors, path)
        if config is None and (path.parent / files.CONFIG).is_file():
            config = files.read_config(path.parent)
    else:
        notes = add_quant_conv(tensors)
    check_tensors(tensors, path)
    shape = infer_autoencoder(tensors, path)
    if config is not None:
        where = path.parent / files.CONFIG
        check_diffusers_config(config, shape, where)
        statistics = diffusers_statistics(config, shape.latent_channels, where)
    model = build(AutoencoderKL.from_config, shape, tensors, path)
    attention = "" if shape.decoder_attention else ", no attention on the decoder's way up"
    what = f"autoencoder f{shape.factor} d{shape.latent_channels}, widths {shape.widths}{attention}"
    return LoadedAutoencoder(model, statistics, _report(path, what, model, found, notes), found.extra)


def load_transformer(path: Path, weights: Weights = "auto", heads: int | None = None) -> LoadedTransformer:
    """Load a LightningDiT from a published file, or from an exported pipeline.

    Args:
        path: File or folder.
        weights: Which of several sets of weights.
        heads: Number of attention heads, where the shapes do not show it.

    Raises:
        UserError: There is no transformer, a part of it is missing, or it differs from its configuration.
    """
    said: LightningDiTConfig | None = None
    if path.is_dir() and files.form_of(path) == "pipeline":
        folder = files.subfolder(path, "transformer")
        said, path = _exported_config(folder), _diffusers_weights(folder)
    found = open_checkpoint(path, weights)
    if found.kind != "transformer":
        raise UserError(f"{path}: holds {_WORDS[found.kind]}, not a transformer")
    tensors = found.tensors
    check_tensors(tensors, path)
    shape = infer_transformer(tensors, path, said.heads if said else heads)
    if said is not None:
        check_transformer(said, tensors, path)
        shape = said
    named = _published_size(found.training)
    notes = [] if named in (None, size_name(shape)) else [f"its configuration says {named}"]
    if notes and named in size_names() and parse_size(str(named))[0].width == shape.width:
        # The width of that size but another depth: blocks are missing at the end, where no gap shows.
        raise UserError(f"{path}: its configuration says {named}, its weights are {size_name(shape)}")
    _check_configuration(found.training, shape, path)
    model = build(LightningDiT.from_config, shape, tensors, path)
    what = f"LightningDiT {size_name(shape)} for latents {shape.latent_channels}x{'x'.join(map(str, shape.latent_hw))}"
    return LoadedTransformer(
        model, _report(path, f"{what}, {shape.num_classes} classes", model, found, notes), found.training
    )


_WORDS = {"autoencoder": "an autoencoder", "transformer": "a transformer", "statistics": "statistics of latents"}


def _diffusers_weights(folder: Path) -> Path:
    for name in files.DIFFUSERS_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds neither {' nor '.join(files.DIFFUSERS_WEIGHTS)}")


def _exported_config(folder: Path) -> LightningDiTConfig:
    """Return the configuration of a transformer that was exported for diffusers, whose own keys have an underscore."""
    values = {key: value for key, value in files.read_config(folder).items() if not key.startswith("_")}
    try:
        return from_plain(LightningDiTConfig, values)
    except UserError as error:
        raise UserError(f"{folder / files.CONFIG}: {error}") from error


def _published_size(training: Mapping[str, Any]) -> str | None:
    model = training.get("model")
    name = model.get("model_type") if isinstance(model, Mapping) else None
    return name.removeprefix("LightningDiT-") if isinstance(name, str) else None


def _check_configuration(training: Mapping[str, Any], shape: LightningDiTConfig, path: Path) -> None:
    """Compare the configuration with the weights: weights without any tensor of a part fit another network.

    Raises:
        UserError: Names the first key that differs.
    """
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
        said = values.get(key) if isinstance(values, Mapping) else None
        if isinstance(said, int) and said != value:
            raise UserError(f"{path}: its configuration says {name} {said}, its weights say {value}")


def _report(path: Path, what: str, model: nn.Module, found: Unwrapped, notes: list[str]) -> LoadReport:
    state = model.state_dict()
    numbers = sum(value.numel() for value in state.values())
    report = LoadReport(str(path), what, len(state), numbers, found.weights, tuple(notes), found.left_aside)
    if notes or found.left_aside:
        log.warning("%s", report)
    return report
