"""Images from tar shards and from the datasets library."""

import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as arrow
import pytest
from PIL import Image
from pyarrow import parquet

from vavae.cli import run
from vavae.data import ImageSource, ReadOptions, open_images, ranges
from vavae.data.found import Found
from vavae.data.huggingface import HuggingFaceImages
from vavae.data.images import ImagesConfig
from vavae.data.ranges import expand_shards
from vavae.data.webdataset import WebDatasetImages
from vavae.errors import RunError, UserError


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
    images = WebDatasetImages(spec, cache=tmp_path / "cache")
    assert isinstance(images, ImageSource) and len(images) == 6
    assert [images.label(i) for i in range(6)] == [0, 1, 0, 2, 2, 0] and images.num_classes == 3
    order = [5, 0, 3, 1, 4, 2] * 8
    with ThreadPoolExecutor(4) as pool:  # threads share nothing but the index
        for n, image in zip(order, pool.map(images.image, order), strict=True):
            assert np.array_equal(np.asarray(image), picture(n))


def test_the_second_opening_reads_the_stored_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_shards(tmp_path)
    first = WebDatasetImages(spec, cache=tmp_path / "cache")
    monkeypatch.setattr("vavae.data.webdataset._scan", None)
    second = WebDatasetImages(spec, cache=tmp_path / "cache")
    assert second.fingerprint() == first.fingerprint()
    assert np.array_equal(np.asarray(second.image(4)), picture(4))


def test_shards_over_fsspec_addresses(tmp_path: Path) -> None:
    import fsspec

    write_shards(tmp_path)
    memory = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    images = WebDatasetImages("memory://bucket/images-{000..001}.tar", cache=tmp_path / "cache")
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
        images = WebDatasetImages(
            str(tmp_path / "a.tar"), ReadOptions(unreadable_list=tmp_path / "unreadable.txt"), tmp_path / "cache"
        )
        assert len(images) == len(images.unreadable) == 2 and [images.label(i) for i in range(2)] == [0, 2]
        assert np.array_equal(np.asarray(images.image(1)), picture(2))
        lines = (tmp_path / "unreadable.txt").read_text().splitlines()
        assert [line.split("\t")[0] for line in lines] == [f"{tmp_path}/a.tar: 1.png", f"{tmp_path}/a.tar: 3.png"]
        assert lines[1].endswith("not an image")


def test_a_replaced_shard_is_indexed_again(tmp_path: Path) -> None:
    """Its size says nothing: archives are padded to multiples of 10,240 bytes."""
    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    before = WebDatasetImages(str(path), cache=tmp_path / "cache")
    size, state = path.stat().st_size, path.stat()
    write_tar(path, labelled([1, 0]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    after = WebDatasetImages(str(path), cache=tmp_path / "cache")
    assert path.stat().st_size == size
    assert [after.label(i) for i in range(2)] == [1, 0] and after.fingerprint() != before.fingerprint()


def test_one_name_in_two_folders_is_two_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, labels in (("x", [0, 1]), ("y", [1, 0])):
        (tmp_path / folder).mkdir()
        path = write_tar(tmp_path / folder / "a.tar", labelled(labels))
        os.utime(path, ns=(10**18, 10**18))
        monkeypatch.chdir(tmp_path / folder)
        images = WebDatasetImages("a.tar", cache=tmp_path / "cache")
        assert [images.label(i) for i in range(2)] == labels
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(np.asarray(images.image(1)), picture(1))  # a relative name means where it was opened


@pytest.mark.parametrize("told", [True, False])
def test_a_changed_remote_shard_is_indexed_again(told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        images = WebDatasetImages(f"memory://told-{told}/a.tar", cache=tmp_path / "cache")
        assert [images.label(i) for i in range(2)] == labels
        assert np.array_equal(np.asarray(images.image(1)), picture(1))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
def test_shards_do_not_exhaust_open_files(tmp_path: Path) -> None:
    for n in range(80):
        write_tar(tmp_path / f"{n:03d}.tar", [("1.png", png(n))])
    images = WebDatasetImages(f"{tmp_path}/{{000..079}}.tar", cache=tmp_path / "cache")
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
    images = WebDatasetImages(write_shards(tmp_path), cache=tmp_path / "cache")
    assert _same_pictures(images) and _same_pictures(pickle.loads(pickle.dumps(images)))
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert all(pool.map(_same_pictures, [images] * 4))
    assert _same_pictures(images)


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    images = WebDatasetImages(str(path), cache=tmp_path / "cache")
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
            WebDatasetImages(str(path), cache=tmp_path / "cache")


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("options", [[], ["--format=posix"], ["--blocking-factor=2048"]])
def test_shards_of_gnu_tar_are_whole(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    subprocess.run(["tar", "-cf", "a.tar", *options, "1.png"], cwd=tmp_path, check=True)
    assert len(WebDatasetImages(str(tmp_path / "a.tar"), cache=tmp_path / "cache")) == 1


def test_a_shard_that_ends_with_one_block_of_zeros_is_whole(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset
    os.truncate(path, end + 512)
    assert len(WebDatasetImages(str(path), cache=tmp_path / "cache")) == 2


def test_a_damaged_index_is_replaced(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    WebDatasetImages(str(path), cache=tmp_path / "cache")
    (index,) = (tmp_path / "cache").iterdir()
    for damage in ("{", "[]", '{"entries": [[1]], "only_labelled": null}'):
        index.write_text(damage)
        assert len(WebDatasetImages(str(path), cache=tmp_path / "cache")) == 2


def test_threads_index_shards_and_cache_each_one(
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
        WebDatasetImages(spec, cache=tmp_path / "cache")
    monkeypatch.setattr(webdataset, "threads", lambda: 2)
    assert len(WebDatasetImages(spec, cache=tmp_path / "cache")) == 6
    assert scanned == ["000.tar", "001.tar", "001.tar"]
    assert "indexing shards" in capsys.readouterr().err


def test_of_several_images_the_plain_name_counts(tmp_path: Path) -> None:
    members = [("1.aaa.png", png(5)), ("1.png", png(1)), ("1.seg.png", png(6)), ("2.seg.jpg.png", png(2))]
    images = WebDatasetImages(
        str(write_tar(tmp_path / "a.tar", [*members, ("._2.png", b"")])), cache=tmp_path / "cache"
    )
    assert len(images) == 2 and images.num_classes == 1 and not images.unreadable
    assert [np.array_equal(np.asarray(images.image(i)), picture(i + 1)) for i in range(2)] == [True, True]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([(f"holiday.{n}.png", png(n)) for n in range(3)], r"holiday\.0\.png and holiday\.1\.png are one sample"),
        ([("1.png", png(0)), ("1.png", png(1))], r"a\.tar holds 1\.png twice in one sample"),
        ([*labelled([1]), ("x/7.png", png(7))], r"x/7\.png has no label, and .*0\.png has one"),
        ([("1.png", png(1)), ("2.png", png(2)), ("1.cls", b"1")], r"1\.png has no label, and .*: 1 \(it has no image"),
        ([("1.png", png(1)), ("1.json", b"[3]")], r"1\.json: must hold an object with a label"),
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
            WebDatasetImages(str(path), cache=tmp_path / "cache")


def test_shard_mistakes_are_one_line(tmp_path: Path) -> None:
    assert expand_shards("a-{08..11}.tar::b.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar", "b.tar"]
    with pytest.raises(UserError, match=r"shard .*none.tar cannot be read"):
        open_images(f"webdataset:{tmp_path}/none.tar")
    with pytest.raises(UserError, match=r"shard s9://x.tar cannot be read \(Protocol not known"):
        open_images("webdataset:s9://x.tar")
    (tmp_path / "text.tar").write_text("no archive " * 100)
    with pytest.raises(UserError, match=r"text.tar cannot be read"):
        WebDatasetImages(str(tmp_path / "text.tar"), cache=tmp_path / "cache")


def opened(path: Path, members: list[tuple[str, bytes]], **options: str) -> WebDatasetImages:
    write_tar(path, members)
    return WebDatasetImages(str(path), ReadOptions(**options), path.parent / "cache")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (("IMG_{}.PNG", "IMG_{}.CLS"), ".cls"),
        (("{}.image.png", "{}.label.cls"), ".label.cls"),
        (("{}.png", "{}.cls.txt"), ".cls.txt"),
        (("{}.png", "{}.class"), ".class"),
        (("{}.Jpg.Png", "{}.Label"), ".label"),
    ],
)
def test_labels_and_images_of_shards_under_other_names(names: tuple[str, str], source: str, tmp_path: Path) -> None:
    members = [m for n in range(3) for m in ((names[0].format(n), png(n)), (names[1].format(n), b"%d" % (2 - n)))]
    images = opened(tmp_path / "a.tar", members)
    assert images.labels.tolist() == [2, 1, 0] and np.array_equal(np.asarray(images.image(1)), picture(1))
    assert images.found.notes == (f"labels from {source}",) and not images.found.passed_over


@pytest.mark.parametrize(
    ("name", "content"), [("1.JSON", b'{"Class_ID": 3}'), ("1.label.json", b"3"), ("1.json", b'{"y": 3.0}')]
)
def test_labels_of_shards_in_json(name: str, content: bytes, tmp_path: Path) -> None:
    assert opened(tmp_path / "a.tar", [("1.png", png(1)), (name, content)]).labels.tolist() == [3]


@pytest.mark.parametrize("text", [b"3 ", b"3.0", b"\xef\xbb\xbf3\r\n", b"003", b"+3"])
def test_whole_numbers_are_labels_however_they_are_written(text: bytes, tmp_path: Path) -> None:
    assert opened(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", text)]).labels.tolist() == [3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.cls", b"4294967296", "its label 4294967296 is not below 1,000,000"),
        ("1.cls", b"9" * 900, "its label 9{40} is not below 1,000,000"),
        ("1.cls", b"1" * 2000, r"is too long for a label \(more than 1,024 bytes\)"),
        ("1.cls", b"1e308", "its label '1e308' is not a class number"),
        ("1.cls", b"true", "its label 'true' is not a class number"),
        ("1.cls", b"3 5", "its label '3 5' is not a class number"),
        ("1.cls", b"1_0", "its label '1_0' is not a class number"),
        ("1.cls", b"", "its label '' is not a class number"),
        ("1.label.npy", b"\x93NUMPY", "is not a class number"),
        ("1.json", b'{"label": 1e308}', "its label 1e\\+308 is not below"),
        ("1.json", b'{"label": true}', "its label 'True' is not a class number"),
        ("1.json", b'{"label": NaN}', "its label 'nan' is not a class number"),
        ("1.json", b'{"label": ' + b"9" * 5000 + b"}", "limit"),
        ("1.json", b"[" * 10**6, "nested too deeply"),
        ("1.json", b'{"label": 0, "label": 1}', "the key 'label' occurs twice"),
        ("1.json", b" " * (2**24 + 1), "is too long for a label"),
    ],
)
def test_wrong_labels_are_refused_by_member(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^images: .*a\.tar: {name}: .*{message}") as caught:
        opened(tmp_path / "a.tar", [("1.png", png(1)), (name, content)])
    assert len(str(caught.value)) < 400


def test_a_wrong_label_ends_a_command_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"cat")])
    options = ["--data.images", f"webdataset:{path}", "--data.size", "32", "--output", str(tmp_path / "run")]
    assert run(["train-tokenizer", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith(f"images: {path}: 1.cls: its label 'cat' is not a class number")


def test_other_labels_of_a_sample_are_counted_or_refused(tmp_path: Path) -> None:
    """`.cls` goes before other endings and these before JSON; two of one rank must agree."""
    members = [
        m for n in range(3) for m in ((f"{n}.png", png(n)), (f"{n}.cls", b"%d" % n), (f"{n}.json", b'{"label": 0}'))
    ]
    images = opened(tmp_path / "a.tar", members)
    assert images.labels.tolist() == [0, 1, 2]
    assert images.found.passed_over == {"other labels (label in .json)": 2}
    two = [("1.png", png(1)), ("1.label.cls", b"1"), ("1.coarse.cls", b"0")]
    with pytest.raises(UserError, match=r"1\.(label|coarse)\.cls gives the label . and 1\.(label|coarse)\.cls gives"):
        opened(tmp_path / "b.tar", two)
    assert opened(tmp_path / "b.tar", two, label_column="coarse").labels.tolist() == [0]


def test_what_is_passed_over_in_shards_is_counted(tmp_path: Path) -> None:
    extra = [
        ("README", b""),
        ("._1.png", b""),
        ("1.txt", b"a"),
        ("2.psd", b"x"),
        ("9.cls", b"1"),
        ("a.png", b"broken"),
    ]
    members = [*labelled([0, 1]), *extra, ("a.cls", b"0"), ("b.png", png(5)), ("b.seg.png", png(6)), ("b.cls", b"1")]
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as archive:
        for name, kind in (("c.png", tarfile.LNKTYPE), ("d.png", tarfile.SYMTYPE), ("sub", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "0.png"
            archive.addfile(info)
    for _ in range(2):  # the second time from the stored index
        images = WebDatasetImages(str(path), cache=tmp_path / "cache")
        assert len(images) == 3
        assert images.found.passed_over == {
            "unreadable": 1, "files without an ending": 1, "names that begin with a dot": 1, ".txt files": 1,
            ".psd files": 1, "labels without an image": 1, "other images of a sample": 1,
            "links and special files": 2, "folders": 1,
        }  # fmt: skip


def test_options_name_images_and_labels_of_shards(tmp_path: Path) -> None:
    members = [
        ("1.left.png", png(1)),
        ("1.right.png", png(2)),
        ("1.cls", b"cat"),
        ("1.json", b'{"label": 1, "kind": 4}'),
    ]
    path = tmp_path / "a.tar"
    images = opened(path, members, image_column="right", label_column="kind")
    assert images.labels.tolist() == [4] and np.array_equal(np.asarray(images.image(0)), picture(2))
    assert images.found.passed_over == {".png files": 1, ".cls files": 1}
    unlabelled = opened(path, members, image_column="left", label_column="none")
    assert unlabelled.num_classes == 1 and unlabelled.found.notes == ("no labels: one class",)
    with pytest.raises(UserError, match=r"label_column: no sample of .*a\.tar has a label under the name sort"):
        opened(path, members, image_column="left", label_column="sort")
    with pytest.raises(UserError, match=r"no images in the shards .*a\.tar \(passed over: .*2 \.png files"):
        opened(path, members, image_column="middle", label_column="none")


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_columns_of_sources_that_have_none_are_refused(option: str, tmp_path: Path) -> None:
    for images in ("demo", str(tmp_path)):
        with pytest.raises(UserError, match=rf"data\.{option} must be null, got x: only hf: and webdataset:"):
            ImagesConfig(images, 16, **{option: "x"}).open("train")  # type: ignore[arg-type]


def test_patterns_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s-002.tar", "s-000.tar", "s-001.tar", "b.TAR", "x[1].tar", "notes.txt"):
        (tmp_path / name).touch()
    three = [f"{tmp_path}/s-{n:03d}.tar" for n in range(3)]
    for pattern in (
        "s-*.tar",
        "s-00?.tar",
        "s-00[0-2].tar",
        "s-{000..002}.tar",
        "s-{000,001,002}.tar",
        "s-0{0..0}{0..2}.tar",
    ):
        assert expand_shards(f"{tmp_path}/{pattern}") == three
    assert expand_shards(str(tmp_path)) == [f"{tmp_path}/b.TAR", *three, f"{tmp_path}/x[1].tar"]
    assert expand_shards(f"{tmp_path}/x[1].tar") == [f"{tmp_path}/x[1].tar"]
    assert expand_shards("{2..0}.tar") == ["2.tar", "1.tar", "0.tar"] and expand_shards("{9..10}") == ["9", "10"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_shards("~/s-*.tar") == three
    for wrong, message in (
        (f"{tmp_path}/t-*.tar", "no shards match"),
        (f"{tmp_path}/empty", "no tar files in the folder"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"{message} {re.escape(wrong)}"):
            expand_shards(wrong)
    monkeypatch.setattr(ranges, "_MOST_SHARDS", 1000)
    for many in ("{0..999999999}.tar", f"{{0..{'9' * 100}}}.tar", "{0,1}" * 40):
        with pytest.raises(UserError, match="at most 1,000 shards, got "):
            expand_shards(many)
    with pytest.raises(UserError, match="must be followed by shards"):
        open_images("webdataset:")


def test_patterns_of_remote_shards() -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    for name in "ba":
        MemoryFileSystem().pipe(f"/patterns/{name}.tar", b"")
    both = ["memory:///patterns/a.tar", "memory:///patterns/b.tar"]
    assert expand_shards("memory://patterns/*.tar") == both == expand_shards("memory://patterns")


def test_a_folder_of_training_and_test_shards_is_refused(tmp_path: Path) -> None:
    for name in ("train-000.tar", "train-001.tar", "val-000.tar"):
        write_tar(tmp_path / name, [("1.png", png(1)), ("1.cls", b"1")])
    with pytest.raises(UserError, match=rf"{tmp_path} holds shards for training and for testing") as caught:
        WebDatasetImages(str(tmp_path), cache=tmp_path / "cache")
    pattern = str(caught.value).rpartition("webdataset:")[2]
    assert len(WebDatasetImages(pattern, cache=tmp_path / "cache")) == 2


def test_shards_without_labels_have_no_class_names(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("2.png", png(2))])
    assert WebDatasetImages(str(path), cache=tmp_path / "cache").class_names == ("image",)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
@pytest.mark.parametrize(
    ("mode", "message"), [("w:gz", "gzip.*gunzip"), ("w:bz2", "bzip2.*bunzip2"), ("w:xz", "xz.*unxz")]
)
def test_compressed_shards_say_what_to_do(name: str, mode: str, message: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(UserError, match=rf"shard .*{name} is compressed \({message}"):
        WebDatasetImages(str(tmp_path / name), cache=tmp_path / "cache")


def test_names_of_members_that_are_not_utf8(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("caf\udce9.png", b"broken")])
    images = WebDatasetImages(
        str(tmp_path / "a.tar"), ReadOptions(unreadable_list=tmp_path / "unreadable.txt"), tmp_path / "cache"
    )
    assert len(images) == 1 and "caf\\udce9.png\tnot an image" in (tmp_path / "unreadable.txt").read_text()


def test_hub_sets_without_the_library_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'vavae\[datasets\]'"):
        open_images("hf:somebody/something")


def hub_set(contents: list[bytes], labels: list[int]) -> datasets.Dataset:
    kinds = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"picture": [{"bytes": content, "path": None} for content in contents], "label": labels}
    return datasets.Dataset.from_dict(rows, features=kinds)


def test_a_hub_set_without_a_name_is_refused() -> None:
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
    images = open_images(f"hf:{tmp_path / 'set'}", "train", ReadOptions(unreadable_list=tmp_path / "unreadable.txt"))
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
def test_labels_of_hub_sets_must_be_class_numbers(labels: list[object], tmp_path: Path) -> None:
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


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of local folders that the library makes are kept out of the user's cache; the hub is not asked."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_parquet(path: Path, columns: dict[str, Any]) -> str:
    """A file as pandas, polars and Spark write it, which says nothing of images; the address of its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), path)
    return f"hf:{path.parent}"


PNGS = [png(n) for n in range(3)]


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    "column",
    [
        arrow.array([{"bytes": content, "path": None} for content in PNGS]),
        arrow.array([{"bytes": content, "path": "x.png"} for content in PNGS]),
        arrow.array(PNGS),
        arrow.array(PNGS, arrow.large_binary()),
        arrow.array(PNGS, arrow.binary_view()),
    ],
    ids=["struct", "struct with names", "binary", "large binary", "binary view"],
)
@pytest.mark.parametrize("name", ["image", "IMG", "something"])
def test_images_of_parquet_files(column: arrow.Array, name: str, tmp_path: Path) -> None:
    images = open_images(write_parquet(tmp_path / "set" / "train.parquet", {name: column, "label": [0, 2, 1]}))
    assert images.class_names == ("0", "1", "2") and [images.label(i) for i in range(3)] == [0, 2, 1]
    assert np.array_equal(np.asarray(images.image(1)), picture(1))
    assert isinstance(images, HuggingFaceImages) and images.found == Found(
        f"hf:{tmp_path / 'set'}, split train", {}, ("labels from column label",)
    )


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("columns", "names", "labels", "note"),
    [
        ({"cls": [0, 1, 0]}, "01", [0, 1, 0], "labels from column cls"),
        ({"Labels": [0, 1, 0]}, "01", [0, 1, 0], "labels from column Labels"),
        ({"labelId": [0, 1, 0]}, "01", [0, 1, 0], "labels from column labelId"),
        ({"Class-Name": ["b", "a", "b"]}, "ab", [1, 0, 1], "labels from column Class-Name"),
        ({"gt": [0, 1, 0]}, "01", [0, 1, 0], "labels from column gt"),
        ({"target": [0, 1, 0], "class_id": [2, 1, 0]}, "012", [2, 1, 0], "labels from column class_id (not target)"),
        ({"label": [0, 1, 0], "cls": [2, 1, 0]}, "01", [0, 1, 0], "labels from column label (not cls)"),
        ({"class": ["b", "a", "b"], "target": [0, 1, 1]}, "01", [0, 1, 1], "labels from column target (not class)"),
        ({"label": ["b", "a", "b"]}, "ab", [1, 0, 1], "labels from column label"),
        ({"label": ["2", "0", "1"]}, "012", [2, 0, 1], "labels from column label"),
        ({"label": [2.0, 0.0, 1.0]}, "012", [2, 0, 1], "labels from column label"),
        ({"caption": ["b", "a", "b"], "width": [7, 7, 7]}, None, [0, 0, 0], "no labels: one class (columns image,"),
    ],
)
def test_labels_of_hub_sets(
    columns: dict[str, Any], names: str | None, labels: list[int], note: str, tmp_path: Path
) -> None:
    images = open_images(write_parquet(tmp_path / "set" / "train.parquet", {"image": PNGS, **columns}))
    assert isinstance(images, HuggingFaceImages) and images.labels.tolist() == labels
    assert images.class_names == (tuple(names) if names else ("image",)) and images.found.notes[0].startswith(note)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("name", "labels"),
    [
        *[(name, [0, 1, wrong]) for name in ("label", "cls") for wrong in (None, -1, 2**32, 10**6)],
        ("label", [0.0, 1.0, float("nan")]),
        ("label", [0.0, 1.0, 1e308]),
        ("label", ["0", "1", None]),
    ],
)
def test_labels_of_hub_sets_that_cannot_be_are_refused(name: str, labels: list[Any], tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "set" / "train.parquet", {"image": PNGS, name: labels})
    with pytest.raises(UserError, match=rf"column {name} of the train part of .*set: row 2: its label .*label_column"):
        open_images(source)
    assert open_images(source, options=ReadOptions(label_column="none")).num_classes == 1


@pytest.mark.usefixtures("hub_cache")
def test_options_name_columns_of_hub_sets(tmp_path: Path) -> None:
    columns = {"a": PNGS, "b": PNGS[::-1], "kind": [3, 2, 1], "text": ["x", "y", "z"], "many": [[png(0)]] * 3}
    source = write_parquet(tmp_path / "set" / "train.parquet", columns)
    images = ImagesConfig(source, 8, image_column="b", label_column="kind").open("train")
    assert [images.label(i) for i in range(3)] == [3, 2, 1] and np.array_equal(np.asarray(images.image(0)), picture(2))
    other = ImagesConfig(source, 8, image_column="b", label_column="text").open("train")
    assert other.class_names == ("x", "y", "z") and other.fingerprint() != images.fingerprint()
    for options, message in (
        ({}, r"that its name shows; name one of a, b \(data\.image_column\)"),
        ({"image_column": "c"}, "image_column: .* has no column c; its columns are a, b, kind, text, many"),
        ({"image_column": "kind"}, "image_column: kind of .* does not hold images but int64"),
        ({"image_column": "many"}, "image_column: many of .* does not hold images but lists of binary"),
        ({"image_column": "a", "label_column": "c"}, "label_column: .* has no column c"),
        ({"image_column": "a", "label_column": "many"}, "column many of the train part .* is not a class number"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(source, options=ReadOptions(**options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a.png", "b.png"], r"no column of images .* its columns are image \(text\)"),
        ([[PNGS[0]], []], r"no column of images .* image \(lists of binary\)"),
        ([b"x", b"y"], r"no readable images in column image of .* \(2 failed; not an image\)"),
    ],
)
def test_columns_that_are_not_images_are_refused(column: list[Any], message: str, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "set" / "train.parquet", {"image": column, "label": [0, 1]})
    with pytest.raises(UserError, match=message):
        open_images(source)


@pytest.mark.usefixtures("hub_cache")
def test_shards_as_a_hub_set(tmp_path: Path) -> None:
    """The library reads a folder of tar shards; whole numbers under `cls` are labels."""
    (tmp_path / "set").mkdir()
    members = [(f"{n}.json", b'{"label": 0}') for n in range(3)]
    write_tar(tmp_path / "set" / "imagenet1k-train-0000.tar", sorted([*labelled([0, 1, 2]), *members]))
    images = open_images(f"hf:{tmp_path / 'set'}")
    assert [images.label(i) for i in range(3)] == [0, 1, 2]
    assert isinstance(images, HuggingFaceImages) and images.found.notes == ("labels from column cls",)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("train", "tested"), [("train", "validation"), ("Training", "Valid"), ("TRAIN", "DEV"), ("train", "val")]
)
def test_parts_of_hub_sets_under_other_names(train: str, tested: str, tmp_path: Path) -> None:
    for name, numbers in ((train, [0, 1]), (tested, [2]), ("test", [0])):
        rows = {"image": [png(n) for n in numbers], "label": numbers[:1] * len(numbers)}
        source = write_parquet(tmp_path / "set" / f"{name}.parquet", rows)
    with pytest.raises(UserError, match="holds the class 2, but the classes of the train part are 1"):
        open_images(source, "test")
    images = open_images(source, "test", ReadOptions(label_column="none"))
    assert len(images) == 1 and np.array_equal(np.asarray(images.image(0)), picture(2))
    images = open_images(source)
    assert len(images) == 2 and isinstance(images, HuggingFaceImages) and not images.found.passed_over


@pytest.mark.usefixtures("hub_cache")
def test_files_of_no_split_are_counted(tmp_path: Path) -> None:
    for name in ("train", "more", "others"):
        source = write_parquet(tmp_path / "set" / f"{name}.parquet", {"image": PNGS, "label": [0, 1, 2]})
    (tmp_path / "set" / "notes.txt").touch()
    images = open_images(source)
    assert len(images) == 3 and isinstance(images, HuggingFaceImages)
    assert images.found.passed_over == {"files that are not named after a split": 2}


@pytest.mark.usefixtures("hub_cache")
def test_text_labels_are_numbered_by_the_training_part(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", {"image": PNGS, "label": ["cat", "ant", "dog"]})
    source = write_parquet(tmp_path / "set" / "test.parquet", {"image": PNGS[:1], "label": ["dog"]})
    tested = open_images(source, "test")
    assert tested.label(0) == 2 and tested.class_names == ("ant", "cat", "dog")
    write_parquet(tmp_path / "set" / "test.parquet", {"image": PNGS[:1], "label": ["emu"]})
    with pytest.raises(
        UserError, match=r"column label of the test part .* holds 'emu', which is not a class of the train"
    ):
        open_images(source, "test")


@pytest.mark.usefixtures("hub_cache")
def test_configurations_of_hub_sets(tmp_path: Path) -> None:
    for name in ("one", "two"):
        source = write_parquet(tmp_path / "set" / f"{name}.parquet", {"image": PNGS, "label": [0, 1, 2]})
    configs = [f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("one", "two")]
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    for wrong in (source, f"{source}:three"):
        with pytest.raises(UserError, match=r"has the configurations one, two: choose one, as hf:.*/set:one$"):
            open_images(wrong)
    images = open_images(f"{source}:two")
    assert (
        isinstance(images, HuggingFaceImages) and images.found.where == f"{source}:two, split train, configuration two"
    )


def test_names_of_hub_sets_say_configuration_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, revision: str | None) -> None:
        asked.append((name, config, revision))
        raise FileNotFoundError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("cifar10", "a/b:c", "a/b@v1", "a/b:c@refs/pr/1"):
        with pytest.raises(UserError, match=f"the data set {source} cannot be opened: no network"):
            open_images(f"hf:{source}")
    assert asked == [("cifar10", None, None), ("a/b", "c", None), ("a/b", None, "v1"), ("a/b", "c", "refs/pr/1")]


@pytest.mark.usefixtures("hub_cache")
def test_mistyped_folders_of_hub_sets_do_not_ask_the_hub(tmp_path: Path) -> None:
    for source in (f"{tmp_path}/nowhere", "./nowhere", "~/no/where", "some/folder/deep"):
        with pytest.raises(UserError, match=f"images: no such folder: {source}"):
            open_images(f"hf:{source}")
    source = write_parquet(tmp_path / "set" / "train.parquet", {"image": PNGS, "label": [0, 1, 2]})
    with pytest.raises(UserError, match=r"train\.parquet is a file: give the folder it is in"):
        open_images(f"{source}/train.parquet")
    with pytest.raises(UserError, match=r"a local folder has no revisions \(@main\)"):
        open_images(f"{source}@main")
    with pytest.raises(UserError, match=r"has none of validation, .*; its parts are train; .*data\.holdout"):
        open_images(source, "test")


def test_too_little_memory_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    path = write_tar(tmp_path / "a.tar", labelled([0, 1]))
    images = WebDatasetImages(str(path), cache=tmp_path / "cache")
    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(RunError, match=r"not enough memory to decode image 1 of .*a\.tar"):
        images.image(1)
    with pytest.raises(RunError, match=r"not enough memory to index the shard .*a\.tar"):
        WebDatasetImages(str(path), cache=tmp_path / "other")
