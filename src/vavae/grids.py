"""Resampling of feature grids."""

import torch.nn.functional as F
from torch import Tensor


def resample_grid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample features (B, D, h, w) to (B, D, *size).

    Down by whole factors: the mean of each cell. Otherwise: bilinear with half-pixel centers, antialiased where it
    reduces. A constant grid stays constant.
    """
    height, width = grid.shape[-2:]
    if (height, width) == tuple(size):
        return grid
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(grid, (height // size[0], width // size[1]))
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False, antialias=True)
