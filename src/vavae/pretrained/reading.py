"""Reading checkpoint files of others: safetensors, and torch's files without ever running what they say.

A torch file is a pickle, and a pickle is a program. It is looked at before it is loaded (which functions it names,
whether its parts are as large as they claim), and then loaded by torch's reader for weights, which only builds
tensors and plain values.
"""

import pickletools
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vavae.errors import UserError, one_line

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# The structure of a checkpoint without its numbers; those of the largest published models take under 1 MB.
_MOST_STRUCTURE = 64 * 2**20
# Modules a checkpoint's pickle may name; torch's reader then decides name by name.
_MODULES = frozenset({"torch", "collections", "argparse", "_codecs"})


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint file holds: nested dictionaries of tensors and plain values.

    Args:
        path: A safetensors file, or a file that `torch.save` wrote. Tensors of the latter are mapped, not read,
            so that parts nobody asks for cost nothing.

    Raises:
        UserError: One line that names the file: it is missing, cut off, no checkpoint, would run code, or claims
            to be larger than it is.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if start.startswith(_ZIP):
        return _read_zip(path, size)
    if start.startswith(_PICKLE):
        return _read_legacy(path, size)
    if start[8:9] == b"{":
        return read_safetensors(path)
    if start.startswith(b"version https://"):
        raise UserError(f"{path}: a pointer of git-lfs, not the file itself; fetch it with 'git lfs pull'")
    raise UserError(f"{path}: not a checkpoint: neither safetensors nor a file that torch saved")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        UserError: It is missing, cut off or damaged.
    """
    try:
        path.open("rb").close()  # safetensors calls a file that may not be read one that is not there
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or cut off ({_short(error)})") from error


def _read_zip(path: Path, size: int) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            structure = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(structure) != 1 or any("/code/" in entry.filename for entry in entries):
                raise UserError(f"{path}: a zip archive, but not one that torch.save wrote")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UserError(f"{path}: refused: it is compressed, which torch's files never are")
            claimed = sum(entry.file_size for entry in entries)
            if claimed > size:
                raise UserError(f"{path}: refused: {size:,} bytes claim to hold {claimed:,}")
            if structure[0].file_size > _MOST_STRUCTURE:
                raise UserError(f"{path}: refused: {structure[0].file_size:,} bytes of structure without numbers")
            with archive.open(structure[0]) as file:
                _refuse_code(path, _named_functions(file))
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged or cut off ({_short(error)})") from error
    return _load(path, mmap=True)


def _read_legacy(path: Path, size: int) -> Any:
    """Files of torch before 1.6: five pickles, then the numbers."""
    try:
        with path.open("rb") as file:
            _refuse_code(
                path, (name for _ in range(5) for name in _named_functions(file, most=min(size, _MOST_STRUCTURE)))
            )
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged or cut off ({_short(error)})") from error
    return _load(path, mmap=False)


def _named_functions(file: IO[bytes], most: int = _MOST_STRUCTURE) -> Iterable[str]:
    """Every class or function that a pickle names, as `module.name`."""
    start = file.tell()
    texts: list[str] = []
    for opcode, argument, position in pickletools.genops(file):
        if position is not None and position - start > most:
            raise ValueError("its structure has no end")
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif opcode.name.startswith("EXT"):
            yield "copyreg.extension"
        elif isinstance(argument, str):
            texts.append(argument)


def _refuse_code(path: Path, names: Iterable[str]) -> None:
    for name in names:
        if name.split(".")[0] not in _MODULES:
            raise UserError(
                f"{path}: refused: its pickle calls {name}, which could run code; only tensors and plain values "
                "are read (where you trust the file, save its tensors alone, with safetensors)"
            )


def _load(path: Path, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old storage classes, which are none of the user's doing
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises nearly every kind on a malformed file
        raise UserError(f"{path}: refused or damaged ({_short(error)})") from error


def _short(error: BaseException, most: int = 160) -> str:
    """The informative part of an error, in one line."""
    text = one_line(error)
    marker = "WeightsUnpickler error: "
    if marker in text:
        text = text[text.index(marker) + len(marker) :]
    return text[:most] + "…" if len(text) > most else text


def check_tensors(tensors: Mapping[str, Any], source: str | Path) -> None:
    """Check that every value is an ordinary tensor of floats.

    Raises:
        UserError: Names the first that is not: another kind of value, numbers that are no floats, or a tensor that
            claims to be larger than what the file holds of it.
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
        if not value.is_floating_point():
            raise UserError(f"{source}: {name} holds {str(value.dtype).removeprefix('torch.')}, not weights")


def check_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that there is no NaN and no infinity.

    Raises:
        UserError: Names the first tensor with one.
    """
    for name, value in tensors.items():
        # One pass without a copy: in float64 finite float32 numbers cannot add up to infinity.
        if not bool(value.sum(dtype=torch.float64).isfinite()):
            raise UserError(f"{source}: {name} holds NaN or infinity")
