"""Position tables: closed forms, other grids, and rotation against complex numbers in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vavae.grids import sincos_embedding
from vavae.transformer.layers import Attention
from vavae.transformer.positions import (
    POSITIONS,
    axis_coordinates,
    embedding_of_grid,
    rotary_of_grid,
    rotary_tables,
    rotate,
    tables_of_grid,
)

CPU = torch.device("cpu")
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def complex_rotation(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(T, head_dim) float64, row-major tokens: pair k of a half is multiplied by exp(i·coordinate·frequency)."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[:, 0::2], x[:, 1::2])
    out = torch.empty_like(pairs)
    for token in range(len(x)):
        row, column = rows[token // len(columns)].item(), columns[token % len(columns)].item()
        for pair in range(half):
            coordinate, k = (row, pair) if pair < half // 2 else (column, pair - half // 2)
            angle = coordinate * 10000 ** (-2 * k / half)
            out[token, pair] = pairs[token, pair] * complex(math.cos(angle), math.sin(angle))
    return torch.view_as_real(out).flatten(1)


@given(grid=grids, quarter=st.integers(1, 5), seed=st.integers(0, 99))
def test_rotation_is_complex_multiplication(grid: tuple[int, int], quarter: int, seed: int) -> None:
    rows, columns = (torch.arange(size, dtype=torch.float64) * 1.7 for size in grid)
    x = torch.randn(math.prod(grid), 4 * quarter, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rotated = rotate(x, *rotary_tables(4 * quarter, rows, columns))
    torch.testing.assert_close(rotated, complex_rotation(x, rows, columns), rtol=1e-12, atol=1e-12)


def test_attention_depends_on_relative_positions_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 12, 16, dtype=torch.float64, generator=generator)
    rows, columns = torch.arange(3, dtype=torch.float64), torch.arange(4, dtype=torch.float64)
    here = rotary_tables(16, rows, columns)
    moved = rotary_tables(16, rows + 5, columns - 11)
    scores = rotate(q, *here) @ rotate(k, *here).T
    torch.testing.assert_close(rotate(q, *moved) @ rotate(k, *moved).T, scores)
    assert not torch.allclose(scores, q @ k.T)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_against_a_float64_loop(qk_norm: bool) -> None:
    torch.manual_seed(0)
    heads, head_dim, grid = 2, 8, (2, 3)
    attention = Attention(heads * head_dim, heads, qk_norm=qk_norm, rmsnorm=True).double()
    x = torch.randn(1, 6, heads * head_dim, dtype=torch.float64)
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in grid)
    tables = rotary_tables(head_dim, rows, columns)
    if qk_norm:
        torch.nn.init.uniform_(attention.q_norm.weight, 0.5, 1.5)

    def normed(value: Tensor, norm: torch.nn.Module) -> Tensor:
        if not qk_norm:
            return value
        return value / (value.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    qkv = (x[0] @ attention.qkv.weight.T + attention.qkv.bias).view(6, 3, heads, head_dim)
    outputs = []
    for head in range(heads):
        q = complex_rotation(normed(qkv[:, 0, head], attention.q_norm).detach(), rows, columns)
        k = complex_rotation(normed(qkv[:, 1, head], attention.k_norm).detach(), rows, columns)
        outputs.append(torch.softmax(q @ k.T / math.sqrt(head_dim), dim=-1) @ qkv[:, 2, head])
    expected = torch.cat(outputs, dim=1) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(x, tables)[0], expected, rtol=1e-9, atol=1e-9)


def test_published_rows_of_the_xl_tables() -> None:
    cos, _ = rotary_of_grid(72, (16, 16), (16, 16), "recompute", CPU)
    assert torch.equal(cos[1, :36], torch.ones(36))
    assert cos[1, 36:38].tolist() == pytest.approx([0.5403] * 2, abs=5e-5)
    assert cos[16, 0:4].tolist() == pytest.approx([0.5403, 0.5403, 0.8256, 0.8256], abs=5e-5)


def test_embedding_is_column_first_then_row() -> None:
    rows, columns = torch.tensor([0.0, 1.5]).double(), torch.tensor([0.0, 1.0, 2.0]).double()
    embedding = sincos_embedding(8, rows, columns).view(2, 3, 8)
    angles = torch.tensor([1.0, 0.01]).double()
    expected = torch.cat(((2 * angles).sin(), (2 * angles).cos(), (1.5 * angles).sin(), (1.5 * angles).cos()))
    torch.testing.assert_close(embedding[1, 2], expected)


@given(grid=grids)
def test_both_modes_agree_on_the_trained_grid(grid: tuple[int, int]) -> None:
    first, second = (embedding_of_grid(8, grid, grid, mode, CPU) for mode in POSITIONS)
    assert torch.equal(first, second)
    for a, b in zip(*(rotary_of_grid(8, grid, grid, mode, CPU) for mode in POSITIONS), strict=True):
        assert torch.equal(a, b)


@given(size=st.integers(2, 40), trained=st.integers(2, 40))
def test_interpolation_covers_the_trained_range(size: int, trained: int) -> None:
    coordinates = axis_coordinates(size, trained, "interpolate")
    assert coordinates[0] == 0
    assert coordinates[-1] == trained - 1
    steps = coordinates.diff()
    torch.testing.assert_close(steps, torch.full_like(steps, (trained - 1) / (size - 1)))


def test_single_row_is_placed_in_the_middle() -> None:
    assert axis_coordinates(1, 5, "interpolate").tolist() == [2.0]
    assert axis_coordinates(1, 1, "interpolate").tolist() == [0.0]


def test_recomputed_grid_extends_the_trained_one() -> None:
    large = embedding_of_grid(16, (6, 5), (3, 4), "recompute", CPU).view(6, 5, 16)
    small = embedding_of_grid(16, (3, 4), (3, 4), "recompute", CPU).view(3, 4, 16)
    assert torch.equal(large[:3, :4], small)


def test_tables_are_computed_once_per_grid() -> None:
    arguments = (8, 4, (3, 7), (2, 2), "recompute", CPU)
    first, second = tables_of_grid(*arguments), tables_of_grid(*arguments)
    assert first[0] is second[0]
    assert first[1] is second[1]
