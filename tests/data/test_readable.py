"""Reading images, and the search for those that cannot be read."""

import errno
import io
import json
import os
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps, features

from vavae.data import DemoImages, FolderImages, ReadOptions, read_rgb
from vavae.data import readable as readable_module
from vavae.data.images import ImagesConfig
from vavae.data.readable import find_unreadable, image_error
from vavae.errors import RunError, UserError

PICTURE = DemoImages("train").image(0)


def search(error_of: Callable[[int], str | None], folder: Path, count: int = 1000) -> dict[int, str]:
    return find_unreadable(count, error_of, lambda number: f"number {number}", ("a set",), folder)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_images_are_unreadable(mode: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        PICTURE.save(tmp_path / name)
    Image.new(mode, (16, 16)).save(tmp_path / "odd.tif")
    source = FolderImages(tmp_path)
    assert [path.name for path in source.paths] == ["a.png", "b.png"]
    assert [Path(name).name for name, _ in source.unreadable] == ["odd.tif"]
    for whole in (True, False):  # the header has the mode
        assert "32-bit numbers of unknown range" in str(image_error(tmp_path / "odd.tif", whole))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "file_format",
    [
        pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")),
        *("PNG", "TIFF", "WEBP", "JPEG"),
    ],
)
def test_check_and_reader_agree_on_damage(file_format: str) -> None:
    """Some decoders raise other errors than OSError and ValueError, such as RuntimeError and zlib.error."""
    stored = io.BytesIO()
    PICTURE.save(stored, file_format)
    random = np.random.default_rng(0)
    damaged = 0
    for _ in range(60):
        content = bytearray(stored.getvalue())
        content[random.integers(0, min(len(content), 300))] ^= 0xFF
        error = image_error(io.BytesIO(content))
        try:
            read_rgb(io.BytesIO(content))
        except (OSError, ValueError):
            damaged += 1
            assert error is not None and "\n" not in error
        else:
            assert error is None
    assert damaged > 10


def test_any_decoder_error_means_unreadable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    source = FolderImages(tmp_path)
    for error in (RuntimeError("two\nlines"), IndexError(), OSError(errno.EINVAL, "Invalid argument")):

        def fails(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Image, "open", fails)
        assert image_error(tmp_path / "a.png") == " ".join(str(error).split()) or type(error).__name__
        with pytest.raises(UserError, match=r"cannot read image .*a\.png: \S+"):
            source.image(0)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_inaccessible_files_are_not_cached(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for n in range(4):
        PICTURE.save(tmp_path / f"{n}.png")
    monkeypatch.setattr(readable_module, "_WORTH_KEEPING", 3)
    monkeypatch.setattr(readable_module, "cache_folder", lambda: tmp_path / "cache")
    original = Image.open

    def fails(path: Path, formats: tuple[str, ...]) -> Image.Image:
        if path.name == "2.png":
            raise OSError(number, "a passing fault", str(path))
        return original(path, formats=formats)

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(UserError, match=r"cannot read image .*2\.png: .*a passing fault"):
        FolderImages(tmp_path)
    monkeypatch.setattr(Image, "open", original)
    assert len(FolderImages(tmp_path)) == 4


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate")]
)
def test_out_of_memory_is_a_run_error(error: Exception, tmp_path: Path) -> None:
    def fails(_: int) -> None:
        raise error

    with pytest.raises(RunError, match="not enough memory to decode image number 0"):
        search(fails, tmp_path)


def test_new_pillow_version_checks_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert search(lambda number: "bad" if number == 3 else None, tmp_path) == {3: "bad"}
    assert search(lambda number: None, tmp_path) == {3: "bad"}
    monkeypatch.setattr(PIL, "__version__", "99.0")
    assert search(lambda number: None, tmp_path) == {}


def test_search_is_lazy(tmp_path: Path) -> None:
    def ends(number: int) -> None:
        if number == 5000:
            raise OSError(errno.EIO, "far enough")

    with pytest.raises(UserError, match=r"image number 5000: .*far enough"):
        search(ends, tmp_path, 10**12)


def test_interrupted_search_resumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looked_at: list[int] = []

    def error_of(number: int, end: int | None = None) -> str | None:
        if number == end:
            raise KeyboardInterrupt
        looked_at.append(number)
        return "bad" if number % 300 == 0 else None

    with pytest.raises(KeyboardInterrupt):
        search(lambda number: error_of(number, 700), tmp_path)
    assert "checking images: 640/1000 images" in capsys.readouterr().err
    looked_at.clear()
    assert search(error_of, tmp_path) == {0: "bad", 300: "bad", 600: "bad", 900: "bad"}
    assert sorted(looked_at) == list(range(640, 1000))
    looked_at.clear()
    search(error_of, tmp_path)
    assert not looked_at


def test_results_are_cached_during_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A killed process cannot store anything at its end."""
    monkeypatch.setattr(readable_module, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(readable_module, "threads", lambda: 1)
    seen: list[int] = []

    def error_of(number: int) -> None:
        if number == 640:
            (stored,) = tmp_path.glob("*.json")
            seen.append(json.loads(stored.read_text())["checked"])

    search(error_of, tmp_path)
    assert seen[0] >= 512


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"3": "bad"}', '{"checked": 1000, "unreadable": [1]}'])
def test_damaged_cache_is_replaced(damage: str, tmp_path: Path) -> None:
    search(lambda number: None, tmp_path)
    (stored,) = tmp_path.glob("*.json")
    stored.write_text(damage)
    assert search(lambda number: "bad" if number == 3 else None, tmp_path) == {3: "bad"}


def test_unwritable_cache_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert search(lambda number: "bad" if number == 3 else None, tmp_path / "file" / "cache") == {3: "bad"}


def exif(*entries: bytes, count: int | None = None, after: bytes = b"") -> bytes:
    """Return EXIF data with entries of `entry`."""
    number = struct.pack(">H", len(entries) if count is None else count)
    return b"Exif\0\0MM\0*\0\0\0\x08" + number + b"".join(entries) + bytes(4) + after


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack(">HHI", tag, kind, count) + value.ljust(4, b"\0")


SIX = entry(0x0112, 3, 1, b"\0\x06")
BADLY_WRITTEN = {
    "a signed rational of -1/0": exif(
        SIX, entry(0x9204, 10, 1, struct.pack(">I", 38)), after=struct.pack(">ii", -1, 0)
    ),
    "a value beyond the end": exif(SIX, entry(0x9204, 10, 1, struct.pack(">I", 9999))),
    "entries that are missing": exif(SIX, count=40),
    "an unknown type": exif(SIX, entry(0x9204, 99, 1, b"")),
    "a directory inside itself": exif(SIX, entry(0x8769, 4, 1, struct.pack(">I", 8))),
    "a long integer": exif(entry(0x0112, 4, 1, struct.pack(">I", 6))),
    "two values": exif(entry(0x0112, 3, 2, b"\0\x06\0\x06")),
}
WITHOUT_ORIENTATION = {
    "zero": exif(entry(0x0112, 3, 1, b"\0\0")),
    "nine": exif(entry(0x0112, 3, 1, b"\0\x09")),
    "text": exif(entry(0x0112, 2, 2, b"6\0")),
    "bytes": exif(entry(0x0112, 7, 1, b"\x06")),
    "nothing": b"Exif\0\0",
    "noise": b"Exif\0\0noise",
}


@pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.TiffImagePlugin")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("case", [*BADLY_WRITTEN, *WITHOUT_ORIENTATION])
def test_bad_exif_loses_no_photograph(case: str, file_format: str) -> None:
    wide, stored = Image.new("RGB", (40, 24)), io.BytesIO()
    wide.save(stored, file_format, exif=(BADLY_WRITTEN | WITHOUT_ORIENTATION)[case])
    assert image_error(io.BytesIO(stored.getvalue())) is None
    assert read_rgb(io.BytesIO(stored.getvalue())).size == ((24, 40) if case in BADLY_WRITTEN else (40, 24))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientations_match_pillow(file_format: str, orientation: int) -> None:
    stored, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = orientation
    PICTURE.crop((0, 0, 32, 16)).save(stored, file_format, exif=tags)
    image, expected = read_rgb(stored), ImageOps.exif_transpose(Image.open(stored))
    assert image.size == expected.size and image.tobytes() == expected.convert("RGB").tobytes()
    assert ImageOps.exif_transpose(image).size == image.size  # it is not turned twice


def test_orientation_in_xmp() -> None:
    stored = io.BytesIO()
    Image.new("RGB", (40, 24)).save(stored, "JPEG", xmp=b'<rdf:Description tiff:Orientation="8"/>')
    assert read_rgb(stored).size == (24, 40)


@pytest.fixture
def no_warning_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable_module, "_WARNED", set())


def gray(file_format: str, bits: int, dtype: str = "uint16") -> io.BytesIO:
    """Return a gray image that rises from 0 to the largest value of `bits`."""
    stored = io.BytesIO()
    Image.fromarray(np.linspace(0, 2**bits - 1, 256).round().astype(dtype).reshape(16, 16)).save(stored, file_format)
    return stored


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_dark_gray_warns(file_format: str, no_warning_yet: None, caplog: pytest.LogCaptureFixture) -> None:
    assert np.asarray(read_rgb(gray(file_format, 12))).max() == 15
    read_rgb(gray(file_format, 10))
    (record,) = caplog.records  # one for the whole process
    assert "4095 of 65535" in record.message and "data.gray_range: [0, 4095]" in record.message
    pixels = np.asarray(read_rgb(gray(file_format, 12), (0, 4095)))
    assert np.abs(pixels[..., 0].reshape(-1).astype(int) - np.arange(256)).max() <= 1
    assert pixels.min() == 0 and pixels.max() == 255


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_said_once(file_format: str, no_warning_yet: None, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    for several in (False, True, True):
        stored = io.BytesIO()
        frames[0].save(stored, file_format, save_all=several, append_images=frames[1:] if several else [])
        assert read_rgb(stored).getpixel((3, 3))[0] > 200  # type: ignore[index]
    (record,) = caplog.records
    assert "has several frames; of such images the first is used" in record.message


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_said_once(mode: str, no_warning_yet: None, caplog: pytest.LogCaptureFixture) -> None:
    for alpha in (255, 7, 7):
        stored = io.BytesIO()
        options = {"transparency": bytes([alpha] * 256)} if mode == "P" else {}
        image = Image.new("RGBA", (16, 16), (200, 200, 200, alpha)).convert(mode)
        image.save(stored, "PNG", **options)
        read_rgb(stored)
    (record,) = caplog.records
    assert "is partly transparent; the colors under it are used" in record.message


@pytest.mark.parametrize("bits", [15, 16])
def test_16_bit_gray_does_not_warn(bits: int, no_warning_yet: None, caplog: pytest.LogCaptureFixture) -> None:
    assert np.asarray(read_rgb(gray("PNG", bits))).max() == 2**bits - 1 >> 8
    assert not caplog.records


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_gray_range_of_32_bit_images(dtype: str) -> None:
    assert "data.gray_range" in str(image_error(gray("TIFF", 12, dtype)))
    assert image_error(gray("TIFF", 12, dtype), gray_range=(0, 4095)) is None
    assert np.asarray(read_rgb(gray("TIFF", 12, dtype), (1000, 2000))).max() == 255
    stored = io.BytesIO()
    Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(stored, "TIFF")
    assert image_error(stored, gray_range=(0, 1)) == "some of its pixels are not numbers"


def test_every_source_uses_gray_range(tmp_path: Path) -> None:
    content = gray("PNG", 12).getvalue()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(content)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image())
    datasets.Dataset.from_dict({"image": [{"bytes": content, "path": None}]}, features).save_to_disk(tmp_path / "hub")
    for spec in (tmp_path / "folder", f"webdataset:{tmp_path / 'a.tar'}", f"hf:{tmp_path / 'hub'}"):
        dark, bright = (ImagesConfig(str(spec), 16, gray_range=given).open("train") for given in (None, (0, 4095)))
        assert np.asarray(dark.image(0)).max() == 15 and np.asarray(bright.image(0)).max() == 255
        assert dark.fingerprint() != bright.fingerprint()  # they are different images


@pytest.mark.parametrize("given", [(4095, 0), (1, 1), (0, float("inf")), (float("nan"), 1)])
def test_gray_range_must_increase(given: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"gray_range must be \[black, white\] with black < white, got"):
        ImagesConfig(gray_range=given)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text on other systems")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    PICTURE.save(os.fsdecode(folder + b"/\xff.png"))
    Path(os.fsdecode(folder + b"/\xfe.png")).write_bytes(b"not an image")
    source = FolderImages(tmp_path, ReadOptions(unreadable_list=tmp_path / "unreadable.txt"))
    assert len(source) == 1 and len(source.fingerprint()) == 64
    assert (tmp_path / "unreadable.txt").read_bytes() == folder + b"/\xfe.png\tnot an image\n"
