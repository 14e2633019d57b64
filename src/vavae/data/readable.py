"""Image files as RGB, and which of a source cannot be read: found once, named in a file, and remembered.

Decoding a million images takes a while, so what was found about a large set is kept in the user's cache under a
key of everything that it depends on, and part of it already while the search goes on.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from vavae.data.stream import loaded_ahead
from vavae.errors import one_line, told
from vavae.files import written_whole
from vavae.progress import track

Unreadable = list[tuple[str, str]]  # (name, reason)

# Smaller sets are checked anew in seconds.
_WORTH_KEEPING = 1000
# Images that one thread looks at before it takes others, and how often what was found is stored meanwhile.
_BLOCK = 64
_SAVE_SECONDS = 20.0
# Changes whenever `image_error` or `read_rgb` judge otherwise than before.
_RULES = 2

# What `read_rgb` raises for a file that it cannot read.
IMAGE_ERRORS = (OSError, ValueError)


def cache_folder() -> Path:
    """Where what is known about large sets is kept."""
    from vavae.pretrained import assets

    return Path(assets.cache_folder())


def judge() -> str:
    """All that verdicts depend on beside the image: our rules and the version of Pillow."""
    return f"{_RULES} Pillow {PIL.__version__}"


def threads() -> int:
    """How many threads decode at once while a set is looked through."""
    return min(16, os.cpu_count() or 1)


def recall(path: Path) -> Any:
    """What `remember` stored, or None where there is nothing, or nothing whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def remember(path: Path, value: Any) -> None:
    """Store `value` as JSON. A cache that cannot be written costs time at the next start, not the run."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(value))


def reading(what: str) -> AbstractContextManager[None]:
    """Tell in one line of whatever goes wrong while `what` is read: `cannot read WHAT: …`; see `told`."""
    return told(lambda reason: f"cannot read {what}: {reason}", f"decode {what}")


def read_rgb(path: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Read an image file, by its path or open, as upright RGB.

    EXIF orientation is applied, transparency is dropped, 16-bit grey values keep their high byte, and of an
    animation the first frame is taken. Raises OSError or ValueError if the file cannot be decoded whole, or holds
    32-bit numbers, whose range nothing tells.
    """
    try:
        with Image.open(path) as image:
            return _upright_rgb(image)
    except (*IMAGE_ERRORS, MemoryError):
        raise
    except Exception as error:  # a damaged AVIF raises RuntimeError, a PNG SyntaxError, and so on
        raise ValueError(one_line(error)) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if _high_byte_counts(upright.mode, image.format):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright.convert("RGB")


def _high_byte_counts(mode: str, file_format: str | None) -> bool:
    """Whether pixels are 16-bit grey values. Raises ValueError for 32-bit numbers."""
    sixteen = mode.startswith("I;16") or (mode == "I" and file_format in ("PNG", "PPM"))
    if mode in ("I", "F") and not sixteen:
        raise ValueError("its pixels are 32-bit numbers of unknown range; store it with 8 or 16 bits")
    return sixteen


def image_error(file: Path | IO[bytes], whole: bool = True) -> str | None:
    """Why `read_rgb` cannot read an image, or None if it can.

    Args:
        file: A path, or an open binary file.
        whole: Decode it, which finds truncated ones; otherwise read its beginning only.

    Raises:
        OSError: The file could not be got at (no permission, a failing disk, too many open files), which says
            nothing about the image.
        MemoryError: Nor does this.
    """
    try:
        with Image.open(file) as image:
            if whole:
                # For JPEG this skips most of the inverse transform and still reads the file to its end.
                image.draft("RGB", (32, 32))
                _upright_rgb(image)
            else:
                _high_byte_counts(image.mode, image.format)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return "not an image"
    except OSError as error:
        # Decoders raise OSError without a number, or seek to where a damaged file sends them, which is EINVAL.
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
    """Number -> reason of each of `count` images that cannot be read.

    What is known about a large set is stored every now and then, so that a search that was ended goes on where it
    was. An image that could not be got at is neither left out nor remembered: that may pass, and a set that loses
    images for a while would change labels, order and fingerprint from one start to the next without a word.

    Args:
        count: Number of images.
        error_of: Why an image, by number, cannot be read, or None; called from several threads.
        name_of: What to call an image, by number.
        key: All that the answer depends on: names, sizes, times of change.
        cache: Folder for answers about large sets; null is the user's.

    Raises:
        UserError: An image could not be got at; the message names it.
        RunError: There was not enough memory for one.
    """
    path: Path | None = None
    checked, found = 0, dict[int, str]()
    if count >= _WORTH_KEEPING:
        digest = hashlib.sha256(repr((judge(), *key)).encode()).hexdigest()[:24]
        path = (cache or cache_folder() / "readable") / f"{digest}.json"
        checked, found = _verdicts(recall(path))
    if checked >= count:
        return found

    def errors_of(block: range) -> dict[int, str]:
        errors = {}
        for number in block:
            with reading(f"image {name_of(number)}"):
                error = error_of(number)
            if error is not None:
                errors[number] = error
        return errors

    blocks = (range(first, min(first + _BLOCK, count)) for first in range(checked, count, _BLOCK))
    stored = time.monotonic()
    with track("checking images", count, "images", checked) if path is not None else nullcontext() as bar:
        try:
            for block, errors in loaded_ahead(blocks, errors_of, threads()):
                found |= errors
                checked = block.stop
                if bar is not None:
                    bar.advance(len(block))
                if path is not None and time.monotonic() - stored >= _SAVE_SECONDS:
                    remember(path, {"checked": checked, "unreadable": found})
                    stored = time.monotonic()
        finally:
            if path is not None:
                remember(path, {"checked": checked, "unreadable": found})
    return found


def _verdicts(stored: Any) -> tuple[int, dict[int, str]]:
    """How many images of a set are known, from the first on, and why some cannot be read."""
    try:
        return int(stored["checked"]), {int(number): str(why) for number, why in stored["unreadable"].items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        return 0, {}


def write_unreadable(unreadable: Sequence[tuple[Any, str]], path: str | os.PathLike[str] | None) -> None:
    """Write names and reasons, one per line, tab-separated; nothing where all can be read."""
    if unreadable and path is not None:
        target = Path(path)
        with written_whole(target) as temporary:
            temporary.write_text("".join(f"{name}\t{reason}\n" for name, reason in unreadable))
