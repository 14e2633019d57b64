"""Images from tar shards."""

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
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pytest
from children import CONTEXT
from picture_files import labeled, picture, png, write_tar
from PIL import Image

from vavae.data import ImageSource, ReadOptions, open_images, ranges
from vavae.data.ranges import expand_shards
from vavae.data.webdataset import WebDatasetImages
from vavae.errors import RunError, UserError


def write_shards(folder: Path) -> str:
    """Write two shards of three samples, with labels in .cls, in .json, and under another key for the last."""
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


def test_shards_are_indexable(tmp_path: Path) -> None:
    spec = write_shards(tmp_path)
    images = WebDatasetImages(spec, cache=tmp_path / "cache")
    assert isinstance(images, ImageSource) and len(images) == 6
    assert [images.label(i) for i in range(6)] == [0, 1, 0, 2, 2, 0] and images.num_classes == 3
    order = [5, 0, 3, 1, 4, 2] * 8
    with ThreadPoolExecutor(4) as pool:  # threads share nothing but the index
        for n, image in zip(order, pool.map(images.image, order), strict=True):
            assert np.array_equal(np.asarray(image), picture(n))


def test_second_opening_reads_the_stored_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_shards_skip_corrupt_images(tmp_path: Path) -> None:
    contents = [png(0), png(1)[:60], png(2), b"not an image"]
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


def test_replaced_shard_is_indexed_again(tmp_path: Path) -> None:
    """Its size may stay the same, since archives are padded to multiples of 10,240 bytes."""
    path = write_tar(tmp_path / "a.tar", labeled([0, 1]))
    before = WebDatasetImages(str(path), cache=tmp_path / "cache")
    size, state = path.stat().st_size, path.stat()
    write_tar(path, labeled([1, 0]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    after = WebDatasetImages(str(path), cache=tmp_path / "cache")
    assert path.stat().st_size == size
    assert [after.label(i) for i in range(2)] == [1, 0] and after.fingerprint() != before.fingerprint()


def test_equal_names_in_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, labels in (("x", [0, 1]), ("y", [1, 0])):
        (tmp_path / folder).mkdir()
        path = write_tar(tmp_path / folder / "a.tar", labeled(labels))
        os.utime(path, ns=(10**18, 10**18))
        monkeypatch.chdir(tmp_path / folder)
        images = WebDatasetImages("a.tar", cache=tmp_path / "cache")
        assert [images.label(i) for i in range(2)] == labels
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(np.asarray(images.image(1)), picture(1))  # the name stays relative to its folder


@pytest.mark.parametrize("with_etag", [True, False])
def test_changed_remote_shard_is_indexed_again(
    with_etag: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the ETag of its store, or by its first bytes if the store gives only a size."""
    from fsspec.implementations.memory import MemoryFileSystem

    original = MemoryFileSystem.info

    def info(self: MemoryFileSystem, path: str, **options: object) -> dict[str, object]:
        stamp = {"ETag": hash(self.store[path].getvalue())} if with_etag else {}
        return {"name": path, "type": "file", "size": original(self, path)["size"], **stamp}

    monkeypatch.setattr(MemoryFileSystem, "info", info)
    memory = MemoryFileSystem()
    for labels in ([0, 1], [1, 0]):
        memory.pipe(f"/etag-{with_etag}/a.tar", write_tar(tmp_path / "a.tar", labeled(labels)).read_bytes())
        images = WebDatasetImages(f"memory://etag-{with_etag}/a.tar", cache=tmp_path / "cache")
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


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(CONTEXT, marks=pytest.mark.slow, id="pickled"),
        pytest.param(multiprocessing.get_context("fork"), id="fork"),
    ],
)
def test_shards_are_read_in_other_processes(context: BaseContext, tmp_path: Path) -> None:
    """In processes that get the images pickled, and in ones that share this process's open files."""
    images = WebDatasetImages(write_shards(tmp_path), cache=tmp_path / "cache")
    assert _same_pictures(images) and _same_pictures(pickle.loads(pickle.dumps(images)))
    with context.Pool(2) as pool:
        assert all(pool.map(_same_pictures, [images] * 2))
    assert _same_pictures(images)


def test_truncated_shard_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labeled([0, 1]))
    images = WebDatasetImages(str(path), cache=tmp_path / "cache")
    os.truncate(path, 600)
    with pytest.raises(UserError, match=r"cannot read image 1 of .*a\.tar: 0 bytes came back"):
        images.image(1)


def damaged(whole: bytes, damage: str, at: tarfile.TarInfo) -> bytes:
    """Return the bytes of a shard with a fault at one of its members."""
    head, offset = whole[: at.offset], at.offset
    return {
        "a broken header": head + b"\xff" * 100 + whole[offset + 100 :],
        "a header of zeros": head + bytes(512) + whole[offset + 512 :],
        "cut before a member": head,
        "cut in a header": whole[: offset + 300],
        "cut after a header": whole[: at.offset_data],
        "cut in an image": whole[: at.offset_data + 20],
        "zeros instead of the rest": head + bytes(2**21),
        "another archive appended": whole + whole,
    }[damage]


DAMAGES = [
    *("a broken header", "a header of zeros", "cut before a member", "cut in a header", "cut after a header"),
    *("cut in an image", "zeros instead of the rest", "another archive appended"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_incomplete_shard_is_refused(damage: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labeled([0, 1, 0, 1]))
    with tarfile.open(path) as archive:
        member = archive.getmembers()[4]
    path.write_bytes(damaged(path.read_bytes(), damage, member))
    for _ in range(2):  # nothing is cached
        with pytest.raises(UserError, match=rf"shard {path} (is damaged or incomplete: at byte \d+|cannot be read)"):
            WebDatasetImages(str(path), cache=tmp_path / "cache")


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("options", [[], ["--format=posix"], ["--blocking-factor=2048"]])
def test_shards_of_gnu_tar(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    subprocess.run(["tar", "-cf", "a.tar", *options, "1.png"], cwd=tmp_path, check=True)
    assert len(WebDatasetImages(str(tmp_path / "a.tar"), cache=tmp_path / "cache")) == 1


def test_shard_with_one_final_zero_block(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labeled([0, 1]))
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset
    os.truncate(path, end + 512)
    assert len(WebDatasetImages(str(path), cache=tmp_path / "cache")) == 2


def test_damaged_index_is_replaced(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", labeled([0, 1]))
    WebDatasetImages(str(path), cache=tmp_path / "cache")
    (index,) = (tmp_path / "cache").iterdir()
    for damage in ("{", "[]", '{"entries": [[1]], "only_labeled": null}'):
        index.write_text(damage)
        assert len(WebDatasetImages(str(path), cache=tmp_path / "cache")) == 2


def test_threads_index_and_cache_shards(
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


def test_shard_mistakes_are_one_line(tmp_path: Path) -> None:
    assert expand_shards("a-{08..11}.tar::b.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar", "b.tar"]
    with pytest.raises(UserError, match=r"shard .*none.tar cannot be read"):
        open_images(f"webdataset:{tmp_path}/none.tar")
    with pytest.raises(UserError, match=r"shard s9://x.tar cannot be read \(Protocol not known"):
        open_images("webdataset:s9://x.tar")
    (tmp_path / "text.tar").write_text("no archive " * 100)
    with pytest.raises(UserError, match=r"text.tar cannot be read"):
        WebDatasetImages(str(tmp_path / "text.tar"), cache=tmp_path / "cache")


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


def test_folder_of_train_and_test_shards_is_refused(tmp_path: Path) -> None:
    for name in ("train-000.tar", "train-001.tar", "val-000.tar"):
        write_tar(tmp_path / name, [("1.png", png(1)), ("1.cls", b"1")])
    with pytest.raises(UserError, match=rf"{tmp_path} holds shards for training and for testing") as caught:
        WebDatasetImages(str(tmp_path), cache=tmp_path / "cache")
    pattern = str(caught.value).rpartition("webdataset:")[2]
    assert len(WebDatasetImages(pattern, cache=tmp_path / "cache")) == 2


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
@pytest.mark.parametrize(
    ("mode", "message"), [("w:gz", "gzip.*gunzip"), ("w:bz2", "bzip2.*bunzip2"), ("w:xz", "xz.*unxz")]
)
def test_compressed_shards_are_refused(name: str, mode: str, message: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(UserError, match=rf"shard .*{name} is compressed \({message}"):
        WebDatasetImages(str(tmp_path / name), cache=tmp_path / "cache")


def test_member_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("caf\udce9.png", b"broken")])
    images = WebDatasetImages(
        str(tmp_path / "a.tar"), ReadOptions(unreadable_list=tmp_path / "unreadable.txt"), tmp_path / "cache"
    )
    assert len(images) == 1 and "caf\\udce9.png\tnot an image" in (tmp_path / "unreadable.txt").read_text()


def test_out_of_memory_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    path = write_tar(tmp_path / "a.tar", labeled([0, 1]))
    images = WebDatasetImages(str(path), cache=tmp_path / "cache")
    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(RunError, match=r"not enough memory to decode image 1 of .*a\.tar"):
        images.image(1)
    with pytest.raises(RunError, match=r"not enough memory to index the shard .*a\.tar"):
        WebDatasetImages(str(path), cache=tmp_path / "other")
