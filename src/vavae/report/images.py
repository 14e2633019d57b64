"""Image grids, and images as data: URIs."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LOSSLESS_PIXELS = 128 * 128


def class_name(label: int, names: Sequence[str]) -> str:
    """Return the name of a label; a label beyond the names becomes "class N"."""
    return names[label] if 0 <= label < len(names) else f"class {label}"


def image_grid(images: NDArray[np.uint8], columns: int, padding: int = 2) -> Image.Image:
    """Arrange images on white in rows of `columns`, from left to right and from top to bottom.

    The left edge of image i is at x = padding + (i mod columns) · (W + padding), and the same for rows.

    Args:
        images: (N, H, W, 3) uint8 RGB, N at least 1.
        columns: Images per row, or all images if there are fewer.
        padding: Pixels around and between images.

    Raises:
        ValueError: Images of another shape or type, or no image.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be (N, H, W, 3) uint8, got {images.shape} {images.dtype}")
    count, height, width = images.shape[:3]
    columns = min(columns, count)
    rows = -(-count // columns)
    step_y, step_x = height + padding, width + padding
    canvas = np.full((padding + rows * step_y, padding + columns * step_x, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = padding + index // columns * step_y, padding + index % columns * step_x
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas)


def image_uri(image: Image.Image | NDArray[np.uint8]) -> str:
    """Return an image, or pixels (H, W, 3) uint8, as a data: URI for pages of a single file.

    Images up to `LOSSLESS_PIXELS` pixels, whose single pixels are visible, are PNG. Larger ones are WebP of quality
    90, since a page of many large PNGs would be too big to send.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.ascontiguousarray(image))
    buffer = io.BytesIO()
    lossless = image.width * image.height <= LOSSLESS_PIXELS
    if lossless:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="WEBP", quality=90)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{'png' if lossless else 'webp'};base64,{content}"
