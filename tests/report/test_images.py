import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vavae.report.images import data_uri, encode_png, image_grid, image_uri


def random_images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(count * 1000 + height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    columns=st.integers(1, 10),
    padding=st.integers(0, 3),
    scale=st.integers(1, 3),
)
def test_every_pixel_of_a_grid(count: int, height: int, width: int, columns: int, padding: int, scale: int) -> None:
    images = random_images(count, height, width)
    grid = np.asarray(image_grid(images, columns, padding, scale, background=(9, 8, 7)))
    used = min(columns, count)
    rows = (count + used - 1) // used
    assert grid.shape == (
        padding + rows * (height * scale + padding),
        padding + used * (width * scale + padding),
        3,
    )
    for y in range(grid.shape[0]):
        for x in range(grid.shape[1]):
            row, inner_y = divmod(y - padding, height * scale + padding)
            column, inner_x = divmod(x - padding, width * scale + padding)
            inside = y >= padding and x >= padding and inner_y < height * scale and inner_x < width * scale
            index = row * used + column
            expected = images[index, inner_y // scale, inner_x // scale] if inside and index < count else (9, 8, 7)
            assert tuple(grid[y, x]) == tuple(expected)


def test_labels_are_below_unchanged_images() -> None:
    images = np.full((2, 20, 30, 3), 200, dtype=np.uint8)
    plain = np.asarray(image_grid(images, 2, padding=4))
    labelled = np.asarray(image_grid(images, 2, padding=4, labels=["a very long name indeed\nsecond line", ""]))
    np.testing.assert_array_equal(labelled[:24], plain[:24])
    text = labelled[24:] != 255
    assert text.any()
    columns = np.flatnonzero(text.any(axis=(0, 2)))
    assert columns.min() >= 4
    assert columns.max() < 34


def test_labels_are_light_on_a_dark_background() -> None:
    grid = image_grid(np.zeros((1, 40, 40, 3), np.uint8), 1, labels=["cat"], background=(0, 0, 0))
    assert np.asarray(grid).max() == 255


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((0, 4, 4, 3), {}),
        ((2, 4, 4, 4), {}),
        ((2, 4, 4, 3), {"columns": 0}),
        ((2, 4, 4, 3), {"scale": 0}),
        ((2, 4, 4, 3), {"padding": -1}),
        ((2, 4, 4, 3), {"labels": ["one"]}),
    ],
)
def test_invalid_grids_are_refused(shape: tuple[int, ...], options: dict) -> None:
    with pytest.raises(ValueError):
        image_grid(np.zeros(shape, np.uint8), **{"columns": 2, **options})


def test_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        image_grid(np.zeros((1, 2, 2, 3)), 1)


def decode(uri: str) -> tuple[str, np.ndarray]:
    head, body = uri.split(",", 1)
    with Image.open(io.BytesIO(base64.b64decode(body, validate=True))) as image:
        return head, np.asarray(image.convert("RGB"))


def test_png_and_data_uri_return_the_same_pixels() -> None:
    pixels = random_images(1, 5, 9)[0]
    head, decoded = decode(data_uri(encode_png(pixels)))
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(decoded, pixels)
    np.testing.assert_array_equal(decode(image_uri(Image.fromarray(pixels)))[1], pixels)


def test_non_contiguous_pixels_are_encoded() -> None:
    pixels = random_images(1, 6, 6)[0][::2, ::-1]
    np.testing.assert_array_equal(decode(data_uri(encode_png(pixels)))[1], pixels)


def test_large_images_are_compressed() -> None:
    gradient = np.linspace(0, 255, 200)
    pixels = np.stack([np.tile(gradient, (150, 1))] * 3, axis=-1).astype(np.uint8)
    head, decoded = decode(image_uri(pixels))
    assert head == "data:image/webp;base64"
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 3
