"""Read checkpoint files of others: safetensors, and files of `torch.save` without running their code.

A torch file is a pickle, and a pickle is a program: it names classes and functions and calls them. Here the names in
`_REAL` give torch's own functions that rebuild tensors, and plain containers. Every other name gives an inert class
(`Placeholder`): nothing is imported, and a call is refused.
"""

import pickle
import tarfile
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vavae.errors import UserError, one_line, printable

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# Bytes of a checkpoint's structure without its numbers; the largest published models need less than 1 MB.
_MOST_STRUCTURE = 64 * 2**20


def _bytes(text: str, encoding: str) -> bytes:
    """Return bytes that pickle protocol 2 wrote as latin1 text."""
    return text.encode("latin1")


WEIGHT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Everything that a pickle may call.
_REAL: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "__builtin__.set": set,
    "builtins.set": set,
    "_codecs.encode": _bytes,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    "torch.serialization._get_layout": torch.serialization._get_layout,
} | {
    f"torch._utils.{name}": getattr(torch._utils, name)
    for name in (
        "_rebuild_tensor",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
        "_rebuild_parameter",
        "_rebuild_sparse_tensor",
        "_rebuild_qtensor",
    )
}
# Values whose pickle calls their class; the call makes a placeholder.
_VALUES = frozenset(
    [
        *(f"numpy.{part}.multiarray.{name}" for part in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"pathlib.{part}{kind}Path" for part in ("", "_local.") for kind in ("", "Posix", "Windows", "PurePosix")),
        *(f"datetime.{name}" for name in ("date", "datetime", "timedelta")),
        "numpy.dtype",
        "collections.defaultdict",
        "collections.deque",
    ]
)


class _CalledError(Exception):
    """A pickle calls a function that is not in `_REAL`."""


class _Uncalled(type):
    """Metaclass of placeholders: calling one is an error, except for `_VALUES`."""

    path: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.path not in _VALUES:
            raise _CalledError(cls.path)
        return super().__call__(*args, **kwargs)


class Placeholder(metaclass=_Uncalled):
    """An object whose class is not loaded: it keeps its values and does nothing.

    Attributes:
        path: Module and name of its class in the file.
        values: Its attributes, or its items if the class is a kind of dictionary.
    """

    path: ClassVar[str] = ""
    values: dict[Any, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        self = object.__new__(cls)
        self.values = {}
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        self.values[key] = value

    def extend(self, items: Any) -> None:
        """Drop the items of a kind of list."""

    append = add = extend


class _Unpickler(pickle._Unpickler):
    """The standard library's reader in Python, with placeholders for all names outside `_REAL`."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    placeholders: dict[str, _Uncalled]  # of one file

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path in _REAL:
            return _REAL[path]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | torch.qscheme):
            return getattr(torch, name)
        if path not in self.placeholders:
            self.placeholders[path] = _Uncalled(name, (Placeholder,), {"path": path})
        return self.placeholders[path]

    def load_build(self) -> None:
        """Give a placeholder its state. Attributes of real objects are dropped: none of them is a weight."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(target, Placeholder) and isinstance(state, Mapping):
            target.values.update(state)

    def load_bytearray8(self) -> None:
        """Read as many bytes as there are; the library's own takes the memory for the stated count first."""
        size = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        self.append(bytearray(self.read(size)))  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def check_utf8(path: Path) -> None:
    """Raise UserError for a path that safetensors cannot read."""
    if printable(str(path)) != str(path):
        raise UserError(f"{path}: its path must be UTF-8, or safetensors cannot read it: choose another name")


def read_checkpoint(path: Path) -> Any:
    """Return the content of a checkpoint file: nested dictionaries of tensors, plain values and placeholders.

    Args:
        path: A safetensors file, or a file of `torch.save`, whose tensors are mapped, so that unused ones cost nothing.

    Raises:
        UserError: The file is missing, cut off, not a checkpoint, calls a function that could run code, or claims to be
            larger than it is.
    """
    return read_with_placeholders(path)[0]


def read_with_placeholders(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return the content of `read_checkpoint`, and the names of the classes of its placeholders."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if start.startswith(_ZIP):
        _check_zip(path, size)
        return _load(path, mmap=True)
    if start.startswith(_PICKLE):  # torch before 1.6
        if tarfile.is_tarfile(path):
            raise UserError(f"{path}: refused: a tar archive; torch would unpack it")
        return _load(path, mmap=False)
    if start[8:9] == b"{":
        return read_safetensors(path), ()
    if start.startswith(b"version https://"):
        raise UserError(f"{path}: a pointer of git-lfs, not the file itself; fetch it with 'git lfs pull'")
    raise UserError(f"{path}: not a checkpoint: neither safetensors nor a file that torch saved")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        UserError: It is missing, cut off or damaged.
    """
    check_utf8(path)
    try:
        path.open("rb").close()  # safetensors calls a file without permission missing
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or cut off ({_short(error)})") from error


def _check_zip(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged or cut off ({_short(error)})") from error
    structure = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(structure) != 1 or any("/code/" in entry.filename for entry in entries):
        raise UserError(f"{path}: a zip archive, but not one that torch.save wrote")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{path}: refused: it is compressed, and files of torch never are")
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise UserError(f"{path}: refused: {size:,} bytes claim to hold {claimed:,}")
    if structure[0].file_size > _MOST_STRUCTURE:
        raise UserError(f"{path}: refused: {structure[0].file_size:,} bytes of structure without numbers")


def _load(path: Path, mmap: bool) -> tuple[Any, tuple[str, ...]]:
    placeholders: dict[str, _Uncalled] = {}
    reader = type("Reader", (_Unpickler,), {"placeholders": placeholders})
    module = types.SimpleNamespace(
        __name__="vavae", Unpickler=reader, load=lambda file, **options: reader(file, **options).load()
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old storage classes
            # torch's own list of allowed names has no placeholders; `_Unpickler` is stricter than that list.
            content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=module, mmap=mmap)
    except _CalledError as error:
        raise UserError(
            f"{path}: refused: its pickle calls {error}, which could run code; only tensors and plain values "
            "are read (if you trust the file, save its tensors alone, with safetensors)"
        ) from error
    except Exception as error:  # torch raises nearly every kind on a malformed file
        raise UserError(f"{path}: damaged or cut off ({_short(error)})") from error
    return content, tuple(sorted(placeholders))


def _short(error: BaseException) -> str:
    """Return the beginning of an error in one line."""
    text = one_line(error)
    return text if len(text) <= 160 else f"{text[:160]}…"


def check_tensors(tensors: Mapping[str, Any], source: str | Path) -> None:
    """Check that every value is a plain tensor of floats.

    Raises:
        UserError: Names the first that is another kind of value, has another type of numbers, or claims to be larger
            than its data.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
            kind = type(value).__name__ if not isinstance(value, Tensor) else f"tensor ({value.layout}, {value.device})"
            raise UserError(f"{source}: {name} is not a plain tensor but a {kind}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(
                f"{source}: refused: {name} claims {value.numel():,} numbers, the file holds "
                f"{value.untyped_storage().nbytes() // value.element_size():,} of them"
            )
        if value.dtype not in WEIGHT_TYPES:
            dtype = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{source}: {name} holds {dtype}, not weights; quantized files cannot be read, use the file in "
                "float32, float16 or bfloat16"
            )


def check_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that all numbers are finite.

    Raises:
        UserError: Names the first tensor with NaN or infinity.
    """
    for name, value in tensors.items():
        # One pass without a copy: the sum of finite float32 numbers is finite in float64.
        if not bool(value.sum(dtype=torch.float64).isfinite()):
            raise UserError(f"{source}: {name} holds NaN or infinity")
