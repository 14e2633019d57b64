import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vavae.report.images import image_grid, image_uri


def random_images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(count * 1000 + height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    columns=st.integers(1, 10),
    padding=st.integers(0, 3),
)
def test_every_pixel_of_a_grid(count: int, height: int, width: int, columns: int, padding: int) -> None:
    images = random_images(count, height, width)
    grid = np.asarray(image_grid(images, columns, padding))
    used = min(columns, count)
    rows = (count + used - 1) // used
    assert grid.shape == (
        padding + rows * (height + padding),
        padding + used * (width + padding),
        3,
    )
    for y in range(grid.shape[0]):
        for x in range(grid.shape[1]):
            row, inner_y = divmod(y - padding, height + padding)
            column, inner_x = divmod(x - padding, width + padding)
            inside = y >= padding and x >= padding and inner_y < height and inner_x < width
            index = row * used + column
            expected = images[index, inner_y, inner_x] if inside and index < count else (255, 255, 255)
            assert tuple(grid[y, x]) == tuple(expected)


@pytest.mark.parametrize("images", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 4), np.uint8)])
def test_grids_of_other_shapes_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        image_grid(images, 2)


def test_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        image_grid(np.zeros((1, 2, 2, 3)), 1)


def decode(uri: str) -> tuple[str, np.ndarray]:
    head, body = uri.split(",", 1)
    with Image.open(io.BytesIO(base64.b64decode(body, validate=True))) as image:
        return head, np.asarray(image.convert("RGB"))


def test_small_images_are_stored_without_loss() -> None:
    pixels = random_images(1, 5, 9)[0]
    head, decoded = decode(image_uri(pixels))
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(decoded, pixels)
    np.testing.assert_array_equal(decode(image_uri(Image.fromarray(pixels)))[1], pixels)
    mirrored = pixels[::2, ::-1]  # not contiguous
    np.testing.assert_array_equal(decode(image_uri(mirrored))[1], mirrored)


def test_large_images_are_compressed() -> None:
    gradient = np.linspace(0, 255, 200)
    pixels = np.stack([np.tile(gradient, (150, 1))] * 3, axis=-1).astype(np.uint8)
    head, decoded = decode(image_uri(pixels))
    assert head == "data:image/webp;base64"
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 3
