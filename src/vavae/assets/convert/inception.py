"""Read FID's Inception weights from a TorchScript archive without running it."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor


class _ScriptObject:
    """A scripted module with its attributes and without its code."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _WeightsOnly(pickle.Unpickler):
    """Read the archive's `data.pkl` as a tree of attributes and tensors; refuse any other name in it."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return _ScriptObject
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch", "FloatStorage"): np.float32,
            ("torch.jit._pickle", "build_intlist"): list,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is neither a scripted module nor a tensor")
        return known[module, name]

    def persistent_load(self, reference: tuple[str, type, str, str, int]) -> np.ndarray:
        _, kind, key, _, _ = reference
        return np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype=np.dtype(kind))


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    return torch.from_numpy(storage.copy()).as_strided(size, stride, offset).contiguous()


def read_inception(path: Path) -> dict[str, Tensor]:
    """Return every weight by its attribute path in the archive, without the outer wrapper `net.`.

    A convolution `<path>` has `<path>.weight` (out, in, kh, kw); its normalization has `<path>.beta`, `.mean` and
    `.var` (eps 1e-3, no gain).
    """
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        network = _WeightsOnly(archive, root).load()
    return {name.removeprefix("net."): tensor for name, tensor in _tensors(network)}


def convert_inception(files: list[Path], folder: Path) -> None:
    """Write the weights of `read_inception`."""
    save_file(read_inception(files[0]), folder / "model.safetensors")


def _tensors(module: _ScriptObject, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _ScriptObject):
            yield from _tensors(value, f"{prefix}{name}.")
