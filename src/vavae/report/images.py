"""Image grids, encoded images and data URIs."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LOSSLESS_PIXELS = 128 * 128
_LABEL_SIZE = 12


def class_name(label: int, names: Sequence[str]) -> str:
    """Return the name of a label; a label beyond the names becomes "class N"."""
    return names[label] if 0 <= label < len(names) else f"class {label}"


def check_images(images: NDArray | None, name: str) -> None:
    """Raise ValueError unless `images` is None or (N, H, W, 3) uint8 with H and W at least 1."""
    if images is None:
        return
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"{name} must be (N, H, W, 3) uint8, got {images.shape} {images.dtype}")


def image_grid(
    images: NDArray[np.uint8],
    columns: int,
    padding: int = 2,
    scale: int = 1,
    labels: Sequence[str] | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """Arrange images in rows of `columns`, from left to right and from top to bottom.

    The left edge of image i is at x = padding + (i mod columns) · (scale · W + padding), and the same for rows. With
    labels, there is a line of text below each image.

    Args:
        images: (N, H, W, 3) uint8 RGB, N at least 1.
        columns: Images per row, or all images if there are fewer.
        padding: Pixels around and between images.
        scale: Each pixel becomes scale × scale pixels.
        labels: A text below each image, cut to the image's width; None for no text.
        background: RGB of the area that images do not cover.

    Returns:
        An RGB image.

    Raises:
        ValueError: Images of another shape or type, columns or scale below 1, negative padding, or another number
            of labels than images.
    """
    check_images(images, "images")
    if len(images) == 0 or columns < 1 or scale < 1 or padding < 0:
        raise ValueError(f"no grid of {len(images)} images, columns={columns}, scale={scale}, padding={padding}")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images")
    count, height, width = len(images), images.shape[1] * scale, images.shape[2] * scale
    columns = min(columns, count)
    rows = -(-count // columns)
    text_height = 0 if labels is None else _LABEL_SIZE + 4
    step_x, step_y = width + padding, height + text_height + padding
    canvas = np.empty((padding + rows * step_y, padding + columns * step_x, 3), dtype=np.uint8)
    canvas[:] = background
    for index, image in enumerate(images):
        top, left = padding + index // columns * step_y, padding + index % columns * step_x
        canvas[top : top + height, left : left + width] = image.repeat(scale, axis=0).repeat(scale, axis=1)
    grid = Image.fromarray(canvas)
    if labels is not None:
        draw = ImageDraw.Draw(grid)
        font = ImageFont.load_default(_LABEL_SIZE)
        ink = (0, 0, 0) if sum(background) > 382 else (255, 255, 255)
        for index, label in enumerate(labels):
            top, left = padding + index // columns * step_y + height, padding + index % columns * step_x
            draw.text((left, top + 1), _fitted(label, width, font), fill=ink, font=font)
    return grid


def encode_png(image: Image.Image | NDArray[np.uint8]) -> bytes:
    """Return the bytes of a PNG file of an image, or of pixels (H, W, 3) uint8."""
    buffer = io.BytesIO()
    _as_image(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    """Return `content` as a data: URI, for pages of a single file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(image: Image.Image | NDArray[np.uint8]) -> str:
    """Return a data: URI of an image: PNG up to `LOSSLESS_PIXELS` pixels, WebP of quality 90 above.

    A page of many large PNGs would be too big to send. Small images, whose single pixels are visible, stay lossless.
    """
    image = _as_image(image)
    if image.width * image.height <= LOSSLESS_PIXELS:
        return data_uri(encode_png(image))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=90)
    return data_uri(buffer.getvalue(), "image/webp")


def _as_image(image: Image.Image | NDArray[np.uint8]) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))


def _fitted(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Return the longest start of the first line of `text` that is at most `width` pixels wide."""
    line = text.split("\n", 1)[0]
    while line and font.getlength(line) > width:
        line = line[:-1]
    return line
