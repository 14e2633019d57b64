"""Files of small random images: PNGs, and tar shards of samples."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int) -> np.ndarray:
    """Return random pixels, (9, 7, 3) uint8."""
    return np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    """Return `picture(number)` as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(picture(number)).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a tar file of (name, content)."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def labeled(labels: list[int]) -> list[tuple[str, bytes]]:
    """Return the members of samples with these labels."""
    return [pair for n, k in enumerate(labels) for pair in ((f"{n}.png", png(n)), (f"{n}.cls", str(k).encode()))]
