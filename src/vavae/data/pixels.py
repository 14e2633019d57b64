"""Pixels (N, H, W, 3) uint8 as images (N, 3, H, W) float32 in [-1, 1], and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(pixels: Tensor | np.ndarray | Image.Image) -> Tensor:
    """Convert pixels (..., H, W, 3) uint8 or an RGB picture to images (..., 3, H, W) in [-1, 1]: x / 127.5 - 1."""
    tensor = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    if tensor.dtype != torch.uint8 or tensor.shape[-1] != 3:
        raise ValueError(f"pixels must be (..., H, W, 3) uint8, got {tuple(tensor.shape)} {tensor.dtype}")
    return tensor.movedim(-1, -3).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def to_uint8(images: Tensor) -> Tensor:
    """Convert images (..., 3, H, W) in [-1, 1] to pixels (..., H, W, 3) uint8: clamp(127.5 x + 128, 0, 255), truncated.

    The published code stores samples in this way. It inverts `to_tensor`.
    """
    if images.ndim < 3 or images.shape[-3] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be (..., 3, H, W) in [-1, 1], got {tuple(images.shape)} {images.dtype}")
    scaled = (images.detach().to(torch.float32) * 127.5 + 128.0).clamp(0.0, 255.0)
    return scaled.to(torch.uint8).movedim(-3, -1).contiguous()
