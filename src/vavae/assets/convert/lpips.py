"""Read LPIPS weights from a pickle of numpy arrays (Flax layout)."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file


class _ArraysOnly(pickle.Unpickler):
    """Unpickle dicts, strings and numpy arrays; refuse any other name."""

    _allowed = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in self._allowed:
            # The module moved in numpy 2; the old name still resolves there but warns.
            return np.empty(0).__reduce__()[0] if name == "_reconstruct" else getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not a numpy array")


def convert_lpips(files: list[Path], folder: Path) -> None:
    """Write `features.{i}.weight` (out, in, kh, kw), `features.{i}.bias` and `heads.{k}.weight` (1, C, 1, 1).

    Convolutions are numbered in the network's order (VGG-16: 13, AlexNet: 5). Head k weighs feature map k of the five
    that LPIPS compares.
    """
    with files[0].open("rb") as stream:
        tree: dict[str, Any] = _ArraysOnly(stream).load()
    backbone = next(value for name, value in tree.items() if not name.startswith("NetLinLayer"))
    tensors = {}
    for i in range(len(backbone)):
        layer = backbone[f"Conv_{i}"]
        tensors[f"features.{i}.weight"] = _oihw(layer["kernel"])
        tensors[f"features.{i}.bias"] = torch.from_numpy(np.array(layer["bias"], dtype=np.float32))
    for k in range(5):
        tensors[f"heads.{k}.weight"] = _oihw(tree[f"NetLinLayer_{k}"]["Conv_0"]["kernel"])
    save_file(tensors, folder / "model.safetensors")


def _oihw(kernel: np.ndarray) -> torch.Tensor:
    """Convert (kh, kw, in, out) to (out, in, kh, kw)."""
    return torch.from_numpy(np.ascontiguousarray(np.transpose(kernel, (3, 2, 0, 1)), dtype=np.float32))
