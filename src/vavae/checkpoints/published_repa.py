"""Read the transformers of sihyun-yu/REPA, iREPA and Martinser/REG: SiT with the other direction of time.

Their network takes τ = 1 − t, 0 at data, and returns noise − data. Both are changed in the weights, once and exactly:
cos(f·τ) and sin(f·τ) are sums of cos(f·t) and sin(f·t), and the output layer changes its sign.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vavae.transformer.layers import time_features

_LEGACY = re.compile(r"decoder_blocks\.(\d+)\.")


def is_repa(tensors: Mapping[str, Tensor], extra: Mapping[str, Tensor], training: Mapping[str, Any]) -> bool:
    """Return whether a SiT is one of REPA's: by its projectors, the names of its first release, or its options.

    Args:
        tensors: The network.
        extra: Tensors of the file that only training uses.
        training: The options in the file.
    """
    named = any(name.startswith("projectors.") for name in extra) or any(map(_LEGACY.match, tensors))
    return named or (training.get("transport") or {}).get("prediction") == "v"


def from_repa(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a LightningDiT with vavae's time and sign, and notes for the report."""
    notes = ["its time runs from data to noise; first time layer and output layer are converted"]
    names = {name: found for name in tensors if (found := _LEGACY.match(name))}
    if names:  # of the first release, which numbers the blocks after the aligned one from 0 again
        aligned = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        for name, found in names.items():
            tensors[f"blocks.{aligned + int(found[1])}.{name[found.end() :]}"] = tensors.pop(name)
        notes.append(f"decoder_blocks are blocks {aligned} and more")
    return tensors | _reversed_time(tensors), notes


def _reversed_time(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that change: f(1 − t) of the time embedding, and minus the output."""
    first = "t_embedder.mlp.0.weight"
    outputs = [f"final_layer.{layer}.{part}" for layer in ("linear", "linear_cls") for part in ("weight", "bias")]
    changed = {name: -tensors[name] for name in outputs if name in tensors}
    if first in tensors:  # what is missing is reported by the loader
        # With τ = 1 − t: cos fτ = cos f · cos ft + sin f · sin ft, and sin fτ = sin f · cos ft − cos f · sin ft.
        cos, sin = time_features(torch.ones(1, dtype=torch.float64))[0].chunk(2)
        of_cos, of_sin = tensors[first].double().chunk(2, dim=1)
        changed[first] = torch.cat((of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos), dim=1).float()
    return changed
