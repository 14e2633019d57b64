"""Read the arrays and the nodes of an ONNX file.

The file is a protocol buffer; the numbers of its fields are the ones of onnx.proto.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Types of arrays: float and int64, the ones of weights and shapes.
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 7: np.dtype("<i8")}
_FIXED = {1: 8, 5: 4}  # wire type -> bytes


@dataclass(frozen=True)
class Node:
    """A node of the graph."""

    name: str
    kind: str
    inputs: tuple[str, ...]


def read_onnx(path: Path) -> tuple[dict[str, NDArray[np.generic]], list[Node]]:
    """Return the arrays of a file by name, and its nodes."""
    model = memoryview(path.read_bytes())
    graph = next(value for number, value in _fields(model) if number == 7)
    parts = [(number, list(_fields(value))) for number, value in _fields(graph) if number in (1, 5)]
    nodes = [
        Node(_text(fields, 3), _text(fields, 4), tuple(str(value, "utf-8") for n, value in fields if n == 1))
        for number, fields in parts
        if number == 1
    ]
    return dict(_array(fields) for number, fields in parts if number == 5), nodes


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the whole number of variable length at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the number of each field, and its value: a whole number, or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at) if key & 7 in (0, 2) else (_FIXED[key & 7], at)
        if key & 7:  # the number was a length
            at += value
            yield key >> 3, message[at - value : at]
        else:
            yield key >> 3, value


def _text(fields: list[tuple[int, Any]], number: int) -> str:
    return "".join(str(value, "utf-8") for n, value in fields if n == number)


def _array(fields: list[tuple[int, Any]]) -> tuple[str, NDArray[np.generic]]:
    """Return the name and the values of a TensorProto whose values are raw bytes."""
    shape = [value for number, value in fields if number == 1]
    dtype = _DTYPES[next(value for number, value in fields if number == 2)]
    raw = next(value for number, value in fields if number == 9)
    return _text(fields, 8), np.frombuffer(raw, dtype).reshape(shape)
