"""Read an autoencoder or a transformer alone, from any folder, file or repository.

Importing this module sets `AutoencoderKL.from_pretrained` and `LightningDiT.from_pretrained` to the two readers, since
the rooms of the networks do not read files.
"""

from pathlib import Path
from typing import Unpack

import torch

from vavae.checkpoints import folder as files
from vavae.checkpoints.folder import HubOptions
from vavae.checkpoints.loading import load_autoencoder, load_transformer, own_transformer
from vavae.checkpoints.locations import resolve
from vavae.checkpoints.published import Weights
from vavae.device import named_device
from vavae.tokenizer import AutoencoderKL
from vavae.transformer import LightningDiT


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
) -> LightningDiT:
    """Read a transformer, local or from the hub, in eval mode: one of ours, published, or exported for diffusers.

    `Generator.from_pretrained` explains the arguments.

    Raises:
        UserError: Names the file or key that is missing or wrong.
    """
    path = resolve(path_or_hub_id, "transformer", **hub)
    own = files.refuse_unused(path, weights=weights, heads=heads) == "generator"
    network = own_transformer(path)[0] if own else load_transformer(path, weights, heads).model
    files.hold_in(dtype, network)
    return network.to(named_device(device))


AutoencoderKL.from_pretrained = staticmethod(read_autoencoder)
LightningDiT.from_pretrained = staticmethod(read_transformer)
