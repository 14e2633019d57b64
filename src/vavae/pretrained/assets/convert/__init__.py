"""Converters: the files of a source, already checked, to the files kept in the cache.

Each takes the source's files in order and an empty folder, and writes into the folder. Weights become safetensors
under the names stated in the converter's docstring.
"""

from collections.abc import Callable
from pathlib import Path

from vavae.pretrained.assets.convert.dinov2 import convert_dinov2
from vavae.pretrained.assets.convert.lpips import convert_lpips


def copy_files(files: list[Path], folder: Path) -> None:
    """Keep the files as they are."""
    for file in files:
        file.replace(folder / file.name)


CONVERTERS: dict[str, Callable[[list[Path], Path], None]] = {
    "copy": copy_files,
    "dinov2": convert_dinov2,
    "lpips": convert_lpips,
}
