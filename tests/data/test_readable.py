"""Which images cannot be read: judged as they will be read, remembered, and never for a fault of the machine."""

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, features

from vavae.data import DemoImages, FolderImages, read_rgb
from vavae.data import readable as readable_module
from vavae.data.readable import find_unreadable, image_error
from vavae.errors import RunError, UserError

PICTURE = DemoImages("train").image(0)


def search(error_of: Callable[[int], str | None], folder: Path, count: int = 1000) -> dict[int, str]:
    return find_unreadable(count, error_of, lambda number: f"number {number}", ("a set",), folder)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_what_has_no_rgb_is_found_before_it_is_used(mode: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        PICTURE.save(tmp_path / name)
    Image.new(mode, (16, 16)).save(tmp_path / "odd.tif")
    source = FolderImages(tmp_path)
    assert [path.name for path in source.paths] == ["a.png", "b.png"]
    assert [path.name for path, _ in source.unreadable] == ["odd.tif"]
    for whole in (True, False):  # the beginning of a file tells its mode
        assert "32-bit numbers of unknown range" in str(image_error(tmp_path / "odd.tif", whole))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "file_format",
    [
        pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")),
        *("PNG", "TIFF", "WEBP", "JPEG"),
    ],
)
def test_the_check_and_the_reader_agree_on_damage(file_format: str) -> None:
    """Some decoders raise RuntimeError or zlib.error, which is neither OSError nor ValueError."""
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


def test_any_error_of_a_decoder_is_a_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
def test_a_file_that_cannot_be_got_at_is_named_and_not_remembered(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
def test_too_little_memory_is_no_verdict(error: Exception, tmp_path: Path) -> None:
    def fails(_: int) -> None:
        raise error

    with pytest.raises(RunError, match="not enough memory to decode image number 0"):
        search(fails, tmp_path)


def test_another_pillow_judges_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert search(lambda number: "bad" if number == 3 else None, tmp_path) == {3: "bad"}
    assert search(lambda number: None, tmp_path) == {3: "bad"}
    monkeypatch.setattr(PIL, "__version__", "99.0")
    assert search(lambda number: None, tmp_path) == {}


def test_a_search_never_holds_all_images_at_once(tmp_path: Path) -> None:
    def ends(number: int) -> None:
        if number == 5000:
            raise OSError(errno.EIO, "far enough")

    with pytest.raises(UserError, match=r"image number 5000: .*far enough"):
        search(ends, tmp_path, 10**12)


def test_a_search_that_was_ended_goes_on_where_it_was(
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


def test_what_was_found_is_stored_while_the_search_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kill leaves no time to store it."""
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
def test_a_damaged_record_is_made_anew(damage: str, tmp_path: Path) -> None:
    search(lambda number: None, tmp_path)
    (stored,) = tmp_path.glob("*.json")
    stored.write_text(damage)
    assert search(lambda number: "bad" if number == 3 else None, tmp_path) == {3: "bad"}


def test_a_cache_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert search(lambda number: "bad" if number == 3 else None, tmp_path / "file" / "cache") == {3: "bad"}
