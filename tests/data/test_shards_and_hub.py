"""Images from tar shards and from the datasets library."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from vavae.data import ImageSource, open_images
from vavae.data.huggingface import HuggingFaceImages
from vavae.data.ranges import expand_shards
from vavae.data.webdataset import WebDatasetImages
from vavae.errors import RunError, UserError
from vavae.stages.images import ImagesConfig


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(number)).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def labelled(labels: list[int]) -> list[tuple[str, bytes]]:
    return [pair for n, k in enumerate(labels) for pair in ((f"{n}.png", png(n)), (f"{n}.cls", str(k).encode()))]


def write_shards(folder: Path) -> str:
    """Two shards of three samples: labels in .cls, in .json, and under its other name for the last."""
    for shard in range(2):
        with tarfile.open(folder / f"images-{shard:03d}.tar", "w") as archive:
            for n in range(3 * shard, 3 * shard + 3):
                members = {"png": png(n), "txt": b"a caption"}
                if n < 3:
                    members["cls"] = str(n % 2).encode()
                else:
                    members["json"] = json.dumps({"label": 2} if n < 5 else {"class_id": 0}).encode()
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


def test_a_shard_that_was_written_anew_is_indexed_anew(tmp_path: Path) -> None:
    """Its size says nothing: archives are padded to multiples of 10,240 bytes."""
    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    before = WebDatasetImages(str(path), tmp_path / "cache")
    size, state = path.stat().st_size, path.stat()
    write_tar(path, labelled([1, 0]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    after = WebDatasetImages(str(path), tmp_path / "cache")
    assert path.stat().st_size == size
    assert [after.label(i) for i in range(2)] == [1, 0] and after.fingerprint() != before.fingerprint()


def test_one_name_in_two_folders_is_two_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, labels in (("x", [0, 1]), ("y", [1, 0])):
        (tmp_path / folder).mkdir()
        path = write_tar(tmp_path / folder / "a.tar", labelled(labels))
        os.utime(path, ns=(10**18, 10**18))
        monkeypatch.chdir(tmp_path / folder)
        images = WebDatasetImages("a.tar", tmp_path / "cache")
        assert [images.label(i) for i in range(2)] == labels
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(np.asarray(images.image(1)), picture(1))  # a relative name means where it was opened


@pytest.mark.parametrize("told", [True, False])
def test_a_remote_shard_that_changed_is_indexed_anew(
    told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what its store tells of it, or by its beginning where that is nothing but a size."""
    from fsspec.implementations.memory import MemoryFileSystem

    original = MemoryFileSystem.info

    def info(self: MemoryFileSystem, path: str, **options: object) -> dict[str, object]:
        stamp = {"ETag": hash(self.store[path].getvalue())} if told else {}
        return {"name": path, "type": "file", "size": original(self, path)["size"], **stamp}

    monkeypatch.setattr(MemoryFileSystem, "info", info)
    memory = MemoryFileSystem()
    for labels in ([0, 1], [1, 0]):
        memory.pipe(f"/told-{told}/a.tar", write_tar(tmp_path / "a.tar", labelled(labels)).read_bytes())
        images = WebDatasetImages(f"memory://told-{told}/a.tar", tmp_path / "cache")
        assert [images.label(i) for i in range(2)] == labels
        assert np.array_equal(np.asarray(images.image(1)), picture(1))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
def test_shards_do_not_exhaust_open_files(tmp_path: Path) -> None:
    for n in range(80):
        write_tar(tmp_path / f"{n:03d}.tar", [("1.png", png(n))])
    images = WebDatasetImages(f"{tmp_path}/{{000..079}}.tar", tmp_path / "cache")
    opened = len(list(Path("/proc/self/fd").iterdir()))
    order = np.random.default_rng(0).permutation(np.tile(np.arange(80), 6)).tolist()
    with ThreadPoolExecutor(8) as pool:
        for n, image in zip(order, pool.map(images.image, order), strict=True):
            assert np.array_equal(np.asarray(image), picture(n))
        assert len(list(Path("/proc/self/fd").iterdir())) <= opened + 64


def _same_pictures(images: WebDatasetImages) -> bool:
    return all(np.array_equal(np.asarray(images.image(i)), picture(i)) for i in range(len(images)))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_shards_are_read_in_other_processes(method: str, tmp_path: Path) -> None:
    images = WebDatasetImages(write_shards(tmp_path), tmp_path / "cache")
    assert _same_pictures(images) and _same_pictures(pickle.loads(pickle.dumps(images)))
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert all(pool.map(_same_pictures, [images] * 4))
    assert _same_pictures(images)


def test_a_shard_that_was_cut_is_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    images = WebDatasetImages(str(path), tmp_path / "cache")
    os.truncate(path, 600)
    with pytest.raises(UserError, match=r"cannot read image 1 of .*a\.tar: 0 bytes came back"):
        images.image(1)


def damaged(whole: bytes, damage: str, at: tarfile.TarInfo) -> bytes:
    """The bytes of a shard with a fault at one of its members."""
    head, offset = whole[: at.offset], at.offset
    return {
        "a broken header": head + b"\xff" * 100 + whole[offset + 100 :],
        "a header of zeros": head + bytes(512) + whole[offset + 512 :],
        "cut before a member": head,
        "cut in a header": whole[: offset + 300],
        "cut after a header": whole[: at.offset_data],
        "cut in an image": whole[: at.offset_data + 20],
        "space reserved for the rest": head + bytes(2**21),
        "another archive behind": whole + whole,
    }[damage]


DAMAGES = [
    *("a broken header", "a header of zeros", "cut before a member", "cut in a header", "cut after a header"),
    *("cut in an image", "space reserved for the rest", "another archive behind"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_of_which_a_part_is_lost_is_refused(damage: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labelled([0, 1, 0, 1]))
    with tarfile.open(path) as archive:
        member = archive.getmembers()[4]
    path.write_bytes(damaged(path.read_bytes(), damage, member))
    for _ in range(2):  # nothing is stored of it
        with pytest.raises(UserError, match=rf"shard {path} (is damaged or incomplete: at byte \d+|cannot be read)"):
            WebDatasetImages(str(path), tmp_path / "cache")


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("options", [[], ["--format=posix"], ["--blocking-factor=2048"]])
def test_shards_of_gnu_tar_are_whole(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    subprocess.run(["tar", "-cf", "a.tar", *options, "1.png"], cwd=tmp_path, check=True)
    assert len(WebDatasetImages(str(tmp_path / "a.tar"), tmp_path / "cache")) == 1


def test_a_shard_that_ends_with_one_block_of_zeros_is_whole(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset
    os.truncate(path, end + 512)
    assert len(WebDatasetImages(str(path), tmp_path / "cache")) == 2


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    WebDatasetImages(str(path), tmp_path / "cache")
    (index,) = (tmp_path / "cache").iterdir()
    for damage in ("{", "[]", '{"entries": [[1]], "only_labelled": null}'):
        index.write_text(damage)
        assert len(WebDatasetImages(str(path), tmp_path / "cache")) == 2


def test_shards_are_indexed_by_several_threads_and_kept_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vavae.data import webdataset

    spec = write_shards(tmp_path)
    monkeypatch.setattr(webdataset, "_WORTH_SHOWING", 0)
    original, scanned = webdataset._scan, []

    def scan(file: object, address: str, *rest: object) -> object:
        scanned.append(address[-7:])
        if len(scanned) == 2:
            raise KeyboardInterrupt
        return original(file, address, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(webdataset, "_scan", scan)
    monkeypatch.setattr(webdataset, "threads", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        WebDatasetImages(spec, tmp_path / "cache")
    monkeypatch.setattr(webdataset, "threads", lambda: 2)
    assert len(WebDatasetImages(spec, tmp_path / "cache")) == 6
    assert scanned == ["000.tar", "001.tar", "001.tar"]
    assert "indexing shards" in capsys.readouterr().err


def test_of_several_images_the_plain_name_counts(tmp_path: Path) -> None:
    members = [("1.aaa.png", png(5)), ("1.png", png(1)), ("1.seg.png", png(6)), ("2.seg.jpg.png", png(2))]
    images = WebDatasetImages(str(write_tar(tmp_path / "a.tar", [*members, ("._2.png", b"")])), tmp_path / "cache")
    assert len(images) == 2 and images.num_classes == 1 and not images.unreadable
    assert [np.array_equal(np.asarray(images.image(i)), picture(i + 1)) for i in range(2)] == [True, True]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([(f"holiday.{n}.png", png(n)) for n in range(3)], r"holiday\.0\.png and holiday\.1\.png are one sample"),
        ([("1.png", png(0)), ("1.png", png(1))], r"a\.tar holds 1\.png twice in one sample"),
        ([*labelled([1]), ("x/7.png", png(7))], r"x/7\.png has no label, and .*0\.png has one"),
        ([("1.png", png(1)), ("2.png", png(2)), ("1.cls", b"1")], r"1\.png has no label, and .*: 1 \(no image beside"),
        ([("1.png", png(1)), ("1.json", b"[3]")], r"1\.json: holds no object with a label"),
        ([("1.png", png(1)), ("1.json", b'{"label": null}')], r"1\.json: its label 'None' is not a class number"),
        ([("1.png", png(1)), ("1.json", b'{"label": "cat"}')], r"1\.json: its label 'cat' is not a class number"),
        ([("1.png", png(1)), ("1.json", b'{"label": 1.5}')], r"1\.json: its label '1.5' is not a class number"),
        ([("1.png", png(1)), ("1.json", b"{")], r"1\.json: "),
        ([("1.png", png(1)), ("1.cls", b"cat\n")], r"1\.cls: its label 'cat' is not a class number"),
        ([("1.png", png(1)), ("1.cls", b"-1")], r"1\.cls: its label -1 is hidden"),
    ],
)
def test_samples_in_doubt_are_refused(members: list[tuple[str, bytes]], told: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    for _ in range(2):  # the second time from the stored index, if there is one
        with pytest.raises(UserError, match=told):
            WebDatasetImages(str(path), tmp_path / "cache")


def test_shard_mistakes_are_one_line(tmp_path: Path) -> None:
    assert expand_shards("a-{08..11}.tar::b.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar", "b.tar"]
    with pytest.raises(UserError, match=r"shard .*none.tar cannot be read"):
        open_images(f"webdataset:{tmp_path}/none.tar")
    with pytest.raises(UserError, match=r"shard s9://x.tar cannot be read \(Protocol not known"):
        open_images("webdataset:s9://x.tar")
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


def test_a_hub_set_without_a_name_is_told() -> None:
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"^images: hf: names no data set"):
            open_images("hf:", split)


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
    with pytest.raises(UserError, match=r"column label of the test part of .*: row 0: its label -1 is hidden"):
        open_images(f"hf:{tmp_path / 'hidden'}", "test")


@pytest.mark.parametrize("labels", [[0, None], [[0], [1, 2]], [[0], [1]], [0.5, 1.0]])
def test_labels_of_hub_sets_that_are_no_numbers_are_told(labels: list[object], tmp_path: Path) -> None:
    rows = {"picture": [{"bytes": png(n), "path": None} for n in range(2)], "label": labels}
    made = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    made.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(
        UserError, match=r"label of the train part of .*set: row \d: its label '.*' is not a class number"
    ):
        open_images(f"hf:{tmp_path / 'set'}")


def test_rows_of_hub_sets_without_an_image_are_left_out(tmp_path: Path) -> None:
    made = hub_set([png(0), png(1)], [0, 1])
    kinds = made.features
    rows = [*made.cast_column("picture", datasets.Image(decode=False)), {"picture": None, "label": 1}]
    datasets.Dataset.from_list(rows, features=kinds).save_to_disk(str(tmp_path / "set"))
    images = open_images(f"hf:{tmp_path / 'set'}")
    assert len(images) == 2 and isinstance(images, HuggingFaceImages)
    assert images.unreadable == [(f"{tmp_path / 'set'} train 2", "there is no image")]


def test_parts_of_a_hub_set_with_other_classes_are_refused(tmp_path: Path) -> None:
    train, test = hub_set([png(0), png(1)], [0, 1]), hub_set([png(2)], [0])
    test = test.cast_column("label", datasets.ClassLabel(names=["dog", "emu"]))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "set"))
    assert len(open_images(f"hf:{tmp_path / 'set'}")) == 2
    with pytest.raises(UserError, match=r"the test part of .* has other classes in label than the train part"):
        open_images(f"hf:{tmp_path / 'set'}", "test")


def test_a_holdout_of_a_hub_set(tmp_path: Path) -> None:
    """Of its training part where that is all there is; a test part of its own is used as it is."""
    train, test = hub_set([png(n) for n in range(8)], [0, 1] * 4), hub_set([png(9)], [0])
    datasets.DatasetDict({"train": train}).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "two"))
    for name, sizes in (("one", (6, 2)), ("two", (8, 1))):
        config = ImagesConfig(f"hf:{tmp_path / name}", 8, holdout=0.25)
        assert (len(config.open("train")), len(config.open("test"))) == sizes


def test_too_little_memory_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    images = WebDatasetImages(str(path), tmp_path / "cache")
    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(RunError, match=r"not enough memory to decode image 1 of .*a\.tar"):
        images.image(1)
    with pytest.raises(RunError, match=r"not enough memory to index the shard .*a\.tar"):
        WebDatasetImages(str(path), tmp_path / "other")
