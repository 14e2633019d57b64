"""The size of an image or a grid: one number for a square, height and width for any other rectangle."""

import math
from collections.abc import Sequence

from vavae.errors import UserError

Size = int | tuple[int, int]


def height_width(size: Size) -> tuple[int, int]:
    """Return (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def size_of(height: int, width: int) -> Size:
    """Return the size with these sides; the size of a square is one number."""
    return height if height == width else (height, width)


def as_size(key: str, given: int | Sequence[int]) -> Size:
    """Return the size that a recipe or JSON gives as a number or [height, width]; [256, 256] is 256.

    Args:
        key: Where it was given, for the message.
        given: The value.

    Raises:
        UserError: It is neither.
    """
    if isinstance(given, int):
        return given
    if not isinstance(given, Sequence) or len(given) != 2 or not all(isinstance(side, int) for side in given):
        shown = list(given) if isinstance(given, Sequence) else given
        raise UserError(f"{key} must be a number or [height, width], got {shown}")
    return size_of(*given)


def format_size(size: Size) -> str:
    """Return a size as text without its unit: "256", or "192x320" for 192 rows of 320 columns."""
    height, width = height_width(size)
    return f"{height}" if height == width else f"{height}x{width}"


def num_pixels(size: Size) -> int:
    """Return height times width."""
    return math.prod(height_width(size))


def scale_size(size: Size, factor: int) -> Size:
    """Return a size with both sides multiplied by `factor`."""
    height, width = height_width(size)
    return size_of(height * factor, width * factor)


def square_side(key: str, size: Size, what: str) -> int:
    """Return the side of a square.

    Args:
        key: Where the size was given, for the message.
        size: The size.
        what: The command or model that needs squares.

    Raises:
        UserError: It is another rectangle.
    """
    height, width = height_width(size)
    if height != width:
        raise UserError(f"{key} must be a square for {what}, got {format_size(size)}")
    return height
