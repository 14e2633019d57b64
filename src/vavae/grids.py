"""Grids of features, resampled."""

import torch.nn.functional as F
from torch import Tensor


def resample_grid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring features (B, D, h, w) to `size`, each axis on its own terms.

    Down by whole factors: the mean of each cell. Down by others: bilinear with antialiasing. Up: bilinear (half-pixel
    centres). Every way keeps a constant grid constant.
    """
    height, width = grid.shape[-2:]
    if (height, width) == tuple(size):
        return grid
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(grid, (height // size[0], width // size[1]))
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False, antialias=True)
