"""The published evaluation's crop, for squares and rectangles."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vavae.data import DemoImages, to_tensor
from vavae.evaluation.reconstruction import published_evaluation_crop


class OnePicture:
    """A source of one image."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture

    def image(self, index: int) -> Image.Image:
        return self.picture


def test_published_crop_of_the_evaluation():
    """Resize the short side to `size` by anti-aliased bilinear and crop the middle, without rounding to 8 bits."""

    wide = Image.fromarray(DemoImages("test").pixels[0]).resize((90, 64), Image.Resampling.BICUBIC)
    crop = published_evaluation_crop(OnePicture(wide), 0, 32)  # type: ignore[arg-type]
    assert crop.shape == (3, 32, 32)
    # Pillow resizes like torch's anti-aliased bilinear, but rounds.
    pillow = np.asarray(wide.resize((45, 32), Image.Resampling.BILINEAR))[:, 6:38]
    assert float((crop - to_tensor(pillow)).abs().max()) < 2.5 / 127.5
    exact = Image.fromarray(DemoImages("test").pixels[1])
    assert torch.equal(
        published_evaluation_crop(OnePicture(exact), 0, 32),  # type: ignore[arg-type]
        to_tensor(np.array(exact)),
    )
    # Other rectangles are cut from the smallest picture that covers them in rows and columns.
    for size, covering, box in (
        ((24, 20), (33, 24), (6, 0, 26, 24)),
        ((24, 50), (50, 35), (0, 6, 50, 30)),
    ):
        crop = published_evaluation_crop(OnePicture(wide), 0, size)  # type: ignore[arg-type]
        pillow = np.array(wide.resize(covering, Image.Resampling.BILINEAR).crop(box))
        assert crop.shape == (3, *size)
        assert float((crop - to_tensor(pillow)).abs().max()) < 2.5 / 127.5


def published_square(picture: Image.Image, size: int) -> torch.Tensor:
    """Crop to a square as published."""
    image = to_tensor(np.array(picture))[None]
    height, width = image.shape[2:]
    short = min(height, width)
    if short != size:
        sides = (size * height // short, size * width // short)
        image = F.interpolate(image, size=sides, mode="bilinear", align_corners=False, antialias=True)
    top, left = (round((side - size) / 2.0) for side in image.shape[2:])
    return image[0, :, top : top + size, left : left + size]


@settings(max_examples=30)
@given(*[st.integers(8, 120)] * 2, *[st.integers(8, 48)] * 2)
def test_published_crop_of_squares_and_rectangles(width, height, rows, columns):
    source = OnePicture(Image.fromarray(DemoImages("test").pixels[2]).resize((width, height)))
    crop = published_evaluation_crop
    assert torch.equal(crop(source, 0, rows), published_square(source.picture, rows))  # type: ignore[arg-type]
    assert crop(source, 0, (rows, columns)).shape == (3, rows, columns)  # type: ignore[arg-type]
