"""Resample grids of features."""

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
