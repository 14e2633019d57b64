"""Positions of tokens: a fixed sine-cosine embedding added to tokens, and a rotation of queries and keys.

Both describe a grid of h rows and w columns, flattened row by row. Both are functions of real-valued coordinates,
so a network trained on one grid can run on another. There are two ways to place a new grid:

- "recompute": token (i, j) has the coordinates (i, j), as on the trained grid. Distances between neighbors stay as
  trained; a larger grid reaches coordinates that training never used. Use it to train on several grids, or on a new
  one.
- "interpolate": coordinates are scaled so that the first and last row (column) of the new grid fall on the first and
  last row (column) of the trained one. No coordinate is outside the trained range; neighbors come closer. Use it to
  run weights on a grid they were not trained on.

On the trained grid both give the same numbers, bit for bit.
"""

import math
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vavae.grids import sincos_embedding

Positions = Literal["recompute", "interpolate"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)
_BASE = 10000.0


def axis_coordinates(size: int, trained: int, positions: Positions, device: torch.device | str = "cpu") -> Tensor:
    """Return coordinates of `size` rows (or columns) for a network trained on `trained` of them: (size,) float64."""
    index = torch.arange(size, dtype=torch.float64, device=device)
    if positions == "recompute":
        return index
    if size == 1:
        return index + (trained - 1) / 2
    return index * (trained - 1) / (size - 1)


def _coordinates(
    grid: tuple[int, int], trained: tuple[int, int], positions: Positions, device: torch.device
) -> tuple[Tensor, Tensor]:
    rows = axis_coordinates(grid[0], trained[0], positions, device)
    return rows, axis_coordinates(grid[1], trained[1], positions, device)


def rotary_tables(head_dim: int, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the axial rotary embedding: two tables (h·w, head_dim).

    Adjacent channels form pairs, and each pair is rotated by one angle, so every entry appears twice. Pairs of the
    first half of a head rotate with the row, pairs of the second half with the column. Pair k rotates by the
    coordinate times 10000^(-2k / (head_dim/2)) (RoFormer, arXiv 2104.09864, once per axis).

    Args:
        head_dim: Channels of an attention head, a multiple of 4.
        rows: (h,) coordinates.
        columns: (w,) coordinates.
    """
    half = head_dim // 2
    frequencies = _BASE ** -(torch.arange(0, half, 2, dtype=rows.dtype, device=rows.device) / half)
    frequencies = frequencies.repeat_interleave(2)
    by_row, by_column = rows[:, None] * frequencies, columns[:, None] * frequencies
    shape = (len(rows), len(columns), half)

    def over_grid(row_values: Tensor, column_values: Tensor) -> Tensor:
        halves = (row_values[:, None].expand(shape), column_values[None].expand(shape))
        return torch.cat(halves, dim=2).flatten(0, 1)  # (h, w, head_dim) -> (h·w, head_dim)

    return over_grid(by_row.cos(), by_column.cos()), over_grid(by_row.sin(), by_column.sin())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each adjacent pair (a, b) of the last dimension to (a·cos - b·sin, b·cos + a·sin).

    Args:
        x: (..., T, head_dim) queries or keys.
        cos: (T, head_dim) from `rotary_tables`.
        sin: (T, head_dim) from `rotary_tables`.
    """
    # (..., T, head_dim) -> (..., T, head_dim/2, 2) -> two of (..., T, head_dim/2)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    # two of (..., T, head_dim/2) -> (..., T, head_dim/2, 2) -> (..., T, head_dim)
    return x * cos + torch.stack((-b, a), dim=-1).flatten(-2) * sin


def embedding_of_grid(
    width: int, grid: tuple[int, int], trained: tuple[int, int], positions: Positions, device: torch.device
) -> Tensor:
    """Return the position embedding of `grid` for a network trained on the grid `trained`: (1, h·w, width) float32."""
    rows, columns = _coordinates(grid, trained, positions, device)
    return sincos_embedding(width, rows, columns)[None].float()


def rotary_of_grid(
    head_dim: int, grid: tuple[int, int], trained: tuple[int, int], positions: Positions, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the rotary tables of `grid` for a network trained on the grid `trained`: two (h·w, head_dim) float32."""
    cos, sin = rotary_tables(head_dim, *_coordinates(grid, trained, positions, device))
    return cos.float(), sin.float()


@lru_cache(maxsize=16)
def tables_of_grid(
    width: int,
    head_dim: int | None,
    grid: tuple[int, int],
    trained: tuple[int, int],
    positions: Positions,
    device: torch.device,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Return embedding and rotary tables of a grid, computed once on the CPU and kept on `device`.

    `head_dim` None means no rotation.
    """
    cpu = torch.device("cpu")
    # Training cannot use tensors made under inference mode, and these outlive the call.
    with torch.inference_mode(False):
        embedding = embedding_of_grid(width, grid, trained, positions, cpu).to(device)
        if head_dim is None:
            return embedding, None
        cos, sin = rotary_of_grid(head_dim, grid, trained, positions, cpu)
        return embedding, (cos.to(device), sin.to(device))


class RotaryEmbedding(nn.Module):
    """Rotary tables of the trained grid as persistent buffers with the published names."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, grid: tuple[int, int], head_dim: int) -> None:
        super().__init__()
        tokens = math.prod(grid)
        self.grid = grid
        self.head_dim = head_dim
        self.register_buffer("freqs_cos", torch.empty(tokens, head_dim))
        self.register_buffer("freqs_sin", torch.empty(tokens, head_dim))

    @torch.no_grad()
    def reset(self) -> None:
        """Fill the tables; needed after `to_empty`."""
        cos, sin = rotary_of_grid(self.head_dim, self.grid, self.grid, "recompute", torch.device("cpu"))
        self.freqs_cos.copy_(cos)
        self.freqs_sin.copy_(sin)
