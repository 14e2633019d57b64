"""Read image files as RGB, and find the images of a source that cannot be read.

Decoding a million images takes long. The result for a large set is therefore cached in the user's cache folder, under
a key of everything that it depends on. An interrupted search resumes from it.
"""

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image

from vavae.assets import cache_folder
from vavae.data.formats import IMAGE_FORMATS, open_image
from vavae.data.loader import loaded_ahead
from vavae.errors import as_user_error, one_line
from vavae.io.files import written_whole
from vavae.progress import track

log = logging.getLogger(__name__)

Unreadable = Sequence[tuple[str, str]]  # (name, reason)
GrayRange = tuple[float, float]  # the gray values that become black and white

# Smaller sets are checked in seconds, so their results are not cached.
_WORTH_KEEPING = 1000
# Images in a piece of work of one thread, and seconds between two writes of the cache.
_BLOCK = 64
_SAVE_SECONDS = 20.0
# Must change whenever `image_error` or `read_rgb` accept other images than before.
_RULES = 3

# `read_rgb` raises these for a file that it cannot read.
IMAGE_ERRORS = (OSError, ValueError)

# The transposition that makes an image upright, by its orientation tag (EXIF 2.32, tag 0x0112).
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Subjects of which this process has warned.
_WARNED: set[str] = set()


@dataclass(frozen=True)
class ReadOptions:
    """How a source reads its images. `vavae.data.images.ImagesConfig` explains the other options.

    Attributes:
        unreadable_list: File for the names of unreadable images and the reasons, one per line, tab-separated. It is
            not written if all images can be read.
    """

    check: Literal["decode", "header"] = "decode"
    unreadable_list: str | os.PathLike[str] | None = None
    image_column: str | None = None
    label_column: str | None = None
    gray_range: GrayRange | None = None

    @property
    def decode(self) -> bool:
        """Whether images are decoded when the source is opened."""
        return self.check == "decode"


DEFAULT_OPTIONS = ReadOptions()


def decoder_version() -> str:
    """Return everything but the image that decides whether it can be read: our rules, the decoders and Pillow."""
    return f"{_RULES} Pillow {PIL.__version__} {IMAGE_FORMATS}"


def threads() -> int:
    """Return the number of threads that decode while a set is checked."""
    return min(16, os.cpu_count() or 1)


def read_cache(path: Path) -> Any:
    """Return the value that `write_cache` stored, or None if the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_cache(path: Path, value: Any) -> None:
    """Store `value` as JSON, if the file can be written."""
    with suppress(OSError), written_whole(path) as temporary:
        temporary.write_text(json.dumps(value))


def reading(what: str) -> AbstractContextManager[None]:
    """Turn any exception in the block into the UserError `cannot read WHAT: …`; see `as_user_error`."""
    return as_user_error(lambda reason: f"cannot read {what}: {reason}", f"decode {what}")


def read_rgb(file: str | os.PathLike[str] | IO[bytes], gray_range: GrayRange | None = None) -> Image.Image:
    """Read an image file, by its path or open, as upright RGB; see `upright_rgb`.

    Raises:
        OSError: The file cannot be read or decoded.
        ValueError: The file cannot be decoded whole, or its pixels are 32-bit numbers and there is no `gray_range`.
    """
    try:
        with open_image(file) as image:
            return upright_rgb(image, gray_range)
    except (*IMAGE_ERRORS, MemoryError):
        raise
    except Exception as error:  # a damaged AVIF raises RuntimeError, a PNG SyntaxError, and so on
        raise ValueError(one_line(error)) from error


def upright_rgb(image: Image.Image, gray_range: GrayRange | None = None) -> Image.Image:
    """Return an opened image as upright RGB without metadata.

    The orientation in EXIF or XMP is applied, transparency is dropped, and of an animation the first frame is taken.
    Of 16-bit color Pillow keeps the high byte.

    Args:
        image: The image. It must not be used afterwards.
        gray_range: See `ReadOptions`.

    Raises:
        OSError: The image cannot be decoded whole.
        ValueError: Its pixels are 32-bit numbers and there is no `gray_range`, or some are not numbers.
    """
    deep, name = _is_deep(image, gray_range), str(getattr(image, "filename", ""))
    _warn_if_animated(image, name)
    image.load()
    _warn_if_transparent(image, name)
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if deep:
        image = Image.fromarray(_eight_bits(np.asarray(image), gray_range, name))
    image.info = {}  # otherwise the result could be turned again, and Pillow warns of dropped transparency
    return image if image.mode == "RGB" else image.convert("RGB")


def range_key(gray_range: GrayRange | None) -> bytes:
    """Return the part of a source's fingerprint that depends on `gray_range`; empty without one."""
    return b"" if gray_range is None else repr(gray_range).encode()


def _orientation(image: Image.Image) -> object:
    """Return the value of the orientation tag. `ImageOps.exif_transpose` would also write the other tags, and fail."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises errors of any kind for damaged EXIF data
        return None


def _is_deep(image: Image.Image, gray_range: GrayRange | None) -> bool:
    """Return whether pixels are gray values of more than 8 bits; raise ValueError for 32 bits without `gray_range`."""
    mode = image.mode
    sixteen = mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM"))
    if mode in ("I", "F") and not sixteen and gray_range is None:
        raise ValueError(
            "its pixels are 32-bit numbers of unknown range: give data.gray_range, or store it with 8 or 16 bits"
        )
    return sixteen or mode in ("I", "F")


def _eight_bits(pixels: np.ndarray, gray_range: GrayRange | None, name: str) -> np.ndarray:
    """Scale gray values to 0 … 255, uint8: from `gray_range`, or from 16 bits by taking the high byte.

    Warn, once in a process, if 16-bit values use 14 bits or fewer: many X-rays and cameras have 10 to 14.
    """
    if gray_range is None:
        largest = int(pixels.max())
        if 0 < largest < 2**14:
            _warn_once(
                "dark",
                "images: the largest value of %s is %d of 65535, so it becomes nearly black. If the values of the set "
                "have fewer than 16 bits, give their range, for 12 bits data.gray_range: [0, 4095]",
                name or "a 16-bit gray image",
                largest,
            )
        return (pixels >> 8).astype(np.uint8)
    low, high = gray_range
    scaled = (np.clip(pixels.astype(np.float32), low, high) - low) * (255 / (high - low))
    if np.isnan(scaled).any():
        raise ValueError("some of its pixels are not numbers")
    return np.rint(scaled).astype(np.uint8)


def _warn_once(subject: str, message: str, *values: object) -> None:
    if subject not in _WARNED:
        _WARNED.add(subject)
        log.warning(message, *values)


def _warn_if_animated(image: Image.Image, name: str) -> None:
    """Warn, once in a process, of an image with several frames. MPO files of phones have one image in several forms."""
    if "frames" in _WARNED or image.format == "MPO":
        return
    with suppress(Exception):  # the second frame may be damaged
        if getattr(image, "is_animated", False):
            _warn_once("frames", "images: %s has several frames; of such images the first is used", name or "an image")


def _warn_if_transparent(image: Image.Image, name: str) -> None:
    """Warn, once in a process, of a loaded image with pixels that are not opaque."""
    if "transparency" in _WARNED or not image.has_transparency_data:
        return
    shown = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    if shown.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
        _warn_once("transparency", "images: %s is partly transparent; the colors under it are used", name or "an image")


def image_error(file: Path | IO[bytes], whole: bool = True, gray_range: GrayRange | None = None) -> str | None:
    """Return why `read_rgb` cannot read an image, or None if it can.

    Args:
        file: A path, or an open binary file.
        whole: Decode it, which finds truncated ones; otherwise read its beginning only.
        gray_range: See `ReadOptions`.

    Raises:
        OSError: The file cannot be accessed (no permission, a failing disk, too many open files).
        MemoryError: There is not enough memory to decode the image.
    """
    try:
        with open_image(file) as image:
            if whole:
                # This skips most of the inverse transform of a JPEG but still reads the file to its end.
                image.draft("RGB", (32, 32))
                upright_rgb(image, gray_range)
            else:
                _is_deep(image, gray_range)
    except MemoryError:
        raise
    except OSError as error:
        # Decoders raise OSError without a number. A damaged file can make them seek to an invalid place: EINVAL.
        if error.errno not in (None, errno.EINVAL):
            raise
        return one_line(error)
    except Exception as error:
        return one_line(error)
    return None


def find_unreadable(
    count: int,
    error_of: Callable[[int], str | None],
    name_of: Callable[[int], object],
    key: Sequence[object],
    cache: Path | None = None,
) -> dict[int, str]:
    """Return number -> reason for each of `count` images that cannot be read.

    A file that cannot be accessed is an error. Leaving it out would change labels, order and fingerprint silently when
    the fault passes.

    Args:
        count: Number of images.
        error_of: Returns why an image, given by its number, cannot be read, or None. Several threads call it.
        name_of: Returns the name of an image for errors.
        key: Everything that the result depends on: names, sizes, times of change.
        cache: Folder for the results of large sets; None is in the user's cache folder.

    Raises:
        UserError: An image cannot be accessed; the message names it.
        RunError: There is not enough memory to decode an image.
    """
    path: Path | None = None
    checked, found = 0, dict[int, str]()
    if count >= _WORTH_KEEPING:
        digest = hashlib.sha256(repr((decoder_version(), *key)).encode()).hexdigest()[:24]
        path = (cache or cache_folder() / "readable") / f"{digest}.json"
        stored = read_cache(path)
        with suppress(TypeError, KeyError, ValueError, AttributeError):  # a damaged file counts for nothing
            checked, found = int(stored["checked"]), {int(n): str(why) for n, why in stored["unreadable"].items()}
    if checked >= count:
        return found

    def save() -> None:
        if path is not None:
            write_cache(path, {"checked": checked, "unreadable": found})

    def errors_of(block: range) -> dict[int, str]:
        errors = {}
        for number in block:
            with reading(f"image {name_of(number)}"):
                error = error_of(number)
            if error is not None:
                errors[number] = error
        return errors

    blocks = (range(first, min(first + _BLOCK, count)) for first in range(checked, count, _BLOCK))
    saved = time.monotonic()
    with track("checking images", count, "images", checked) if path is not None else nullcontext() as bar:
        try:
            for block, errors in loaded_ahead(blocks, errors_of, threads()):
                found |= errors
                checked = block.stop
                if bar is not None:
                    bar.advance(len(block))
                if time.monotonic() - saved >= _SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
        finally:
            save()
    return found


def keep_readable(
    count: int,
    error_of: Callable[[int], str | None],
    name_of: Callable[[int], object],
    key: Sequence[object],
    options: ReadOptions,
) -> tuple[NDArray[np.int64], Unreadable]:
    """Return the numbers of the images that can be read, and name and reason of each other one; see `find_unreadable`.

    `options.unreadable_list` gets the names and reasons.
    """
    failed = find_unreadable(count, error_of, name_of, (*key, options.check, options.gray_range))
    unreadable = [(str(name_of(number)), reason) for number, reason in failed.items()]
    write_unreadable(unreadable, options.unreadable_list)
    return np.array([number for number in range(count) if number not in failed], dtype=np.int64), unreadable


def write_unreadable(unreadable: Unreadable, path: str | os.PathLike[str] | None) -> None:
    """Write names and reasons, one per line, tab-separated; without any, remove the file of an earlier call.

    Names keep their bytes, also if they are not UTF-8.
    """
    if path is None:
        return
    if not unreadable:
        Path(path).unlink(missing_ok=True)
    else:
        with written_whole(Path(path)) as temporary:
            temporary.write_bytes(os.fsencode("".join(f"{name}\t{reason}\n" for name, reason in unreadable)))
