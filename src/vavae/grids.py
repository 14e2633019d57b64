"""Grids of features and tokens: resampling, and the sine-cosine embedding of positions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.errors import UserError


def resample_grid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample features (B, D, h, w) to `size`: (B, D, *size).

    Down by whole factors on both axes is the mean of each cell. Everything else is bilinear with half-pixel centers,
    with antialiasing on axes that shrink. A constant grid stays constant.

    Raises:
        UserError: The grid has another shape, or `size` is not positive.
    """
    if grid.ndim != 4:
        raise UserError(f"features must have shape (B, D, h, w), got {tuple(grid.shape)}")
    if min(size) < 1:
        raise UserError(f"size must be at least 1 x 1, got {size[0]} x {size[1]}")
    height, width = grid.shape[-2:]
    if (height, width) == tuple(size):
        return grid
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(grid, (height // size[0], width // size[1]))
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False, antialias=True)


def sincos_embedding(width: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the fixed position embedding of a grid: (h·w, width), dtype of `rows`.

    The first width/2 channels encode the column, the last width/2 the row. Each half is width/4 sines and then
    width/4 cosines of the coordinate times 10000^(-k / (width/4)).

    Args:
        width: Channels of a token, a multiple of 4.
        rows: (h,) coordinates.
        columns: (w,) coordinates.
    """
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter, dtype=rows.dtype, device=rows.device) / quarter)

    def encode(coordinates: Tensor) -> Tensor:
        angles = coordinates[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=1)

    shape = (len(rows), len(columns), width // 2)
    # two of (h, w, width/2) -> (h, w, width)
    grid = torch.cat((encode(columns)[None].expand(shape), encode(rows)[:, None].expand(shape)), dim=2)
    return grid.flatten(0, 1)
