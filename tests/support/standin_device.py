"""A stand-in for Apple's GPU: a device of torch that computes on the CPU and refuses what such a GPU refuses.

Importing this registers the device `standin` for the whole process, so it is imported by processes of their own. What
lies on it is refused

- float64, which Apple's GPUs have not,
- copies to the CPU that become float64 on the way,
- operations together with tensors of the CPU, other than copies, indices and single numbers,
- integers beyond 2^53, as hashes make them, and copies that are not waited for: no test has seen them right there,
- operations for which torch's own table of kernels has none for Apple's GPUs (`MPS`).

    python tests/standin_device.py < commands    # one JSON list of arguments of `vavae` per line
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.utils.backend_registration as backends
import torchgen
import yaml
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NAME = "standin"
_DEVICE, _CPU = torch.device("privateuseone", 0), torch.device("cpu")
_INDEXING = ("aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index.Tensor")


class OnStandin(Tensor):
    """A tensor of the device, which holds one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnStandin":
        # Outside of inference mode: torch keeps versions of views, which tensors made within it have not.
        with torch.inference_mode(False):
            made: OnStandin = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=_DEVICE
            )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Inference mode passes on operations that are made of others, whole.
        parts = func.decompose(*args, **(kwargs or {})) if func._can_decompose() else NotImplemented
        return _computed(func, args, kwargs or {}) if parts is NotImplemented else parts

    def tolist(self) -> Any:
        return self.held.tolist()


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, computed by the CPU; on the device if it belongs there."""
    if func.name() == "aten::_has_compatible_shallow_copy_type":
        return False  # asked by Module.to: no memory is shared between devices
    values, structure = tree_flatten((args, kwargs))
    there = [value for value in values if isinstance(value, OnStandin)]
    here = [value for value in values if isinstance(value, Tensor) and not isinstance(value, OnStandin) and value.ndim]
    if there:
        _check_operation(func, args, kwargs, here)
    stays = _stays(func.name(), args, values)
    plain_args, plain_kwargs = tree_unflatten([_plain(value) for value in values], structure)
    known = {id(value.held): value for value in there}

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if there or stays:
            _check_numbers(func.name(), value)
        same = known.get(id(value))
        if not stays:
            return value if same is None else value.clone()
        return OnStandin(value) if same is None else same

    return tree_map(placed, func(*plain_args, **plain_kwargs))


def _check_operation(func: Any, args: Any, kwargs: dict[str, Any], here: list[Tensor]) -> None:
    """Refuse an operation on tensors of the device and, perhaps, some `here` on the CPU."""
    name = func.name()
    floats = any(value.is_floating_point() for value in here)
    indexed = name in _INDEXING and isinstance(args[0], OnStandin) and not floats
    if here and name != "aten::copy_" and not indexed:
        raise RuntimeError(f"{name}: one tensor is on {NAME}, another on the CPU")
    if not _has_kernel(name):
        raise NotImplementedError(f"{name}: Apple's GPUs have no kernel for it")
    names = [argument.name for argument in func._schema.arguments]
    if (dict(zip(names, args, strict=False)) | kwargs).get("non_blocking", False):
        raise RuntimeError(f"{name}: a copy that is not waited for")


def _check_numbers(name: str, value: Tensor) -> None:
    """Refuse what an operation gives, or has made on its way to the CPU."""
    if value.dtype in (torch.float64, torch.complex128):
        raise TypeError(f"{name}: there is no {value.dtype} on {NAME}")
    filled = value.numel() and "empty" not in name
    if filled and value.dtype == torch.int64 and int(value.abs().max()) > 2**53:
        raise TypeError(f"{name}: integers of more than 53 bits on {NAME}")


def _stays(name: str, args: Any, values: list[Any]) -> bool:
    """Whether the result is on the device: where it is asked to be, else where the tensors are."""
    asked = next((value for value in values if isinstance(value, torch.device)), None)
    if asked is not None:
        return asked.type == NAME
    return any(isinstance(value, OnStandin) for value in (args[:1] if name == "aten::copy_" else values))


def _plain(value: Any) -> Any:
    """What the CPU is given instead."""
    if isinstance(value, OnStandin):
        return value.held
    return _CPU if isinstance(value, torch.device) else value


@cache
def _kernels() -> dict[str, set[str]]:
    """Backends that have a kernel of their own, by operation; none for operations made of others."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    rows = yaml.load(table.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found, delegates = {}, {}
    for row in rows:
        name = "aten::" + row["func"].split("(")[0]
        found[name] = {key.strip() for keys in row.get("dispatch", {}) for key in keys.split(",")}
        delegates[name] = row.get("structured_delegate")
    return {name: keys | found.get(f"aten::{delegates[name]}", set()) for name, keys in found.items()}


def _has_kernel(name: str) -> bool:
    keys = _kernels().get(name, set())
    return not keys or "MPS" in keys or any(key.startswith("Composite") for key in keys)


class _Module(backends._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _register() -> torch.library.Library:
    backends._setup_privateuseone_for_python_backend(NAME, _Module())
    torch.accelerator.synchronize = lambda *_: None
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, _made_here(getattr(torch, name)))
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *args, **kwargs: _computed(op, args, kwargs), "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return library


def _made_here(make: Any) -> Any:
    """`torch.tensor` for this device: on the CPU, then copied, as torch's own way does not reach Python's kernels."""

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        found: Tensor = make(data, **options)
        return found if device is None else found.to(device)

    return made


_KERNELS = _register()

if __name__ == "__main__":
    from vavae.cli import run

    for line in sys.stdin:
        code = run(json.loads(line))
        if code != 0:
            sys.exit(code)
