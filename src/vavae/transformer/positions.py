"""Where a token stands: a fixed sine-cosine embedding added to tokens, and a rotation of queries and keys.

Both describe a grid of h rows and w columns, flattened row by row, and both are functions of real-valued
coordinates, so a network trained on one grid can run on another. Two ways to place a new grid:

- "recompute": token (i, j) has the coordinates (i, j), the same formula as on the trained grid. Distances
  between neighbours stay as trained; a larger grid reaches coordinates never seen in training. Right for
  training on several grids, or on a new one.
- "interpolate": coordinates are scaled so that the first and last row (column) of the new grid fall on the
  first and last row (column) of the trained one. No coordinate is new, neighbours come closer. Right for
  running weights on a grid they were not trained on.

On the trained grid both give the same numbers, bit for bit.
"""

import math
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Positions = Literal["recompute", "interpolate"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)
_BASE = 10000.0


def axis_coordinates(size: int, trained: int, positions: Positions, device: torch.device | str = "cpu") -> Tensor:
    """Coordinates of `size` rows (or columns) where the network was trained on `trained`: (size,) float64."""
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


def sincos_embedding(width: int, rows: Tensor, columns: Tensor) -> Tensor:
    """The fixed position embedding of a grid: (len(rows)·len(columns), width), dtype of `rows`.

    The first width/2 channels encode the column, the last width/2 the row; each half holds width/4 sines and
    then width/4 cosines of the coordinate times 10000^(-k / (width/4)).

    Args:
        width: Channels of a token, divisible by 4.
        rows: (h,) coordinates.
        columns: (w,) coordinates.
    """
    quarter = width // 4
    frequencies = _BASE ** -(torch.arange(quarter, dtype=rows.dtype, device=rows.device) / quarter)

    def encode(coordinates: Tensor) -> Tensor:
        angles = coordinates[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=1)

    shape = (len(rows), len(columns), width // 2)
    grid = torch.cat((encode(columns)[None].expand(shape), encode(rows)[:, None].expand(shape)), dim=2)
    return grid.flatten(0, 1)


def rotary_tables(head_dim: int, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the axial rotary embedding: two (len(rows)·len(columns), head_dim) tables.

    Channels come in adjacent pairs, each rotated by one angle (so every entry stands twice). The pairs of the
    first half of a head turn with the row, those of the second half with the column; pair k turns by the
    coordinate times 10000^(-2k / (head_dim/2)) (RoFormer, arXiv 2104.09864, once per axis).

    Args:
        head_dim: Channels of an attention head, divisible by 4.
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
        return torch.cat(halves, dim=2).flatten(0, 1)

    return over_grid(by_row.cos(), by_column.cos()), over_grid(by_row.sin(), by_column.sin())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each adjacent pair (a, b) of the last dimension into (a·cos - b·sin, b·cos + a·sin).

    Args:
        x: (..., T, head_dim) queries or keys.
        cos: (T, head_dim), as `rotary_tables` lays it out.
        sin: (T, head_dim).
    """
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-b, a), dim=-1).flatten(-2) * sin


def embedding_of_grid(
    width: int, grid: tuple[int, int], trained: tuple[int, int], positions: Positions, device: torch.device
) -> Tensor:
    """The position embedding of a grid of a network trained on another: (1, h·w, width), float32."""
    rows, columns = _coordinates(grid, trained, positions, device)
    return sincos_embedding(width, rows, columns)[None].float()


def rotary_of_grid(
    head_dim: int, grid: tuple[int, int], trained: tuple[int, int], positions: Positions, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The rotary tables of a grid of a network trained on another: two (h·w, head_dim), float32."""
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
    """Both of the above, computed on the CPU once per grid and kept on `device`; head_dim None for no rotation."""
    cpu = torch.device("cpu")
    # Tables made under inference mode could never be used in training, and these outlive the call.
    with torch.inference_mode(False):
        embedding = embedding_of_grid(width, grid, trained, positions, cpu).to(device)
        if head_dim is None:
            return embedding, None
        cos, sin = rotary_of_grid(head_dim, grid, trained, positions, cpu)
        return embedding, (cos.to(device), sin.to(device))


class RotaryEmbedding(nn.Module):
    """Holds the rotary tables of the trained grid under their published names, as persistent buffers."""

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
        """Fill the tables."""
        cos, sin = rotary_of_grid(self.head_dim, self.grid, self.grid, "recompute", torch.device("cpu"))
        self.freqs_cos.copy_(cos)
        self.freqs_sin.copy_(sin)
