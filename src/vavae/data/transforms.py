"""Convert image files to tensors and back.

Pixels are (N, H, W, 3) uint8, the form of Pillow, numpy and the ADM evaluator. Images are (N, 3, H, W) float32 in
[-1, 1], the input of networks. `vavae.data.pixels` converts between the two. `as_images` accepts both, and Pillow
images.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vavae import rng
from vavae.config.image_size import Size, as_size, height_width
from vavae.data.loader import loaded_ahead
from vavae.data.pixels import to_tensor
from vavae.data.readable import reading, upright_rgb
from vavae.data.sources import ArrayImages, ImageSource
from vavae.errors import UserError

# Longest side before scaling, in lengths of the crop. Panoramas are shorter, and 32 crops take little memory.
_MOST_CROPS = 32
# Bicubic filters and unclamped decoders exceed [-1, 1] slightly.
_LARGEST = 1.1

Images = Tensor | np.ndarray | Image.Image | Sequence[Tensor | np.ndarray | Image.Image]


def _covering(image: Image.Image, size: Size) -> tuple[int, int]:
    """Return (width, height) of the image after it is scaled to just cover `size`."""
    height, width = height_width(size)
    scale = max(height / image.height, width / image.width)
    return round(image.width * scale), round(image.height * scale)


def _without_far_ends(image: Image.Image, size: Size, across: float = 0.5, down: float = 0.5) -> Image.Image:
    """Cut the ends of an image that is more than 32 times as long as its crop.

    Without this, an image of 1x5000 pixels would be scaled to 256x1,280,000 before it is cropped to 256x256.
    `across` and `down` are the position of the crop, from 0 (left, top) to 1 (right, bottom).
    """
    height, width = height_width(size)
    longest = -(-_MOST_CROPS * image.height * width // height), -(-_MOST_CROPS * image.width * height // width)
    # An even number of pixels is cut, so the middle does not move.
    kept = [side - max(0, side - most) // 2 * 2 for side, most in zip(image.size, longest, strict=True)]
    if kept == list(image.size):
        return image
    left, top = (round((side - keep) * at) for side, keep, at in zip(image.size, kept, (across, down), strict=True))
    return image.crop((left, top, left + kept[0], top + kept[1]))


def center_crop(image: Image.Image, size: Size) -> Image.Image:
    """Return the ADM center crop of an image (arXiv 2105.05233) of `size` in pixels, for encoding and evaluation.

    The image is halved by box averaging while both sides are at least twice as long as those of the crop, then scaled
    with a bicubic filter to just cover `size`. The crop is its middle.
    """
    height, width = height_width(size)
    image = _without_far_ends(image, size)
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    image = image.resize(_covering(image, size), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def published_random_crop(image: Image.Image, size: Size, seed: int, position: int) -> Image.Image:
    """Return the crop of published tokenizer training: scale bilinearly to just cover `size`, take a random window.

    As in the published training, scaling does not average over source pixels, so large photographs are aliased.

    Args:
        image: RGB image.
        size: Size of the crop in pixels.
        seed: Seed of the run.
        position: Position in the data order. The window is a function of (seed, position) only.
    """
    across, down = rng.uniform(seed, "random crop", [position], (2,))[0].tolist()
    image = _without_far_ends(image, size, across, down)
    (width, height), (rows, columns) = _covering(image, size), height_width(size)
    resized = image
    if (width, height) != image.size:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
        resized = Image.fromarray(pixels[0].round().to(torch.uint8).permute(1, 2, 0).numpy())
    left, top = int(across * (width - columns + 1)), int(down * (height - rows + 1))
    return resized.crop((left, top, left + columns, top + rows))


def as_images(value: Images) -> Tensor:
    """Return pictures in any usual form as images (B, 3, H, W) in [-1, 1].

    Args:
        value: One of these, or a list of them of one size: a Pillow image; a numpy array of pixels (H, W, 3) or
            (B, H, W, 3), uint8; a tensor or a numpy array of floats (3, H, W) or (B, 3, H, W) in [-1, 1].

    Raises:
        UserError: Another form, type or range, or numbers that are not finite.
    """
    if isinstance(value, Image.Image):
        with reading("a Pillow image"):
            return to_tensor(upright_rgb(value.copy()))[None]
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return _of_pixels(value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return _of_floats(torch.from_numpy(np.array(value, np.float32)))
    if isinstance(value, Tensor) and value.is_floating_point():
        return _of_floats(value)
    if isinstance(value, list | tuple) and value:
        images = [as_images(one) for one in value]
        sizes = sorted({f"{image.shape[-1]}x{image.shape[-2]}" for image in images})
        if len(sizes) > 1:
            raise UserError(
                f"images: must be of one size, got {', '.join(sizes[:3])}; vavae.data.center_crop crops them"
            )
        return torch.cat(images)
    if isinstance(value, Tensor | np.ndarray):
        raise UserError(
            f"images: {value.dtype} is not in [-1, 1]; vavae.data.to_tensor scales pixels (B, H, W, 3), uint8"
        )
    given = "an empty list" if isinstance(value, list | tuple) else f"{type(value).__name__} {str(value)[:40]!r}"
    raise UserError(
        f"images: must be Pillow images, numpy pixels or a tensor, got {given}; vavae.data.read_rgb reads a file"
    )


def _of_pixels(pixels: np.ndarray) -> Tensor:
    if pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
        raise UserError(
            f"images: uint8 pixels must be (H, W, 3) or (B, H, W, 3), got {pixels.shape}; "
            "Image.fromarray(x).convert('RGB') makes color of gray, x.transpose(0, 2, 3, 1) puts channels last"
        )
    if pixels.size and pixels.max() == 1:
        raise UserError(
            "images: uint8 pixels must be 0 to 255, got 0 and 1 only; multiply by 255 before the conversion"
        )
    return to_tensor(pixels if pixels.ndim == 4 else pixels[None])


def _of_floats(images: Tensor) -> Tensor:
    if images.ndim not in (3, 4) or images.shape[-3] != 3:
        raise UserError(f"images: floats must be (3, H, W) or (B, 3, H, W), got {tuple(images.shape)}")
    if images.numel():
        low, high = (float(bound) for bound in images.detach().aminmax())
        if not (low >= -_LARGEST and high <= _LARGEST):  # also if one is NaN
            raise UserError(
                f"images: values must be in [-1, 1], got {low:g} to {high:g}; x / 127.5 - 1 scales 0 to 255, "
                "2 * x - 1 scales 0 to 1"
            )
    return images if images.ndim == 4 else images[None]


def flip_horizontally(images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mirror images (B, C, H, W) left to right, or only the images for which `mask` (B,) is true."""
    flipped = images.flip(-1)
    return flipped if mask is None else torch.where(mask.view(-1, 1, 1, 1), flipped, images)


def load_pixels(source: ImageSource, indices: Tensor | Sequence[int], size: Size, workers: int = 0) -> Tensor:
    """Return center-cropped images as pixels, (len(indices), H, W, 3) uint8, decoded by `workers` threads."""
    wanted = [int(index) for index in indices]
    if isinstance(source, ArrayImages) and source.pixels.shape[1:3] == height_width(size):
        return torch.from_numpy(source.pixels[wanted])
    pixels = np.empty((len(wanted), *height_width(size), 3), np.uint8)

    def decode(row: int) -> None:
        pixels[row] = np.asarray(center_crop(source.image(wanted[row]), size))

    for _ in loaded_ahead(range(len(wanted)), decode, workers if workers > 1 else 0):
        pass  # the loop raises errors of the threads
    return torch.from_numpy(pixels)


def load_images(source: ImageSource, indices: Tensor | Sequence[int], size: Size, workers: int = 0) -> Tensor:
    """Return center-cropped images of `source`, (len(indices), 3, H, W) float32 in [-1, 1]; see `load_pixels`."""
    return to_tensor(load_pixels(source, indices, size, workers))


class CroppedImages(ImageSource):
    """Images of a source, center-cropped to one size when they are read, so that a `DataLoader` can batch them.

    Args:
        source: The images.
        size: Size in pixels.
    """

    def __init__(self, source: ImageSource, size: Size) -> None:
        self.source, self.size = source, as_size("size", size)
        self.name, self.labels, self.class_names = source.name, source.labels, source.class_names
        self.found, self.unreadable = source.found, source.unreadable

    def image(self, index: int) -> Image.Image:
        return center_crop(self.source.image(index), self.size)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.source.fingerprint()} {height_width(self.size)}".encode()).hexdigest()


class InMemoryImages(ArrayImages):
    """All images of a source, center-cropped and decoded once, for sets of up to some ten thousand small images."""

    def __init__(self, source: ImageSource, size: Size, workers: int = 2) -> None:
        pixels = load_pixels(source, range(len(source)), size, workers)
        super().__init__(pixels.numpy(), source.labels, source.class_names, source.name, source.found)
