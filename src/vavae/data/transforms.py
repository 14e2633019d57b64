"""From image files to tensors and back.

Pixels are (N, H, W, 3) uint8, as Pillow, numpy and the ADM evaluator have them; images are (N, 3, H, W) float32 in
[-1, 1], as networks take them. `to_tensor` and `to_uint8` are the only two ways between the two.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vavae import counter
from vavae.data.sources import ArrayImages, ImageSource


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The ADM centre crop (arXiv 2105.05233), used for encoding and evaluation: an image of size x size pixels.

    Halves the image by box averaging while its short side is at least twice `size`, then brings the short side
    to `size` with a bicubic filter, and cuts the middle out.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def published_random_crop(
    image: Image.Image, size: int, seed: int, position: int, antialias: bool = False
) -> Image.Image:
    """The crop of published tokenizer training: short side to `size` bilinearly, then a random size x size window.

    Args:
        image: RGB image.
        size: Side of the crop in pixels.
        seed: Seed of the run.
        position: Position in the data order; the window is a function of (seed, position) only.
        antialias: Average over the source pixels each target pixel covers. The published resize does not, so
            large photographs are aliased; use it to repeat the published training.
    """
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if antialias:
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
    elif (width, height) == image.size:
        resized = image
    else:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
        resized = Image.fromarray(pixels[0].round().to(torch.uint8).permute(1, 2, 0).numpy())
    across, down = counter.uniform(seed, "random crop", [position], (2,))[0].tolist()
    left, top = int(across * (width - size + 1)), int(down * (height - size + 1))
    return resized.crop((left, top, left + size, top + size))


def to_tensor(pixels: Tensor | np.ndarray | Image.Image) -> Tensor:
    """Pixels (..., H, W, 3) uint8, or an RGB picture -> images (..., 3, H, W) float32 in [-1, 1]: x / 127.5 - 1."""
    tensor = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    if tensor.dtype != torch.uint8 or tensor.shape[-1] != 3:
        raise ValueError(f"pixels must be (..., H, W, 3) uint8, not {tuple(tensor.shape)} {tensor.dtype}")
    return tensor.movedim(-1, -3).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def to_uint8(images: Tensor) -> Tensor:
    """Images (..., 3, H, W) in [-1, 1] -> pixels (..., H, W, 3) uint8, as the published code stores samples.

    clamp(127.5 x + 128, 0, 255), truncated. This inverts `to_tensor`, and rounds halves up elsewhere.
    """
    if images.ndim < 3 or images.shape[-3] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be (..., 3, H, W) in [-1, 1], not {tuple(images.shape)} {images.dtype}")
    scaled = (images.detach().to(torch.float32) * 127.5 + 128.0).clamp(0.0, 255.0)
    return scaled.to(torch.uint8).movedim(-3, -1).contiguous()


def flip_horizontally(images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mirror images (B, C, H, W) left to right: all of them, or those where `mask` (B,) is true."""
    flipped = images.flip(-1)
    return flipped if mask is None else torch.where(mask.view(-1, 1, 1, 1), flipped, images)


def load_pixels(source: ImageSource, indices: Tensor | Sequence[int], size: int) -> Tensor:
    """Centre-cropped images of `source` as pixels, (len(indices), size, size, 3) uint8."""
    wanted = [int(index) for index in indices]
    if isinstance(source, ArrayImages) and source.pixels.shape[1:3] == (size, size):
        return torch.from_numpy(source.pixels[wanted])
    pixels = torch.empty((len(wanted), size, size, 3), dtype=torch.uint8)
    for row, index in enumerate(wanted):
        pixels[row] = torch.from_numpy(np.array(center_crop(source.image(index), size)))
    return pixels


def load_images(source: ImageSource, indices: Tensor | Sequence[int], size: int) -> Tensor:
    """Centre-cropped images of `source`, (len(indices), 3, size, size) float32 in [-1, 1]."""
    return to_tensor(load_pixels(source, indices, size))


class InMemoryImages(ArrayImages):
    """All images of a source, centre-cropped and decoded once: for sets of up to some ten thousand small images.

    Args:
        source: The images.
        size: Side in pixels.
        workers: Number of decoding threads.
    """

    def __init__(self, source: ImageSource, size: int, workers: int = 2) -> None:
        chunks = torch.arange(len(source)).split(64)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            parts = list(pool.map(lambda chunk: load_pixels(source, chunk, size), chunks))
        labels = [source.label(i) for i in range(len(source))]
        super().__init__(torch.cat(parts).numpy(), labels, source.class_names, source.name)
