"""Converters: the checked files of a source to the files in the cache.

Each takes the source's files in order and an empty folder, and writes into the folder. Weights become safetensors under
the names in the converter's docstring.
"""

from collections.abc import Callable
from pathlib import Path

from vavae.assets.convert.dinov2 import convert_dinov2
from vavae.assets.convert.inception import convert_inception
from vavae.assets.convert.lpips import convert_lpips
from vavae.assets.convert.mobile_sam import convert_mobile_sam
from vavae.assets.convert.resnet import convert_resnet


def copy_files(files: list[Path], folder: Path) -> None:
    """Move the files unchanged."""
    for file in files:
        file.replace(folder / file.name)


CONVERTERS: dict[str, Callable[[list[Path], Path], None]] = {
    "copy": copy_files,
    "dinov2": convert_dinov2,
    "inception": convert_inception,
    "lpips": convert_lpips,
    "mobile_sam": convert_mobile_sam,
    "resnet": convert_resnet,
}
