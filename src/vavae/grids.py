"""Grids, tokens and patches: one into the other, resampling, and the sine-cosine embedding of positions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.errors import UserError


def to_grid(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Arrange tokens (B, h·w, D), row by row, as a grid (B, D, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def to_tokens(grid: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h·w, D), the inverse of `to_grid`."""
    return grid.flatten(2).transpose(1, 2)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, C, h·p, w·p) -> (B, h·w, p·p·C): patches row by row; in a patch row, column, channel."""
    batch, channels, height, width = images.shape
    p = patch_size
    grid = images.reshape(batch, channels, height // p, p, width // p, p)  # (B, C, h, p, w, p)
    # (B, h, w, p, p, C) -> (B, h·w, p·p·C)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // p) * (width // p), p * p * channels)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """(B, h·w, p·p·C) -> (B, C, h·p, w·p), the inverse of `patchify`."""
    p, (h, w) = patch_size, grid
    batch, channels = len(patches), patches.shape[-1] // (p * p)
    squares = patches.reshape(batch, h, w, p, p, channels)  # (B, h·w, p·p·C) -> (B, h, w, p, p, C)
    # (B, C, h, p, w, p) -> (B, C, h·p, w·p)
    return squares.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, h * p, w * p)


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
