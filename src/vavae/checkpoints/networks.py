"""Read the autoencoder or the transformer alone out of any folder, file or repository.

Loading this module sets `AutoencoderKL.from_pretrained` and `LightningDiT.from_pretrained` to the two readers: the
rooms of the networks know no files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack

import torch
from torch import nn

from vavae.checkpoints import folder as files
from vavae.checkpoints.folder import HubOptions
from vavae.checkpoints.loading import build, load_autoencoder, load_transformer
from vavae.checkpoints.locations import resolve
from vavae.checkpoints.published import Weights
from vavae.checkpoints.reading import read_safetensors
from vavae.checkpoints.shapes import check_autoencoder, check_transformer
from vavae.config import from_plain
from vavae.errors import UserError
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL
from vavae.transformer import LightningDiT, LightningDiTConfig

N = TypeVar("N", bound=nn.Module)


def own_autoencoder(folder: Path) -> tuple[AutoencoderKL, dict[str, Any]]:
    """Return the network in a tokenizer's folder of ours, on the CPU, and the content of its `config.json`.

    Raises:
        UserError: Names the file or key that is missing, damaged or wrong.
    """
    return _own(folder, "tokenizer", "autoencoder", AutoencoderConfig, check_autoencoder, AutoencoderKL.from_config)


def own_transformer(folder: Path) -> tuple[LightningDiT, dict[str, Any]]:
    """Return the transformer in a generator's folder of ours, on the CPU, and the content of its `config.json`.

    Raises:
        UserError: Names the file or key that is missing, damaged or wrong.
    """
    return _own(folder, "generator", "transformer", LightningDiTConfig, check_transformer, LightningDiT.from_config)


def _own(
    folder: Path,
    model: Literal["tokenizer", "generator"],
    key: str,
    config_class: type[Any],
    check: Callable[[Any, dict[str, torch.Tensor], Path], None],
    make: Callable[[Any], N],
) -> tuple[N, dict[str, Any]]:
    """Read the network that `config.json` describes under `key`."""
    content, path, where = files.read_model(folder, model), folder / files.WEIGHTS, folder / files.CONFIG
    if not isinstance(content.get(key), dict):
        raise UserError(f"{where}: {key} must be a set of keys, got {str(content.get(key))[:60]}")
    try:
        config = from_plain(config_class, content[key])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    tensors = read_safetensors(path)
    check(config, tensors, path)
    return build(make, config, tensors, path), content


def read_autoencoder(
    path_or_hub_id: str | Path,
    device: torch.device | str = "cpu",
    *,
    weights: Weights = "auto",
    dtype: torch.dtype | None = None,
    **hub: Unpack[HubOptions],
) -> AutoencoderKL:
    """Read an autoencoder, here or on the hub, in eval mode: one of ours, published, or of diffusers.

    Its latents are the raw ones; `Tokenizer.from_pretrained` reads their statistics too, and explains the arguments.

    Raises:
        UserError: Names the file or key that is missing or wrong.
    """
    path = resolve(path_or_hub_id, "tokenizer", **hub)
    form = files.form_of(path)
    files.refuse_unused(path, form, weights=weights)
    if form in ("tokenizer", "generator"):
        network = own_autoencoder(path if form == "tokenizer" else files.subfolder(path, "tokenizer"))[0]
    elif form in ("checkpoint", "diffusers", "pipeline"):
        network = load_autoencoder(path, weights).model
    else:
        raise UserError(f"{path}: holds {files.describe_form(form)}, not an autoencoder")
    files.hold_in(network, dtype)
    return network.to(device)


def read_transformer(
    path_or_hub_id: str | Path,
    device: torch.device | str = "cpu",
    *,
    weights: Weights = "auto",
    heads: int | None = None,
    dtype: torch.dtype | None = None,
    **hub: Unpack[HubOptions],
) -> LightningDiT:
    """Read a transformer, here or on the hub, in eval mode: one of ours, published, or exported for diffusers.

    `Generator.from_pretrained` explains the arguments.

    Raises:
        UserError: Names the file or key that is missing or wrong.
    """
    path = resolve(path_or_hub_id, "transformer", **hub)
    form = files.form_of(path)
    files.refuse_unused(path, form, weights=weights, heads=heads)
    if form == "generator":
        network = own_transformer(path)[0]
    elif form in ("checkpoint", "pipeline"):
        network = load_transformer(path, weights, heads).model
    else:
        raise UserError(f"{path}: holds {files.describe_form(form)}, not a transformer")
    files.hold_in(network, dtype)
    return network.to(device)


AutoencoderKL.from_pretrained = staticmethod(read_autoencoder)
LightningDiT.from_pretrained = staticmethod(read_transformer)
