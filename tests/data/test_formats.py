"""Formats of image files, and the decoders that may run."""

import ast
import importlib
import io
import struct
import sys
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

import vavae
from vavae.data import DemoImages, formats, open_images, read_rgb
from vavae.data.readable import image_error

PICTURE = DemoImages("train").image(0)


def test_image_open_always_names_formats() -> None:
    calls = [
        (path.name, {keyword.arg for keyword in node.keywords})
        for path in Path(vavae.__file__).parent.rglob("*.py")
        if "Image.open" in path.read_text()  # parsing is slow
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert calls and all("formats" in keywords for _, keywords in calls), calls


@pytest.mark.parametrize("file_format", ["EPS", "PDF", "PCX", "TGA", "ICO", "SGI"])
def test_other_decoders_never_run(file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "a.png", file_format)
    if file_format in Image.OPEN:
        monkeypatch.setitem(Image.OPEN, file_format, (lambda *_: pytest.fail("it was opened"), None))
    assert image_error(tmp_path / "a.png") == "not an image"


@pytest.mark.parametrize(
    ("suffix", "file_format", "feature"),
    [
        (".jfif", "JPEG", None),
        (".mpo", "MPO", None),
        (".apng", "PNG", None),
        (".dib", "DIB", None),
        (".pnm", "PPM", None),
        (".tif", "TIFF", None),
        (".jp2", "JPEG2000", "jpg_2000"),
        (".j2k", "JPEG2000", "jpg_2000"),
        (".avif", "AVIF", "avif"),
    ],
)
def test_known_endings_are_read(suffix: str, file_format: str, feature: str | None, tmp_path: Path) -> None:
    if feature and not features.check(feature):
        pytest.skip(f"Pillow without {feature}")
    # Two frames, as phones write MPO files: the first counts.
    more = {"save_all": True, "append_images": [Image.new("RGB", PICTURE.size)]} if suffix in (".mpo", ".apng") else {}
    PICTURE.save(tmp_path / f"phone{suffix.upper()}", file_format, **more)
    image = open_images(str(tmp_path)).image(0)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(PICTURE)).mean() < 15


def test_heic_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    content = struct.pack(">I", 24) + b"ftypheic" + bytes(100)
    monkeypatch.setattr(formats, "IMAGE_FORMATS", tuple(set(formats.IMAGE_FORMATS) - {"HEIF"}))
    assert image_error(io.BytesIO(content)) == "needs pillow-heif: pip install pillow-heif"
    assert image_error(io.BytesIO(b"ftypheic")) == "not an image"


def test_heic_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("pillow_heif")
    registered = (lambda *_: PICTURE.copy(), lambda first: first[4:12] == b"ftypheic")
    package.register_heif_opener = lambda: monkeypatch.setitem(Image.OPEN, "HEIF", registered)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    importlib.reload(formats)
    content = struct.pack(">I", 24) + b"ftypheic" + bytes(100)
    try:
        assert read_rgb(io.BytesIO(content)).tobytes() == PICTURE.tobytes()
    finally:
        monkeypatch.undo()
        importlib.reload(formats)


def png_of(side: int) -> bytes:
    """Return the beginning of a PNG of side × side pixels, enough to check its size."""
    stored = io.BytesIO()
    PICTURE.save(stored, "png")
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return stored.getvalue()[:12] + header + checksum + stored.getvalue()[33:]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("side", [11_586, 13_000, 20_000])
def test_images_with_too_many_pixels(side: int, whole: bool) -> None:
    assert image_error(io.BytesIO(png_of(side)), whole) == (
        f"{side * side:,} pixels are more than 134,217,728: make the image smaller"
    )


def test_large_images_open_without_warning() -> None:
    with warnings.catch_warnings(record=True) as seen:
        importlib.reload(formats)  # sets the filters of a new process
        assert formats.open_image(io.BytesIO(png_of(11_585))).size == (11_585, 11_585)
    assert not seen
