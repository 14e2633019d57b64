"""Images from the datasets library."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as arrow
import pytest
from picture_files import labeled, picture, png, write_tar
from pyarrow import parquet

from vavae.data import ImageSource, ReadOptions, open_images
from vavae.data.found import Found
from vavae.data.huggingface import HuggingFaceImages
from vavae.data.images import ImagesConfig
from vavae.errors import UserError


def test_missing_datasets_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'vavae\[datasets\]'"):
        open_images("hf:owner/something")


def hub_set(contents: list[bytes], labels: list[int]) -> datasets.Dataset:
    kinds = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"picture": [{"bytes": content, "path": None} for content in contents], "label": labels}
    return datasets.Dataset.from_dict(rows, features=kinds)


def test_empty_hub_name_is_refused() -> None:
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


def test_hub_skips_corrupt_images(tmp_path: Path) -> None:
    hub_set([png(0), png(1)[:60], png(2)], [0, 1, 1]).save_to_disk(str(tmp_path / "set"))
    images = open_images(f"hf:{tmp_path / 'set'}", "train", ReadOptions(unreadable_list=tmp_path / "unreadable.txt"))
    assert [images.label(i) for i in range(len(images))] == [0, 1]
    assert np.array_equal(np.asarray(images.image(1)), picture(2))
    assert (tmp_path / "unreadable.txt").read_text().startswith(f"{tmp_path / 'set'} train 1\t")


def test_hub_sets_have_parts(tmp_path: Path) -> None:
    """The validation part is used for testing, since ImageNet hides its test labels."""
    parts = {"train": ([png(0), png(1)], [0, 1]), "validation": ([png(2)], [1]), "test": ([png(3)], [-1])}
    whole = datasets.DatasetDict({name: hub_set(*rows) for name, rows in parts.items()})
    whole.save_to_disk(str(tmp_path / "set"))
    assert len(open_images(f"hf:{tmp_path / 'set'}")) == 2
    tested = open_images(f"hf:{tmp_path / 'set'}", "test")
    assert len(tested) == 1 and np.array_equal(np.asarray(tested.image(0)), picture(2))
    del whole["validation"]
    whole.save_to_disk(str(tmp_path / "hidden"))
    with pytest.raises(UserError, match=r"column label of the test part of .*: row 0: its label must be .*, got -1"):
        open_images(f"hf:{tmp_path / 'hidden'}", "test")


@pytest.mark.parametrize("labels", [[0, None], [[0], [1, 2]], [[0], [1]], [0.5, 1.0]])
def test_hub_labels_must_be_class_numbers(labels: list[object], tmp_path: Path) -> None:
    rows = {"picture": [{"bytes": png(n), "path": None} for n in range(2)], "label": labels}
    made = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    made.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match=r"label of the train part of .*set: row \d: its label must be a whole number"):
        open_images(f"hf:{tmp_path / 'set'}")


def test_hub_rows_without_an_image(tmp_path: Path) -> None:
    made = hub_set([png(0), png(1)], [0, 1])
    kinds = made.features
    rows = [*made.cast_column("picture", datasets.Image(decode=False)), {"picture": None, "label": 1}]
    datasets.Dataset.from_list(rows, features=kinds).save_to_disk(str(tmp_path / "set"))
    images = open_images(f"hf:{tmp_path / 'set'}")
    assert len(images) == 2 and isinstance(images, HuggingFaceImages)
    assert images.unreadable == [(f"{tmp_path / 'set'} train 2", "it has no image")]


def test_hub_parts_must_have_the_same_classes(tmp_path: Path) -> None:
    train, test = hub_set([png(0), png(1)], [0, 1]), hub_set([png(2)], [0])
    test = test.cast_column("label", datasets.ClassLabel(names=["dog", "emu"]))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "set"))
    assert len(open_images(f"hf:{tmp_path / 'set'}")) == 2
    with pytest.raises(UserError, match=r"the test part of .* has other classes in label than the train part"):
        open_images(f"hf:{tmp_path / 'set'}", "test")


def test_holdout_of_a_hub_set(tmp_path: Path) -> None:
    """It is taken from the training part, unless the set has a test part."""
    train, test = hub_set([png(n) for n in range(8)], [0, 1] * 4), hub_set([png(9)], [0])
    datasets.DatasetDict({"train": train}).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "two"))
    for name, sizes in (("one", (6, 2)), ("two", (8, 1))):
        config = ImagesConfig(f"hf:{tmp_path / name}", 8, holdout=0.25)
        assert (len(config.open("train")), len(config.open("test"))) == sizes


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the library's copies of local folders out of the user's cache, and the library offline."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_parquet(path: Path, columns: dict[str, Any]) -> str:
    """Write a file without a type for images, as pandas, polars and Spark do; return the address of its folder."""
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
def test_wrong_hub_labels_name_the_row(name: str, labels: list[Any], tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "set" / "train.parquet", {"image": PNGS, name: labels})
    with pytest.raises(UserError, match=rf"column {name} of the train part of .*set: row 2: its label .*label_column"):
        open_images(source)
    assert open_images(source, options=ReadOptions(label_column="none")).num_classes == 1


@pytest.mark.usefixtures("hub_cache")
def test_column_options_of_hub_sets(tmp_path: Path) -> None:
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
        ({"image_column": "a", "label_column": "many"}, "column many of the train part .* must be a whole number"),
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
def test_columns_without_images_are_refused(column: list[Any], message: str, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "set" / "train.parquet", {"image": column, "label": [0, 1]})
    with pytest.raises(UserError, match=message):
        open_images(source)


@pytest.mark.usefixtures("hub_cache")
def test_shards_as_a_hub_set(tmp_path: Path) -> None:
    """The library reads a folder of tar shards. Whole numbers under `cls` are labels."""
    (tmp_path / "set").mkdir()
    members = [(f"{n}.json", b'{"label": 0}') for n in range(3)]
    write_tar(tmp_path / "set" / "imagenet1k-train-0000.tar", sorted([*labeled([0, 1, 2]), *members]))
    images = open_images(f"hf:{tmp_path / 'set'}")
    assert [images.label(i) for i in range(3)] == [0, 1, 2]
    assert isinstance(images, HuggingFaceImages) and images.found.notes == ("labels from column cls",)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("train", "tested"), [("train", "validation"), ("Training", "Valid"), ("TRAIN", "DEV"), ("train", "val")]
)
def test_other_names_of_hub_parts(train: str, tested: str, tmp_path: Path) -> None:
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
def test_files_outside_splits_are_counted(tmp_path: Path) -> None:
    for name in ("train", "more", "others"):
        source = write_parquet(tmp_path / "set" / f"{name}.parquet", {"image": PNGS, "label": [0, 1, 2]})
    (tmp_path / "set" / "notes.txt").touch()
    images = open_images(source)
    assert len(images) == 3 and isinstance(images, HuggingFaceImages)
    assert images.found.passed_over == {"files that are not named after a split": 2}


@pytest.mark.usefixtures("hub_cache")
def test_text_labels_follow_the_training_part(tmp_path: Path) -> None:
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


def test_hub_configuration_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_mistyped_folders_do_not_reach_the_hub(tmp_path: Path) -> None:
    for source in (f"{tmp_path}/nowhere", "./nowhere", "~/no/where", "some/folder/deep"):
        with pytest.raises(UserError, match=f"{source}: no such folder of images"):
            open_images(f"hf:{source}")
    source = write_parquet(tmp_path / "set" / "train.parquet", {"image": PNGS, "label": [0, 1, 2]})
    with pytest.raises(UserError, match=r"train\.parquet is a file: give the folder it is in"):
        open_images(f"{source}/train.parquet")
    with pytest.raises(UserError, match=r"a local folder has no revisions \(@main\)"):
        open_images(f"{source}@main")
    with pytest.raises(UserError, match=r"has none of validation, .*; its parts are train; .*data\.holdout"):
        open_images(source, "test")
