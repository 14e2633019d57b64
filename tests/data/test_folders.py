"""Folders of images: parts, labels, and files that are passed over."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from vavae.cli import run
from vavae.data import FolderImages, ReadOptions, has_part, open_images
from vavae.data.found import Found, describe
from vavae.errors import UserError


def write_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(root / name)


def write_labels(root: Path, labels: object) -> None:
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))


@pytest.mark.parametrize("name", ["train", "Train", "val", "test", "training", "dev", "valid"])
def test_class_with_the_name_of_a_part(tmp_path, name):
    write_images(tmp_path, "bus/0.png", f"{name}/0.png", f"{name}/1.png", "aeroplane/0.png")
    for split in ("train", "test"):
        source = open_images(str(tmp_path), split)
        assert len(source) == 4 and source.num_classes == 3 and name in source.class_names
        assert f"{name} is a class" in source.found.notes[0]
    assert not has_part(str(tmp_path), "test") and not has_part(str(tmp_path), "train")


def test_parts_next_to_folders_without_images(tmp_path):
    write_images(tmp_path, "train/a/0.png", "val/a/0.png", "@eaDir/x/0.png", ".cache/0.png", "cover.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.xml").write_text("<a/>")
    source = open_images(str(tmp_path))
    assert source.found.where == f"folder {tmp_path}/train" and len(source) == 1
    assert source.found.passed_over == {"in @eaDir": 1, "hidden": 1, ".xml": 1, "next to the parts": 1}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("training", "valid"),
        ("train", "validation"),
        ("train", "Dev"),
        ("Training", "testing"),
        ("train2017", "val2017"),
        ("train_images", "val_images"),
        ("Images-Train", "Images-Test"),
        ("train", "eval"),
        ("trainset", "test dataset"),
    ],
)
def test_names_of_parts(tmp_path, train, test):
    write_images(tmp_path, f"{train}/a/0.png", f"{train}/b/0.png", f"{test}/b/1.png")
    first, second = open_images(str(tmp_path)), open_images(f"{tmp_path}/", "test")
    assert first.class_names == second.class_names == ("a", "b")
    assert (len(first), second.labels.tolist()) == (2, [1])
    assert second.found.where == f"folder {tmp_path / test}"


@pytest.mark.parametrize("names", [("test tube", "train station"), ("train1", "train2"), ("test 2", "train 1")])
def test_classes_that_resemble_parts(tmp_path, names):
    write_images(tmp_path, *(f"{name}/0.png" for name in names))
    assert open_images(str(tmp_path)).class_names == names


def test_parts_inside_a_class_are_noted(tmp_path):
    write_images(tmp_path, "images/train/0.png", "images/val/1.png")
    source = open_images(str(tmp_path))
    assert len(source) == 2
    assert source.found.notes == (
        "images/train and images/val are not parts of the set but images of the class images",
    )
    write_images(tmp_path / "other", "bus/train/0.png", "bus/deep/1.png")
    assert open_images(str(tmp_path / "other")).found.notes == ()


@pytest.mark.parametrize(("one", "other"), [("val", "validation"), ("train", "Train"), ("training", "train")])
def test_two_folders_for_one_part_are_refused(tmp_path, one, other):
    write_images(tmp_path, f"{one}/a/0.png", f"{other}/a/0.png")
    with pytest.raises(UserError, match="are the same part of the set: rename or remove one"):
        open_images(str(tmp_path))


def test_unicode_form_of_a_class_is_named(tmp_path):
    write_images(tmp_path, "train/caf\u00e9/0.png", "val/cafe\u0301/0.png")
    with pytest.raises(UserError, match="only in its Unicode form"):
        open_images(str(tmp_path), "test")


def test_classes_of_one_printed_name_are_refused(tmp_path):
    for name in (b"\xff", rb"\udcff"):
        write_images(tmp_path, f"{os.fsdecode(name)}/0.png")
    with pytest.raises(UserError, match=r"two class folders are both called \\udcff: rename one"):
        open_images(str(tmp_path))


def test_val_goes_before_test(tmp_path):
    write_images(tmp_path, "train/a/0.png", "train/b/0.png", "test/0.png", "val/1.png", "val/2.png")
    source = open_images(str(tmp_path), "test")
    assert [path.name for path in source.paths] == ["1.png", "2.png"]
    assert source.found.where == f"folder {tmp_path}/val"
    assert source.found.notes[0].startswith(f"{tmp_path}/test is not used: a validation part")
    assert source.class_names == ("image",) and "no labels" in source.found.notes[1]
    assert "the training part has 2 classes" in source.found.notes[1]
    assert open_images(str(tmp_path)).found.notes == ()


def test_class_folders_in_test_part_only(tmp_path):
    write_images(tmp_path, "train/0.png", "val/a/0.png", "val/b/0.png")
    source = open_images(str(tmp_path), "test")
    assert source.class_names == ("image",) and source.labels.tolist() == [0, 0]
    assert "the training part has none" in source.found.notes[0]


def test_empty_part_is_named(tmp_path):
    write_images(tmp_path, "train/a/0.png")
    (tmp_path / "val").mkdir()
    (tmp_path / "val/notes.txt").write_text("x")
    with pytest.raises(UserError, match=rf"no images in folder: {tmp_path}/val \(passed over: 1 \.txt\)"):
        open_images(str(tmp_path), "test")


def test_lone_test_part_is_not_trained_on(tmp_path):
    write_images(tmp_path, "val/a/0.png", "val/b/0.png")
    assert open_images(str(tmp_path), "test").class_names == ("a", "b")
    with pytest.raises(UserError, match=f"has a val folder but no train folder: add one, or give {tmp_path}/val"):
        open_images(str(tmp_path))
    assert has_part(str(tmp_path), "test") and not has_part(str(tmp_path), "train")


def test_system_folders_are_passed_over(tmp_path):
    write_images(tmp_path, "a/0.png", "b/deep/0.png", "@eaDir/a/thumb.png", "a/@eaDir/0.png/thumb.png")
    write_images(tmp_path, "b/deep/#recycle/0.png", "$RECYCLE.BIN/0.png", "__MACOSX/a/0.png", "lost+found/0.png")
    write_images(tmp_path, "System Volume Information/0.png", "a/.AppleDouble/0.png", "b/@Recycle/0.png")
    write_images(tmp_path, "@Transcode/0.png", "RECYCLED/0.png", "FOUND.000/0.png")
    write_images(tmp_path, "#snapshot/monday/a/0.png", "#snapshot/tuesday/a/0.png")
    (tmp_path / "a/._0.png").write_bytes(b"x")
    (tmp_path / "a/Thumbs.db").write_bytes(b"x")
    (tmp_path / "a/README").write_text("x")
    (tmp_path / "b/loop.png").symlink_to("loop.png")
    (tmp_path / "b/gone.png").symlink_to("nowhere.png")
    (tmp_path / "b/again").symlink_to(tmp_path / "b")
    os.mkfifo(tmp_path / "b/pipe.png")
    source = FolderImages(tmp_path)
    assert source.class_names == ("a", "b") and [path.name for path in source.paths] == ["0.png", "0.png"]
    assert source.found.passed_over == {
        "in @eaDir": 2,
        "in #recycle": 1,
        "in $RECYCLE.BIN": 1,
        "in __MACOSX": 1,
        "in lost+found": 1,
        "in System Volume Information": 1,
        "in @Recycle": 1,
        "in @Transcode": 1,
        "in RECYCLED": 1,
        "in FOUND.000": 1,
        "#snapshot (not opened)": 1,
        "hidden": 2,
        ".db": 1,
        "without an ending": 1,
        "broken links or special files": 3,
        "folders reached twice by links": 1,
    }


def test_empty_class_folders_are_named(tmp_path):
    write_images(tmp_path, "a/0.png", "c/0.png")
    (tmp_path / "b").mkdir()
    source = FolderImages(tmp_path)
    assert source.class_names == ("a", "c")
    assert source.found.notes == ("folders without images are not counted as classes: b",)


EDM = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00000002.png")


@pytest.mark.parametrize("form", [list, dict])
def test_labels_of_a_dataset_json(tmp_path, form):
    write_images(tmp_path, *EDM)
    pairs = [[name, label] for name, label in zip(EDM, (5, 0, 5), strict=True)]
    write_labels(tmp_path, pairs if form is list else dict(pairs))
    source = FolderImages(tmp_path)
    assert source.labels.tolist() == [5, 0, 5] and source.class_names == ("0", "1", "2", "3", "4", "5")
    assert source.found == Found(f"folder {tmp_path}", {}, (f"labels from {tmp_path}/dataset.json",))


def test_dataset_json_with_byte_order_mark_and_floats(tmp_path):
    write_images(tmp_path, *EDM)
    content = json.dumps({"labels": [[name, float(number)] for number, name in enumerate(EDM)]})
    (tmp_path / "dataset.json").write_text(content, encoding="utf-8-sig")
    assert FolderImages(tmp_path).labels.tolist() == list(range(len(EDM)))


def test_labels_given_twice_are_refused(tmp_path):
    write_images(tmp_path, *EDM)
    (tmp_path / "dataset.json").write_text('{"labels": null, "labels": []}')
    with pytest.raises(UserError, match=r"dataset\.json cannot be read: the key 'labels' occurs twice"):
        FolderImages(tmp_path)


def test_labels_of_missing_files_are_counted(tmp_path):
    write_images(tmp_path, *EDM)
    write_labels(tmp_path, [[name, 1] for name in (*EDM, "00001/img00000003.png")])
    assert FolderImages(tmp_path).found.notes[1] == (
        "1 files that it names are not among the images, first 00001/img00000003.png"
    )


def test_labels_of_parts(tmp_path):
    """One dataset.json covers the whole set or a part. The training part decides the number of classes."""
    write_images(tmp_path, "train/00000/img00000000.png", "train/00000/img00000001.png", "val/00000/img00000000.png")
    write_labels(
        tmp_path,
        [["train/00000/img00000000.png", 2], ["train/00000/img00000001.png", 0], ["val/00000/img00000000.png", 1]],
    )
    train, test = open_images(str(tmp_path)), open_images(str(tmp_path), "test")
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 0], [1])
    assert train.class_names == test.class_names == ("0", "1", "2")
    write_labels(tmp_path / "val", [["00000/img00000000.png", 2]])
    assert open_images(str(tmp_path), "test").labels.tolist() == [2]
    write_labels(tmp_path / "val", [["00000/img00000000.png", 3]])
    with pytest.raises(UserError, match="its label is 3, but the training part has 3 classes"):
        open_images(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([[EDM[0], 1]], f"must have a label for every image, but has no label for {EDM[1]}"),
        ([[EDM[0], -1]], rf"{EDM[0]}: its label must be a whole number from 0 to 999,999, got -1"),
        ([[EDM[0], 1_000_000]], "got 1000000"),
        ([[EDM[0], 1e308]], r"got 1e\+308"),
        ([[EDM[0], True]], "got True"),
        ([[EDM[0], [0, 1]]], r"got \[0, 1\]"),
        ([[EDM[0], 1], [EDM[0], 2]], f"{EDM[0]} has two labels, 1 and 2"),
        ([[EDM[0], 1], [EDM[1], None]], f"{EDM[1]} has no label and {EDM[0]} has one"),
        ([EDM[0]], r"labels must be a list of \[file, label\], got 00000"),
        ("cats", r"labels must be a list of \[file, label\], got str"),
    ],
)
def test_wrong_labels_are_named(tmp_path, labels, why):
    write_images(tmp_path, *EDM)
    write_labels(tmp_path, labels)
    with pytest.raises(UserError, match=f"dataset.json.*{why}"):
        FolderImages(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", '{"labels": ' + "[" * 100_000, '{"labels": [["a", ' + "1" * 5000 + "]]}", "\xff"]
)
def test_damaged_dataset_json_is_named(tmp_path, text):
    write_images(tmp_path, *EDM)
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"dataset\.json cannot be read: ") as error:
        FolderImages(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [None, [[name, None] for name in EDM]])
def test_null_labels_are_none(tmp_path, labels):
    write_images(tmp_path, *EDM)
    write_labels(tmp_path, labels)
    source = FolderImages(tmp_path)
    assert source.class_names == ("image",) and source.found.notes == (
        f"no labels: {tmp_path}/dataset.json gives none",
    )


def test_dataset_json_of_other_tools(tmp_path):
    write_images(tmp_path, "a/0.png", "b/0.png")
    (tmp_path / "dataset.json").write_text('{"images": []}')
    source = FolderImages(tmp_path)
    assert source.class_names == ("a", "b") and 'is not used: it has no "labels"' in source.found.notes[0]


def test_numbered_folders_of_numbered_files(tmp_path):
    write_images(tmp_path, *EDM)
    source = FolderImages(tmp_path)
    assert source.class_names == ("image",) and source.labels.tolist() == [0, 0, 0]
    assert source.found.notes[0].startswith("no labels: 00000 … 00001 are numbered folders of numbered files")


def test_thousands_of_ffhq_are_no_classes(tmp_path):
    write_images(tmp_path, "00000/00000.png", "01000/01000.png", "69000/69999.png")
    assert FolderImages(tmp_path).class_names == ("image",)
    write_images(tmp_path, "69000/00001.png")
    assert FolderImages(tmp_path).class_names == ("00000", "01000", "69000")


def test_numbered_folders_of_other_files(tmp_path):
    """The German traffic signs are numbered like this."""
    write_images(tmp_path, "00000/00000_00001.png", "00001/00000_00001.png")
    assert FolderImages(tmp_path).class_names == ("00000", "00001")


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_images(tmp_path / name, f"{name}/{name}.png", "b/0.png")
    (tmp_path / name / "b" / f"{name}.png").write_bytes(b"x")
    source = FolderImages(tmp_path / name, options=ReadOptions(unreadable_list=tmp_path / "unreadable.txt"))
    assert source.class_names == ("b", "caf\\udce9") and source.name == "caf\\udce9"
    assert len(source.fingerprint()) == 64
    assert (tmp_path / "unreadable.txt").read_bytes().endswith(b"/caf\xe9/b/caf\xe9.png\tnot an image\n")
    print(describe("images", len(source), source.class_names, source.found))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("a" * 5000, r"images: a{100}… \(5,000 characters\) cannot be opened: File name too long"),
        ("a/" * 2500, "cannot be opened: File name too long"),
        ("~no-such-user/x", "cannot be opened: Could not determine home directory"),
        ("a\0b", "no such images"),
        ("", "no such images"),
    ],
)
def test_bad_paths_are_one_line(tmp_path, capsys, given, why):
    with pytest.raises(UserError, match=why):
        open_images(given)
    assert run(["demo", "--images", given, "--output", str(tmp_path / "run")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path, "photos/train/a/0.png", "photos/test/a/0.png")
    assert open_images("~/photos/").found.where == f"folder {tmp_path}/photos/train"
    assert has_part("~/photos", "test")


def test_describe_wraps_at_80_columns():
    found = Found("folder photos/train", {".txt": 3, "in @eaDir": 6, "unreadable": 2}, ("a note " * 20,))
    lines = describe("images", 12, ("aeroplane", "bus", "train"), found).splitlines()
    assert lines[:2] == [
        "images: 12 in 3 classes (aeroplane, bus, train) from folder photos/train; passed",
        "  over: 6 in @eaDir, 3 .txt, 2 unreadable",
    ]
    assert max(map(len, lines)) <= 80 and lines[2].startswith("  a note") and lines[3].startswith("    ")
    many = describe("images", 50_000, [f"n{i:08d}" for i in range(1000)], Found("folder x"))
    assert many == "images: 50,000 in 1,000 classes (n00000000 … n00000999) from folder x"
    assert describe("images", 5, ("image",), Found("folder x")) == "images: 5 without labels from folder x"
    endings = {f".{i:03d}": 1 for i in range(100)}
    assert "93 others" not in many and "92 others" in describe("images", 5, (), Found("folder x", endings))


def test_file_that_vanishes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "a/x.png", "a/y.png")
    source = FolderImages(tmp_path)
    (tmp_path / "a/x.png").unlink()
    with pytest.raises(UserError, match=r"cannot read image .*x\.png"):
        source.fingerprint()
