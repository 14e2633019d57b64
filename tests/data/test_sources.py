"""Image sources: embedded images, CIFAR-10, folders."""

import hashlib
import io
import json
import os
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vavae.data import (
    DemoImages,
    FolderImages,
    ImageSource,
    ReadOptions,
    demo_pixels,
    open_images,
)
from vavae.data.sources import ArrayImages
from vavae.errors import UserError

DEMO = DemoImages("train")


def write_image(path: Path, index: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    DEMO.image(index).save(path, **options)
    return path


@pytest.mark.parametrize(("split", "count"), [("train", 5000), ("test", 1000)])
def test_demo_pixels_match_their_hash(split, count):
    entry = json.loads((resources.files("vavae.assets") / "demo_images" / "demo.json").read_text())["splits"][split]
    pixels = demo_pixels(split)
    assert pixels.shape == (count, 32, 32, 3) and pixels.dtype == np.uint8
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == entry["pixels_sha256"]
    source = DemoImages(split)
    assert np.bincount(source.labels).tolist() == [count // 10] * 10
    assert entry["original_indices"] == sorted(set(entry["original_indices"]))


def test_demo_hashes_are_pinned():
    # Recorded when the images were packed from files whose own hashes were checked.
    assert DemoImages("train").fingerprint() == "f336394dd2378e393c21d1fac0de979b620e2003bb8a9d063063d11e7672ed83"
    assert DemoImages("test").fingerprint() == "9c11899df3b678a6cd615fa289d608cf9f7fe2e61f0b2d616f7f78063c0d3dfc"


def test_demo_source_facts():
    assert isinstance(DEMO, ImageSource)
    assert DEMO.class_names[0] == "airplane" and DEMO.class_names[6] == "frog" and DEMO.num_classes == 10
    assert [DEMO.class_names[DEMO.label(i)] for i in range(3)] == ["frog", "truck", "truck"]
    assert DEMO.image(0).size == (32, 32) and DEMO.image(0).mode == "RGB"
    assert "Krizhevsky" in DEMO.provenance and "no licen" in DEMO.provenance
    # Packed files are part of the installation and stay small.
    folder = resources.files("vavae.assets") / "demo_images"
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) < 16e6


def test_splits_share_no_image():
    train = {image.tobytes() for image in demo_pixels("train")}
    assert not any(image.tobytes() in train for image in demo_pixels("test"))


def test_array_images_check_shapes_and_labels():
    with pytest.raises(ValueError, match="uint8"):
        ArrayImages(np.zeros((2, 4, 4, 3), dtype=np.float32), [0, 0], ["a"], "x")
    with pytest.raises(ValueError, match="labels must be in"):
        ArrayImages(np.zeros((2, 4, 4, 3), dtype=np.uint8), [0, 1], ["a"], "x")


def test_fingerprint_covers_pixels_labels_order():
    pixels = np.array(DEMO.pixels[:4])
    prints = {
        ArrayImages(pixels, [0, 1, 0, 1], "ab", "x").fingerprint(),
        ArrayImages(pixels, [0, 1, 1, 1], "ab", "x").fingerprint(),
        ArrayImages(pixels[::-1].copy(), [0, 1, 0, 1], "ab", "x").fingerprint(),
        ArrayImages(pixels, [0, 1, 0, 1], "ac", "x").fingerprint(),
    }
    assert len(prints) == 4
    assert ArrayImages(pixels, [0, 1, 0, 1], "ab", "other name").fingerprint() in prints


def test_folder_classes_are_sorted_and_nested(tmp_path):
    write_image(tmp_path / "zebra" / "deep" / "1.png", 1)
    write_image(tmp_path / "ant" / "b.png", 2)
    write_image(tmp_path / "ant" / "a.PNG", 3)
    write_image(tmp_path / ".hidden" / "x.png", 4)
    (tmp_path / "ant" / "notes.txt").write_text("other text")
    (tmp_path / "empty").mkdir()
    source = FolderImages(tmp_path)
    assert isinstance(source, ImageSource)
    assert source.class_names == ("ant", "zebra")
    assert [path.name for path in source.paths] == ["a.PNG", "b.png", "1.png"]
    assert source.labels.tolist() == [0, 0, 1]
    for index, original in enumerate((3, 2, 1)):
        assert (np.asarray(source.image(index)) == DEMO.pixels[original]).all()


def test_flat_folder_has_one_class(tmp_path):
    write_image(tmp_path / "1.png")
    source = FolderImages(tmp_path)
    assert source.num_classes == 1 and source.label(0) == 0


def test_mixed_folder_is_refused(tmp_path):
    write_image(tmp_path / "1.png")
    write_image(tmp_path / "cats" / "1.png")
    with pytest.raises(UserError, match=r"1\.png.*cats"):
        FolderImages(tmp_path)


def test_link_loops_end(tmp_path):
    write_image(tmp_path / "cats" / "1.png")
    (tmp_path / "cats" / "loop").symlink_to(tmp_path / "cats")
    assert len(FolderImages(tmp_path)) == 1


def test_folder_skips_unreadable_images(tmp_path):
    folder, listing = tmp_path / "images", tmp_path / "unreadable.txt"
    write_image(folder / "a" / "good.png")
    write_image(folder / "a" / "cut.jpg", 1, quality=95)
    write_image(folder / "b" / "also-cut.png", 2)
    write_image(folder / "c" / "good.jpg", 3)
    for name in ("a/cut.jpg", "b/also-cut.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "a" / "text.jpeg").write_text("hello")
    (folder / "a" / "nothing.png").write_bytes(b"")
    source = FolderImages(folder, options=ReadOptions(unreadable_list=listing))
    assert [path.name for path in source.paths] == ["good.png", "good.jpg"]
    # A class keeps its number if all of its images fail: labels must not depend on damage.
    assert source.labels.tolist() == [0, 2]
    assert {Path(name).name for name, _ in source.unreadable} == {"cut.jpg", "also-cut.png", "text.jpeg", "nothing.png"}
    lines = dict(line.split("\t") for line in listing.read_text().splitlines())
    assert lines[str(folder / "a" / "text.jpeg")] == "not an image"
    assert len(lines) == 4 and "truncated" in lines[str(folder / "a" / "cut.jpg")]


def test_large_folder_is_checked_once(tmp_path, monkeypatch):
    from vavae.data import readable

    monkeypatch.setattr(readable, "_WORTH_KEEPING", 3)
    monkeypatch.setattr(readable, "cache_folder", lambda: tmp_path / "cache")
    paths = [write_image(tmp_path / "images" / f"{n}.png", n) for n in range(4)]
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    looked_at = []
    original = readable.image_error
    monkeypatch.setattr("vavae.data.folders.image_error", lambda path, *_: looked_at.append(path) or original(path))
    for _ in range(2):
        source = FolderImages(tmp_path / "images")
        assert [path.name for path in source.paths] == ["0.png", "2.png", "3.png"]
        assert [Path(name).name for name, _ in source.unreadable] == ["1.png"]
    assert len(looked_at) == 4
    write_image(paths[1], 1)
    assert len(FolderImages(tmp_path / "images")) == 4 and len(looked_at) == 8


def test_header_check_leaves_truncation_to_reader(tmp_path):
    path = write_image(tmp_path / "cut.jpg", quality=95)
    path.write_bytes(path.read_bytes()[:-200])
    (tmp_path / "text.jpg").write_text("hello")
    source = FolderImages(tmp_path, options=ReadOptions(check="header"))
    assert len(source) == 1
    with pytest.raises(UserError, match=r"cut\.jpg"):
        source.image(0)


def test_nothing_readable(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder of images"):
        FolderImages(tmp_path / "absent")
    with pytest.raises(UserError, match=f"no images in folder: {tmp_path}"):
        FolderImages(tmp_path)
    (tmp_path / "broken.png").write_text("no")
    with pytest.raises(UserError, match=r"no readable images in folder.*broken\.png"):
        FolderImages(tmp_path)


def test_odd_modes_become_rgb(tmp_path):
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a16.png")
    Image.fromarray((ramp >> 8).astype(np.uint8)).save(tmp_path / "b8.png")
    Image.fromarray(np.full((16, 16, 4), (10, 20, 30, 0), dtype=np.uint8)).save(tmp_path / "c_alpha.png")
    Image.fromarray(np.full((16, 16, 3), 50, dtype=np.uint8)).convert("CMYK").save(tmp_path / "d.jpg")
    DEMO.image(0).convert("P").save(tmp_path / "e.gif", save_all=True, append_images=[DEMO.image(1).convert("P")])
    source = FolderImages(tmp_path)
    images = [source.image(i) for i in range(len(source))]
    assert len(images) == 5 and all(image.mode == "RGB" for image in images)
    assert (np.asarray(images[0]) == np.asarray(images[1])).all()
    assert (np.asarray(images[2]) == (10, 20, 30)).all()
    assert images[4].size == (32, 32)


def test_file_instead_of_folder_is_refused(tmp_path):
    write_image(tmp_path / "one.png", 0)
    with pytest.raises(UserError, match=r"one\.png is a file: give the folder"):
        open_images(str(tmp_path / "one.png"))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_images_are_named_on_reading(mode, tmp_path):
    """Pillow would turn a float TIFF black, and one of 32-bit integers white."""
    Image.new(mode, (16, 16), 1).save(tmp_path / "depth.tif")
    with pytest.raises(UserError, match=r"depth\.tif: its pixels are 32-bit numbers of unknown range"):
        FolderImages(tmp_path).image(0)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned by 90 degrees clockwise
    write_image(tmp_path / "turned.png", 0, exif=exif)
    upright = FolderImages(tmp_path).image(0)
    assert (np.asarray(upright) == np.rot90(DEMO.pixels[0], k=-1)).all()


def test_folder_fingerprint(tmp_path):
    write_image(tmp_path / "a" / "1.png", 1)
    write_image(tmp_path / "b" / "2.png", 2)
    before = FolderImages(tmp_path).fingerprint()
    assert FolderImages(tmp_path).fingerprint() == before
    (tmp_path / "b" / "2.png").rename(tmp_path / "a" / "2.png")
    assert FolderImages(tmp_path).fingerprint() != before


def test_open_images_by_name_and_split(tmp_path):
    assert open_images("demo", "test").name == "demo-test"
    write_image(tmp_path / "train" / "cats" / "1.png")
    write_image(tmp_path / "val" / "cats" / "2.png")
    assert open_images(str(tmp_path), "train").class_names == ("cats",)
    assert open_images(str(tmp_path), "test").paths[0].name == "2.png"
    assert open_images(str(tmp_path / "val"), "train").class_names == ("cats",)
    with pytest.raises(UserError, match="nowhere"):
        open_images(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="dev"):
        open_images("demo", "dev")  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(UserError, match="none of test, val"):
        open_images(str(tmp_path), "test")


def test_parts_number_classes_alike(tmp_path):
    for place in ("train/a", "train/b", "train/c", "val/b", "val/c"):
        write_image(tmp_path / place / "1.png")
    (tmp_path / "train" / "empty").mkdir()
    train, test = open_images(str(tmp_path)), open_images(str(tmp_path), "test")
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [1, 2]
    write_image(tmp_path / "val" / "d" / "1.png")
    with pytest.raises(UserError, match=r"val/d: the training images have no class d"):
        open_images(str(tmp_path), "test")


def test_part_has_the_fingerprint_of_its_folder(tmp_path):
    """Fingerprints name latents and features on disk."""
    for place in ("train/a", "train/b", "val/a", "val/b"):
        write_image(tmp_path / place / "1.png")
    assert open_images(str(tmp_path), "test").fingerprint() == FolderImages(tmp_path / "val").fingerprint()


def test_test_part_without_classes(tmp_path):
    write_image(tmp_path / "train" / "a" / "1.png")
    write_image(tmp_path / "val" / "1.png")
    assert open_images(str(tmp_path), "test").class_names == ("image",)


def test_unlistable_folder_is_named(tmp_path, monkeypatch):
    write_image(tmp_path / "a" / "1.png")
    original = os.scandir

    def fails(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(UserError, match=r"cannot read folder of images .*/a: Permission denied"):
        FolderImages(tmp_path)


def test_cifar10_asset(tmp_path, monkeypatch):
    """The asset has one image per row of a PNG."""
    from vavae import assets

    test = DemoImages("test")
    Image.fromarray(test.pixels.reshape(1000, 1024, 3)).save(tmp_path / "test_batch.png", compress_level=0)
    (tmp_path / "test_lables.json").write_text(json.dumps(test.labels.tolist()))
    for i in range(1, 6):
        part = DEMO.pixels[(i - 1) * 1000 : i * 1000]
        buffer = io.BytesIO()
        Image.fromarray(part.reshape(1000, 1024, 3)).save(buffer, "PNG", compress_level=0)
        (tmp_path / f"data_batch_{i}.png").write_bytes(buffer.getvalue())
    (tmp_path / "train_lables.json").write_text(json.dumps(DEMO.labels.tolist()))
    monkeypatch.setattr(assets, "path", lambda name: tmp_path if name == "cifar10" else None)
    assert open_images("cifar10", "test").fingerprint() == test.fingerprint()
    assert open_images("cifar10").fingerprint() == DEMO.fingerprint()
