"""Arrays and nodes of a hand-made ONNX file."""

from pathlib import Path

import numpy as np

from vavae.assets.convert.onnx_graph import Node, read_onnx


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, value: int | bytes) -> bytes:
    """Return one field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def test_arrays_and_nodes(tmp_path: Path) -> None:
    weight, shape = np.arange(200, dtype="<f4").reshape(2, 100), np.array([-1, 3], "<i8")
    arrays = field(1, 2) + field(1, 100) + field(2, 1) + field(8, b"w") + field(9, weight.tobytes())
    sizes = field(1, 2) + field(2, 7) + field(8, b"s") + field(9, shape.tobytes())
    fixed = varint(2 << 3 | 5) + b"\0\0\x80?"  # an attribute's float, of fixed size
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(3, b"/mm") + field(4, b"MatMul") + field(5, fixed)
    graph = field(1, node) + field(2, b"graph") + field(5, arrays) + field(5, sizes)
    (tmp_path / "a.onnx").write_bytes(field(1, 8) + field(2, b"pytorch") + field(7, graph) + field(8, b"\x10\x11"))
    found, nodes = read_onnx(tmp_path / "a.onnx")
    assert nodes == [Node("/mm", "MatMul", ("x", "w"))]
    assert found.keys() == {"w", "s"}
    np.testing.assert_array_equal(found["w"], weight)
    np.testing.assert_array_equal(found["s"], shape)
