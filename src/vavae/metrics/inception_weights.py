"""Read weights of FID Inception in their published forms, under the names of the asset.

Forms: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid (converted from TensorFlow, in torchvision's names, with
logits), StyleGAN's TorchScript, and safetensors in the names of the asset.
"""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from vavae.errors import UserError

_STEM = {
    "Conv2d_1a_3x3": "conv",
    "Conv2d_2a_3x3": "conv_1",
    "Conv2d_2b_3x3": "conv_2",
    "Conv2d_3b_1x1": "conv_3",
    "Conv2d_4a_3x3": "conv_4",
}


def _tower(branch: str, tower: str, length: int) -> dict[str, str]:
    """Map `branch_1`, `branch_2`, … to `tower.conv`, `tower.conv_1`, …"""
    return {f"{branch}_{i + 1}": f"{tower}.conv_{i}" if i else f"{tower}.conv" for i in range(length)}


_POOL = {"branch_pool": "tower_2.conv"}
_BLOCK_35 = {"branch1x1": "conv", **_tower("branch5x5", "tower", 2), **_tower("branch3x3dbl", "tower_1", 3), **_POOL}
_BLOCK_17 = {"branch1x1": "conv", **_tower("branch7x7", "tower", 3), **_tower("branch7x7dbl", "tower_1", 5), **_POOL}
_BLOCK_8 = {
    "branch1x1": "conv",
    "branch3x3_1": "tower_conv",
    "branch3x3_2a": "tower_mixed_conv",
    "branch3x3_2b": "tower_mixed_conv_1",
    "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1",
    "branch3x3dbl_3a": "tower_1_mixed_conv",
    "branch3x3dbl_3b": "tower_1_mixed_conv_1",
    "branch_pool": "tower_2_conv",
}
_BLOCKS = {
    **dict.fromkeys(("5b", "5c", "5d"), _BLOCK_35),
    "6a": {"branch3x3": "conv", **_tower("branch3x3dbl", "tower", 3)},
    **dict.fromkeys(("6b", "6c", "6d", "6e"), _BLOCK_17),
    "7a": {**_tower("branch3x3", "tower", 2), **_tower("branch7x7x3", "tower_1", 4)},
    **dict.fromkeys(("7b", "7c"), _BLOCK_8),
}


def _torchvision_names() -> dict[str, str]:
    """Map torchvision's names of convolutions to the asset's."""
    names = dict(_STEM)
    for number, (block, branches) in enumerate(_BLOCKS.items()):
        mixed = f"mixed_{number}" if number else "mixed"
        names |= {f"Mixed_{block}.{branch}": f"{mixed}.{ours}" for branch, ours in branches.items()}
    return names


def from_pytorch_fid(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of pytorch-fid's network to the names of the asset, with `output.weight` if it has logits.

    The asset has no gain of the normalization: weights and means are multiplied by it.

    Raises:
        UserError: A name is missing or unknown.
    """
    left = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    weights = {}
    try:
        for published, ours in _torchvision_names().items():
            gain = left.pop(f"{published}.bn.weight").double()
            weights[f"{ours}.weight"] = left.pop(f"{published}.conv.weight").double() * gain.view(-1, 1, 1, 1)
            weights[f"{ours}.beta"] = left.pop(f"{published}.bn.bias").double()
            weights[f"{ours}.mean"] = left.pop(f"{published}.bn.running_mean").double() * gain
            weights[f"{ours}.var"] = left.pop(f"{published}.bn.running_var").double()
    except KeyError as error:
        raise UserError(f"FID Inception weights: {error.args[0]} is missing") from None
    if "fc.weight" in left:
        weights["output.weight"] = left.pop("fc.weight")
    left.pop("fc.bias", None)  # the Inception Score uses logits without bias
    if left:
        raise UserError(f"FID Inception weights: {min(left)} is unknown")
    return weights


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights from a file in any of the forms above, under the names of the asset.

    Raises:
        UserError: The file is missing, or has none of these forms.
    """
    if not path.is_file():
        raise UserError(f"no such file of FID Inception weights: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if _is_script(path):
            from vavae.assets.convert.inception import read_inception

            return read_inception(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not readable as FID Inception weights ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict of FID Inception")
    return from_pytorch_fid(state)


def _is_script(path: Path) -> bool:
    """Return whether a file is a TorchScript archive: it contains code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
