"""Images from tar shards and from the datasets library."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from vavae.data import ImageSource, open_images
from vavae.data.huggingface import HuggingFaceImages
from vavae.data.webdataset import WebDatasetImages, expand_shards
from vavae.errors import UserError


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(number)).save(out, "PNG")
    return out.getvalue()


def write_shards(folder: Path) -> str:
    """Two shards of three samples: labels in .cls, in .json, and none for the last."""
    for shard in range(2):
        with tarfile.open(folder / f"images-{shard:03d}.tar", "w") as archive:
            for n in range(3 * shard, 3 * shard + 3):
                members = {"png": png(n), "txt": b"a caption"}
                if n < 3:
                    members["cls"] = str(n % 2).encode()
                elif n < 5:
                    members["json"] = json.dumps({"label": 2}).encode()
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"part/{n:06d}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return str(folder / "images-{000..001}.tar")


def test_shards_are_an_indexable_list(tmp_path: Path) -> None:
    spec = write_shards(tmp_path)
    images = WebDatasetImages(spec, tmp_path / "cache")
    assert isinstance(images, ImageSource) and len(images) == 6
    assert [images.label(i) for i in range(6)] == [0, 1, 0, 2, 2, 0] and images.num_classes == 3
    order = [5, 0, 3, 1, 4, 2] * 8
    with ThreadPoolExecutor(4) as pool:  # threads share nothing but the index
        for n, image in zip(order, pool.map(images.image, order), strict=True):
            assert np.array_equal(np.asarray(image), picture(n))


def test_the_second_opening_reads_the_stored_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_shards(tmp_path)
    first = WebDatasetImages(spec, tmp_path / "cache")
    monkeypatch.setattr("vavae.data.webdataset._scan", None)
    second = WebDatasetImages(spec, tmp_path / "cache")
    assert second.fingerprint() == first.fingerprint()
    assert np.array_equal(np.asarray(second.image(4)), picture(4))


def test_shards_over_fsspec_addresses(tmp_path: Path) -> None:
    import fsspec

    write_shards(tmp_path)
    memory = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    images = WebDatasetImages("memory://bucket/images-{000..001}.tar", tmp_path / "cache")
    assert np.array_equal(np.asarray(images.image(3)), picture(3))


def test_corrupt_images_of_shards_are_named_and_skipped(tmp_path: Path) -> None:
    contents = [png(0), png(1)[:60], png(2), b"no image"]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for n, content in enumerate(contents):
            for extension, data in (("png", content), ("cls", str(n).encode())):
                info = tarfile.TarInfo(f"{n}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for _ in range(2):  # the second time from the stored index
        images = WebDatasetImages(str(tmp_path / "a.tar"), tmp_path / "cache", tmp_path / "unreadable.txt")
        assert len(images) == len(images.unreadable) == 2 and [images.label(i) for i in range(2)] == [0, 2]
        assert np.array_equal(np.asarray(images.image(1)), picture(2))
        lines = (tmp_path / "unreadable.txt").read_text().splitlines()
        assert [line.split("\t")[0] for line in lines] == [f"{tmp_path}/a.tar: 1.png", f"{tmp_path}/a.tar: 3.png"]
        assert lines[1].endswith("not an image")


def test_shard_mistakes_are_one_line(tmp_path: Path) -> None:
    assert expand_shards("a-{08..11}.tar::b.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar", "b.tar"]
    with pytest.raises(UserError, match=r"shard .*none.tar cannot be read"):
        open_images(f"webdataset:{tmp_path}/none.tar")
    (tmp_path / "text.tar").write_text("no archive " * 100)
    with pytest.raises(UserError, match=r"text.tar cannot be read"):
        WebDatasetImages(str(tmp_path / "text.tar"), tmp_path / "cache")


def test_hub_sets_without_the_library_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'vavae\[datasets\]'"):
        open_images("hf:somebody/something")


def hub_set(contents: list[bytes], labels: list[int]) -> datasets.Dataset:
    kinds = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"picture": [{"bytes": content, "path": None} for content in contents], "label": labels}
    return datasets.Dataset.from_dict(rows, features=kinds)


def test_hub_sets_saved_to_disk(tmp_path: Path) -> None:
    hub_set([png(n) for n in range(4)], [0, 1, 1, 0]).save_to_disk(str(tmp_path / "set"))
    images = open_images(f"hf:{tmp_path / 'set'}")
    assert isinstance(images, ImageSource) and isinstance(images, HuggingFaceImages)
    assert images.class_names == ("cat", "dog") and [images.label(i) for i in range(4)] == [0, 1, 1, 0]
    assert np.array_equal(np.asarray(images.image(2)), picture(2))
    assert images.fingerprint() == open_images(f"hf:{tmp_path / 'set'}").fingerprint()
    order = [3, 0, 2, 1] * 8
    with ThreadPoolExecutor(4) as pool:
        for n, image in zip(order, pool.map(images.image, order), strict=True):
            assert np.array_equal(np.asarray(image), picture(n))


def test_corrupt_images_of_hub_sets_are_named_and_skipped(tmp_path: Path) -> None:
    hub_set([png(0), png(1)[:60], png(2)], [0, 1, 1]).save_to_disk(str(tmp_path / "set"))
    images = open_images(f"hf:{tmp_path / 'set'}", "train", tmp_path / "unreadable.txt")
    assert [images.label(i) for i in range(len(images))] == [0, 1]
    assert np.array_equal(np.asarray(images.image(1)), picture(2))
    assert (tmp_path / "unreadable.txt").read_text().startswith(f"{tmp_path / 'set'} train 1\t")


def test_hub_sets_have_parts(tmp_path: Path) -> None:
    """As in ImageNet, whose test labels are hidden: the validation part is what is tested on."""
    parts = {"train": ([png(0), png(1)], [0, 1]), "validation": ([png(2)], [1]), "test": ([png(3)], [-1])}
    whole = datasets.DatasetDict({name: hub_set(*rows) for name, rows in parts.items()})
    whole.save_to_disk(str(tmp_path / "set"))
    assert len(open_images(f"hf:{tmp_path / 'set'}")) == 2
    tested = open_images(f"hf:{tmp_path / 'set'}", "test")
    assert len(tested) == 1 and np.array_equal(np.asarray(tested.image(0)), picture(2))
    del whole["validation"]
    whole.save_to_disk(str(tmp_path / "hidden"))
    with pytest.raises(UserError, match="hidden labels"):
        open_images(f"hf:{tmp_path / 'hidden'}", "test")
