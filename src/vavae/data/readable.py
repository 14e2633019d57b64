"""Which images of a source cannot be read: found once, named in a file, and remembered for the next start.

Decoding a million images takes a while, so what was found about a large set is kept in the user's cache under a
key of everything that it depends on.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from vavae.files import written_whole

Unreadable = list[tuple[str, str]]  # (name, reason)

# Smaller sets are checked anew in seconds.
_WORTH_KEEPING = 1000
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def cache_folder() -> Path:
    """Where what is known about large sets is kept."""
    from vavae.pretrained import assets

    return Path(assets.cache_folder())


def image_error(file: Path | IO[bytes], whole: bool = True) -> str | None:
    """Why an image cannot be read, or None if it can.

    Args:
        file: A path, or an open binary file.
        whole: Decode it, which finds truncated ones; otherwise read its beginning only.
    """
    try:
        with Image.open(file) as image:
            if whole:
                # For JPEG this skips most of the inverse transform and still reads the file to its end.
                image.draft("RGB", (32, 32))
                image.load()
    except UnidentifiedImageError:
        return "not an image"
    except IMAGE_ERRORS as error:
        return str(error) or type(error).__name__
    return None


def find_unreadable(
    count: int, error_of: Callable[[int], str | None], key: Sequence[object], cache: Path | None = None
) -> dict[int, str]:
    """Number -> reason of each of `count` images that cannot be read.

    Args:
        count: Number of images.
        error_of: Why an image, by number, cannot be read, or None; called from several threads.
        key: All that the answer depends on: names, sizes, times of change.
        cache: Folder for answers about large sets; null is the user's.
    """
    path: Path | None = None
    if count >= _WORTH_KEEPING:
        digest = hashlib.sha256(repr(tuple(key)).encode()).hexdigest()[:24]
        path = (cache or cache_folder() / "readable") / f"{digest}.json"
        if path.exists():
            return {int(number): reason for number, reason in json.loads(path.read_text()).items()}
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        errors = pool.map(error_of, range(count), chunksize=64)
        found = {number: error for number, error in enumerate(errors) if error is not None}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(found))
    return found


def write_unreadable(unreadable: Sequence[tuple[Any, str]], path: str | os.PathLike[str] | None) -> None:
    """Write names and reasons, one per line, tab-separated; nothing where all can be read."""
    if unreadable and path is not None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{name}\t{reason}\n" for name, reason in unreadable))
