"""One network out of any folder, file or repository: the autoencoder or the transformer alone.

`AutoencoderKL.from_pretrained` and `LightningDiT.from_pretrained` are the two readers here.
"""

from pathlib import Path
from typing import Any, TypeVar, Unpack

import torch

from vavae.checkpoints import folder as files
from vavae.checkpoints.folder import HubOptions
from vavae.checkpoints.loading import load_autoencoder, load_transformer
from vavae.checkpoints.published import Weights
from vavae.checkpoints.reading import read_safetensors
from vavae.checkpoints.shapes import check_autoencoder, check_transformer
from vavae.config import from_plain
from vavae.errors import UserError
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL
from vavae.transformer import LightningDiT, LightningDiTConfig

C = TypeVar("C")


def own_autoencoder(folder: Path) -> tuple[AutoencoderKL, dict[str, Any]]:
    """Return the network of a tokenizer's folder of ours, on the CPU, and what its `config.json` holds.

    Raises:
        UserError: Names the file or key that is missing, damaged or wrong.
    """
    config, path = files.read_model(folder, "tokenizer"), folder / files.WEIGHTS
    shape = _shape(AutoencoderConfig, config, "autoencoder", folder)
    tensors = read_safetensors(path)
    check_autoencoder(shape, tensors, path)
    with torch.device("meta"):
        network = AutoencoderKL.from_config(shape)
    files.load_strictly(network, tensors, path)
    return network, config


def own_transformer(folder: Path) -> tuple[LightningDiT, dict[str, Any]]:
    """Return the transformer of a generator's folder of ours, on the CPU, and what its `config.json` holds.

    Raises:
        UserError: Names the file or key that is missing, damaged or wrong.
    """
    config, path = files.read_model(folder, "generator"), folder / files.WEIGHTS
    shape = _shape(LightningDiTConfig, config, "transformer", folder)
    tensors = read_safetensors(path)
    check_transformer(shape, tensors, path)
    with torch.device("meta"):
        network = LightningDiT.from_config(shape)
    files.load_strictly(network, tensors, path)
    return network, config


def read_autoencoder(
    path_or_hub_id: str | Path,
    device: torch.device | str = "cpu",
    *,
    weights: Weights = "auto",
    dtype: torch.dtype | None = None,
    **hub: Unpack[HubOptions],
) -> AutoencoderKL:
    """Return the autoencoder alone, in eval mode; see `Tokenizer.from_pretrained` for the arguments.

    Raises:
        UserError: Names the file or key that is missing or wrong.
    """
    path = files.resolve(path_or_hub_id, "tokenizer", **hub)
    form = files.form_of(path)
    if form in ("tokenizer", "generator"):
        network = own_autoencoder(path if form == "tokenizer" else files.subfolder(path, "tokenizer"))[0]
    elif form in ("checkpoint", "diffusers", "pipeline"):
        network = load_autoencoder(path, weights).model
    else:
        raise UserError(f"{path}: holds {files.describe_form(form)}, not an autoencoder")
    files.hold_in(network, dtype)
    return network.to(device).eval()


def read_transformer(
    path_or_hub_id: str | Path,
    device: torch.device | str = "cpu",
    *,
    weights: Weights = "auto",
    heads: int | None = None,
    dtype: torch.dtype | None = None,
    **hub: Unpack[HubOptions],
) -> LightningDiT:
    """Return the transformer alone, in eval mode; see `Generator.from_pretrained` for the arguments.

    Raises:
        UserError: Names the file or key that is missing or wrong.
    """
    path = files.resolve(path_or_hub_id, "transformer", **hub)
    form = files.form_of(path)
    if form == "generator":
        network = own_transformer(path)[0]
    elif form in ("checkpoint", "pipeline"):
        network = load_transformer(path, weights, heads).model
    else:
        raise UserError(f"{path}: holds {files.describe_form(form)}, not a transformer")
    files.hold_in(network, dtype)
    return network.to(device).eval()


def _shape(kind: type[C], config: dict[str, Any], key: str, folder: Path) -> C:
    if not isinstance(config.get(key), dict):
        raise UserError(f"{folder / files.CONFIG}: {key} must be a set of keys, got {str(config.get(key))[:60]}")
    try:
        return from_plain(kind, config[key])
    except UserError as error:
        raise UserError(f"{folder / files.CONFIG}: {error}") from error
