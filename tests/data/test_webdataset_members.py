"""Members of tar shards: images, their labels and names, columns, and what is passed over."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from picture_files import labeled, picture, png, write_tar

from vavae.cli import run
from vavae.data import ReadOptions
from vavae.data.images import ImagesConfig
from vavae.data.webdataset import WebDatasetImages
from vavae.errors import UserError


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
def test_other_endings_of_labels_and_images(names: tuple[str, str], source: str, tmp_path: Path) -> None:
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
def test_spellings_of_whole_number_labels(text: bytes, tmp_path: Path) -> None:
    assert opened(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", text)]).labels.tolist() == [3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.cls", b"4294967296", "its label must be a whole number from 0 to 999,999, got '4294967296'"),
        ("1.cls", b"9" * 900, "got '9{39} "),
        ("1.cls", b"1" * 5000, "limit"),
        ("1.cls", b"1e308", "got '1e308'"),
        ("1.cls", b"true", "got 'true'"),
        ("1.cls", b"3 5", "got '3 5'"),
        ("1.cls", b"1_0", "got '1_0'"),
        ("1.cls", b"", "got ''"),
        ("1.label.npy", b"\x93NUMPY", "its label must be a whole number"),
        ("1.json", b'{"label": 1e308}', "got 1e\\+308"),
        ("1.json", b'{"label": true}', "got True"),
        ("1.json", b'{"label": NaN}', "got nan"),
        ("1.json", b'{"label": ' + b"9" * 5000 + b"}", "limit"),
        ("1.json", b"[" * 10**6, "nested too deeply"),
        ("1.json", b'{"label": 0, "label": 1}', "the key 'label' occurs twice"),
        ("1.json", b" " * (2**24 + 1), r"is too long for a label \(more than 16,777,216 bytes\)"),
    ],
)
def test_wrong_labels_name_the_member(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^images: .*a\.tar: {name}: .*{message}") as caught:
        opened(tmp_path / "a.tar", [("1.png", png(1)), (name, content)])
    assert len(str(caught.value)) < 400


def test_wrong_label_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"cat")])
    options = ["--data.images", f"webdataset:{path}", "--data.size", "32", "--output", str(tmp_path / "run")]
    assert run(["train-tokenizer", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    wanted = f"images: {path}: 1.cls: its label must be a whole number from 0 to 999,999, got 'cat'"
    assert error.endswith(f"{wanted} (data.label_column none takes no labels)")


def test_several_labels_of_a_sample(tmp_path: Path) -> None:
    """`.cls` has priority over other endings, and these over JSON; two of one rank must agree."""
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


def test_passed_over_members_are_counted(tmp_path: Path) -> None:
    extra = [
        ("README", b""),
        ("._1.png", b""),
        ("1.txt", b"a"),
        ("2.psd", b"x"),
        ("9.cls", b"1"),
        ("a.png", b"broken"),
    ]
    members = [*labeled([0, 1]), *extra, ("a.cls", b"0"), ("b.png", png(5)), ("b.seg.png", png(6)), ("b.cls", b"1")]
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


def test_column_options_of_shards(tmp_path: Path) -> None:
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
    unlabeled = opened(path, members, image_column="left", label_column="none")
    assert unlabeled.num_classes == 1 and unlabeled.found.notes == ("no labels: one class",)
    with pytest.raises(UserError, match=r"label_column: no sample of .*a\.tar has a label under the name sort"):
        opened(path, members, image_column="left", label_column="sort")
    with pytest.raises(UserError, match=r"no images in the shards .*a\.tar \(passed over: .*2 \.png files"):
        opened(path, members, image_column="middle", label_column="none")


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_columns_need_hub_sets_or_shards(option: str, tmp_path: Path) -> None:
    for images in ("demo", str(tmp_path)):
        with pytest.raises(UserError, match=rf"data\.{option} must be null, got x: only hf: and webdataset:"):
            ImagesConfig(images, 16, **{option: "x"}).open("train")  # type: ignore[arg-type]


def test_plain_image_name_wins(tmp_path: Path) -> None:
    members = [("1.aaa.png", png(5)), ("1.png", png(1)), ("1.seg.png", png(6)), ("2.seg.jpg.png", png(2))]
    images = WebDatasetImages(
        str(write_tar(tmp_path / "a.tar", [*members, ("._2.png", b"")])), cache=tmp_path / "cache"
    )
    assert len(images) == 2 and images.num_classes == 1 and not images.unreadable
    assert [np.array_equal(np.asarray(images.image(i)), picture(i + 1)) for i in range(2)] == [True, True]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(f"holiday.{n}.png", png(n)) for n in range(3)], r"holiday\.0\.png and holiday\.1\.png are one sample"),
        ([("1.png", png(0)), ("1.png", png(1))], r"a\.tar holds 1\.png twice in one sample"),
        ([*labeled([1]), ("x/7.png", png(7))], r"x/7\.png has no label, and .*0\.png has one"),
        ([("1.png", png(1)), ("2.png", png(2)), ("1.cls", b"1")], r"1\.png has no label, and .*: 1 \(it has no image"),
        ([("1.png", png(1)), ("1.json", b"[3]")], r"1\.json: must hold an object with a label"),
        (
            [("1.png", png(1)), ("1.json", b'{"label": null}')],
            r"1\.json: its label must be a whole number from 0 to 999,999, got None",
        ),
        ([("1.png", png(1)), ("1.json", b'{"label": "cat"}')], r"1\.json: its label must be .*, got 'cat'"),
        ([("1.png", png(1)), ("1.json", b'{"label": 1.5}')], r"1\.json: its label must be .*, got 1\.5"),
        ([("1.png", png(1)), ("1.json", b"{")], r"1\.json: "),
        ([("1.png", png(1)), ("1.cls", b"cat\n")], r"1\.cls: its label must be .*, got 'cat"),
        ([("1.png", png(1)), ("1.cls", b"-1")], r"1\.cls: its label must be .*, got '-1'"),
    ],
)
def test_ambiguous_samples_are_refused(members: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    for _ in range(2):  # the second time from the stored index, if there is one
        with pytest.raises(UserError, match=message):
            WebDatasetImages(str(path), cache=tmp_path / "cache")


def test_shards_without_labels(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("2.png", png(2))])
    assert WebDatasetImages(str(path), cache=tmp_path / "cache").class_names == ("image",)
