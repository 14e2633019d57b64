"""Read an autoencoder or a transformer alone, from any folder, file or repository.

Importing this module sets `from_pretrained` of `AutoencoderKL`, `LightningDiT` and `DiTDH` to the readers, since the
rooms of the networks do not read files.
"""

import functools
from pathlib import Path
from typing import Any, Unpack

import torch

from vavae.checkpoints import folder as files
from vavae.checkpoints.folder import HubOptions
from vavae.checkpoints.loading import load_autoencoder, load_transformer, own_transformer
from vavae.checkpoints.locations import resolve
from vavae.checkpoints.published import Weights
from vavae.device import named_device
from vavae.errors import UserError
from vavae.tokenizer import AutoencoderKL
from vavae.transformer import DiTDH, LightningDiT, Transformer


def read_autoencoder(
    path_or_hub_id: str | Path,
    device: torch.device | str = "cpu",
    *,
    weights: Weights = "auto",
    dtype: torch.dtype | None = None,
    **hub: Unpack[HubOptions],
) -> AutoencoderKL:
    """Read an autoencoder, local or from the hub, in eval mode: one of ours, published, or of diffusers.

    Its latents are not normalized. `Tokenizer.from_pretrained` also reads their statistics, and explains the arguments.

    Raises:
        UserError: Names the file or key that is missing or wrong.
    """
    path = resolve(path_or_hub_id, "tokenizer", **hub)
    files.refuse_unused(path, weights=weights)
    network = load_autoencoder(path, weights).model
    files.hold_in(dtype, network)
    return network.to(named_device(device))


def read_transformer(
    path_or_hub_id: str | Path,
    device: torch.device | str = "cpu",
    *,
    weights: Weights = "auto",
    heads: int | None = None,
    dtype: torch.dtype | None = None,
    **hub: Unpack[HubOptions],
) -> Transformer:
    """Read a transformer, local or from the hub, in eval mode: one of ours, published, or exported for diffusers.

    `Generator.from_pretrained` explains the arguments.

    Raises:
        UserError: Names the file or key that is missing or wrong.
    """
    path = resolve(path_or_hub_id, "transformer", **hub)
    own = files.refuse_unused(path, weights=weights, heads=heads) == "generator"
    network: Transformer = own_transformer(path)[0] if own else load_transformer(path, weights, heads).model
    files.hold_in(dtype, network)
    return network.to(named_device(device))


def _reader(network: type[LightningDiT] | type[DiTDH]) -> Any:
    """Return `read_transformer` for one architecture; another one is an error."""

    @functools.wraps(read_transformer)
    def read(path_or_hub_id: str | Path, device: torch.device | str = "cpu", **options: Any) -> Transformer:
        found = read_transformer(path_or_hub_id, device, **options)
        if not isinstance(found, network):
            raise UserError(f"{path_or_hub_id}: holds a {type(found).__name__}, not a {network.__name__}")
        return found

    return staticmethod(read)


AutoencoderKL.from_pretrained = staticmethod(read_autoencoder)
LightningDiT.from_pretrained = _reader(LightningDiT)
DiTDH.from_pretrained = _reader(DiTDH)
