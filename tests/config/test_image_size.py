"""Sizes of images: one number for squares, height and width for other rectangles."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vavae.config import to_plain
from vavae.config.image_size import as_size, format_size, height_width, num_pixels, scale_size, size_of, square_side
from vavae.errors import UserError

SIDE = st.integers(1, 4096)


@given(SIDE, SIDE, st.integers(1, 32))
def test_a_size_is_its_two_sides(height: int, width: int, factor: int) -> None:
    size = size_of(height, width)
    assert isinstance(size, int) == (height == width)
    assert height_width(size) == (height, width) and num_pixels(size) == height * width
    assert as_size("size", [height, width]) == as_size("size", json.loads(json.dumps(to_plain(size)))) == size
    assert height_width(scale_size(size, factor)) == (height * factor, width * factor)
    assert isinstance(scale_size(size, factor), int) == isinstance(size, int)


def test_sizes_as_text() -> None:
    assert [format_size(size) for size in (256, (192, 320), (64, 64))] == ["256", "192x320", "64"]


@pytest.mark.parametrize("wrong", [[192], [1, 2, 3], [], [24.5, 40], ["24", "40"]])
def test_wrong_sizes_are_refused(wrong: list) -> None:
    with pytest.raises(UserError, match=r"^data\.size must be a number or \[height, width\], got"):
        as_size("data.size", wrong)


def test_square_side() -> None:
    assert square_side("data.size", 32, "x") == 32
    with pytest.raises(UserError, match=r"^data\.size must be a square for x, got 24x40"):
        square_side("data.size", (24, 40), "x")
