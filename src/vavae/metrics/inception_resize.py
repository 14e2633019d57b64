"""Resizing and scaling of pixels for FID Inception: one function per program whose numbers are published.

They differ in the interpolation and in the last bits of the scaling. Distances with different resizes cannot be
compared.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.device import float64_device

Resize = Literal["tensorflow", "pytorch-fid", "clean"]
SIDE = 299


def tensorflow_input(pixels: Tensor) -> Tensor:
    """Resize as the graph of 2015, ADM's evaluator and StyleGAN: `resize_as_tensorflow`, then (x - 128) / 128."""
    return (resize_as_tensorflow(pixels.permute(0, 3, 1, 2).float(), SIDE) - 128.0) / 128.0


def pytorch_fid_input(pixels: Tensor) -> Tensor:
    """Resize as pytorch-fid: bilinear between pixel centers without anti-aliasing, then 2 x - 1 of [0, 1]."""
    images = pixels.permute(0, 3, 1, 2).float() / 255.0
    return 2.0 * F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1.0


def clean_input(pixels: Tensor) -> Tensor:
    """Resize as clean-fid (arXiv 2104.11222): Pillow's anti-aliased bicubic on floats, then (x - 128) / 128.

    Values that the cubic overshoots at edges are clipped to [0, 255], as since its version 0.1.35.
    """
    import numpy as np
    from PIL import Image

    resized = np.empty((len(pixels), 3, SIDE, SIDE), dtype=np.float32)
    for target, image in zip(resized, pixels.cpu().numpy().astype(np.float32), strict=True):
        for channel in range(3):
            plane = Image.fromarray(image[..., channel])
            target[channel] = np.asarray(plane.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (torch.from_numpy(resized.clip(0.0, 255.0)).to(pixels.device) - 128.0) / 128.0


RESIZES: dict[Resize, Callable[[Tensor], Tensor]] = {
    "tensorflow": tensorflow_input,
    "pytorch-fid": pytorch_fid_input,
    "clean": clean_input,
}
# Names of the resizes in the hashes of stored features. A name must change whenever the numbers do.
RESIZE_VERSIONS: dict[Resize, str] = {
    "tensorflow": "tensorflow",
    "pytorch-fid": "pytorch-fid",
    "clean": "clean, cut off at 0 and 255",
}


def resize_as_tensorflow(images: Tensor, side: int) -> Tensor:
    """Resize (B, C, H, W) -> (B, C, side, side), bilinear as in the graph that defined FID.

    Target pixel i reads source position i · H / side, without half-pixel centers and without anti-aliasing. Other
    resizes change the distance.
    """

    def axis(length: int) -> tuple[Tensor, Tensor, Tensor]:
        positions = torch.arange(side, dtype=torch.float64, device=float64_device(images.device)) * (length / side)
        low = positions.floor()
        share = (positions - low).to(images)
        index = low.long().to(images.device)
        return index, (index + 1).clamp(max=length - 1), share

    if images.shape[2:] == (side, side):
        return images
    top, bottom, down = axis(images.shape[2])
    left, right, across = axis(images.shape[3])
    rows = torch.lerp(images[:, :, top], images[:, :, bottom], down[:, None])
    return torch.lerp(rows[..., left], rows[..., right], across)
