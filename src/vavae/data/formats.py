"""Image formats: the file endings that count as images, and the one function that opens image files."""

import os
import re
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

# By Pillow's name of the decoder. Only these decoders run, for any file name: others start programs (Ghostscript for
# EPS) or read documents. Pillow reads phones' MPO files with its JPEG decoder.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
}
# Brands in the first bytes of formats whose decoder may be missing, and the package that has it.
_MISSING = {
    "HEIF": (b"heic heix heim heis hevc hevx mif1 msf1".split(), "pillow-heif: pip install pillow-heif"),
    "AVIF": (b"avif avis".split(), "a Pillow with AVIF: pip install --upgrade pillow"),
}

# An image of 2^27 = 134 million pixels takes 512 MiB as RGB. Photographs of medium-format cameras (102 million) and
# satellite tiles (Sentinel-2: 120 million) are smaller; small files that claim more can exhaust the memory.
MAX_PIXELS = 2**27

with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
# MAX_PIXELS replaces Pillow's own limits (a warning at 89 million pixels, an error at 179 million). Warnings of damaged
# EXIF data do not matter, since only the orientation is read.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin", category=UserWarning)

IMAGE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
IMAGE_FORMATS = tuple(name for name in _SUFFIXES if name in Image.OPEN)  # what this installation can open


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Open an image file of a known format, by its path or open, and read its header.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not an image of a known format, needs a decoder that is not installed, or has more than
            `MAX_PIXELS` pixels.
    """
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(_why_unknown(file)) from None
    except Image.DecompressionBombError as error:
        raise _too_large(int(re.findall(r"\d+", str(error))[0])) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(image.width * image.height)
    return image


def _too_large(pixels: int) -> ValueError:
    return ValueError(f"{pixels:,} pixels are more than {MAX_PIXELS:,}: make the image smaller")


def _why_unknown(file: str | os.PathLike[str] | IO[bytes]) -> str:
    with Path(file).open("rb") if isinstance(file, str | os.PathLike) else nullcontext(file) as opened:
        opened.seek(0)
        first = opened.read(12)
    for name, (brands, needed) in _MISSING.items():
        if name not in IMAGE_FORMATS and first[4:8] == b"ftyp" and first[8:12] in brands:
            return f"needs {needed}"
    return "not an image"
