"""Images of a recipe: parts, limits, selections, reports."""

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vavae.cli import run
from vavae.config import to_plain
from vavae.data import DemoImages
from vavae.data.images import ImagesConfig, Selection, class_balanced, note_source, printed_once
from vavae.errors import UserError


def make_folder(folder: Path, classes: int, each: int) -> Path:
    for label in range(classes):
        (folder / f"c{label}").mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (16, 16), (label * 20, i * 5, 0)).save(folder / f"c{label}/{i:02d}.png")
    return folder


def colors(source: Selection) -> list[tuple[int, ...]]:
    return [source.image(i).getpixel((0, 0)) for i in range(len(source))]  # type: ignore[misc]


def test_holdout_splits_a_folder(tmp_path: Path) -> None:
    config = ImagesConfig(str(make_folder(tmp_path / "x", 4, 10)), 16, holdout=0.25)
    train, test = config.open("train"), config.open("test")
    assert (len(train), len(test)) == (30, 10)
    one, other = set(colors(train)), set(colors(test))  # type: ignore[arg-type]
    assert not one & other and len(one | other) == 40
    assert train.fingerprint() != test.fingerprint()
    assert all(source.image(i).getpixel((0, 0))[0] == source.label(i) * 20 for source in (train, test) for i in (0, 5))  # type: ignore[index]


def test_folder_with_a_test_part_ignores_holdout(tmp_path: Path) -> None:
    make_folder(tmp_path / "x/train", 2, 6)
    make_folder(tmp_path / "x/val", 2, 3)
    config = ImagesConfig(str(tmp_path / "x"), 16, holdout=0.5)
    assert (len(config.open("train")), len(config.open("test"))) == (12, 6)


def test_holdout_of_a_lone_train_part(tmp_path: Path) -> None:
    make_folder(tmp_path / "x/train", 2, 10)
    config = ImagesConfig(str(tmp_path / "x"), 16, holdout=0.2)
    train, test = config.open("train"), config.open("test")
    assert (len(train), len(test)) == (16, 4) and test.class_names == ("c0", "c1")
    assert not set(colors(train)) & set(colors(test))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"has a train folder but none of .*data\.holdout"):
        ImagesConfig(str(tmp_path / "x"), 16).open("test")


def test_header_check_in_a_recipe(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x", 1, 3)
    cut = folder / "c0/01.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    assert len(ImagesConfig(str(folder), 16).open("train")) == 2
    assert len(ImagesConfig(str(folder), 16, check="header").open("train")) == 3


def test_open_reports_and_records_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "x", 2, 5)
    (folder / "c0/01.png").write_bytes(b"x")
    (folder / "c0/notes.txt").write_text("x")
    note_source(tmp_path, ImagesConfig(str(folder), 16, limit=4).open("train", tmp_path))
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(
        f"images: 4 in 2 classes (c0, c1) from folder {folder}; passed over: 1 .txt, 1 unreadable"
    )
    assert f"unreadable: {folder}/c0/01.png: not an image (unreadable.txt lists all)" in printed
    assert printed.endswith("4 of 9 images, by data.limit")
    (folder / "c0/01.png").unlink()
    unreadable = tmp_path / "unreadable.txt"
    assert unreadable.exists()
    note_source(tmp_path, ImagesConfig(str(folder), 16).open("test", what="validation"), "validation")
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("validation: 9 in 2 classes") and "lists all" not in printed
    assert "no test part: training and test images are the same" in printed
    noted = json.loads((tmp_path / "images.json").read_text())
    assert noted["images"]["images"] == 4 and noted["images"]["classes"] == ["c0", "c1"]
    assert noted["images"]["passed_over"] == {".txt": 1, "unreadable": 1}
    assert noted["validation"]["from"] == f"folder {folder}"
    ImagesConfig(str(folder), 16).open("train", tmp_path)
    assert not unreadable.exists()  # all images can be read now


def test_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    for block, times in ((printed_once(), 1), (nullcontext(), 2)):
        with block:
            ImagesConfig("demo", 32).open("train")
            ImagesConfig("demo", 32).open("train")
        assert capsys.readouterr().out.count("images: 5,000 in 10 classes (airplane, ") == times


def test_parts_with_different_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "x/train", 2, 20)
    make_folder(tmp_path / "y", 1, 20)
    (tmp_path / "y/c0").rename(tmp_path / "x/val")
    output = ["--output", str(tmp_path / "run")]
    assert run(["demo", "--quick", "--images", str(tmp_path / "x"), *output]) == 2
    printed = capsys.readouterr().err
    assert "the training part is in 2 classes (c0, c1) and the test part without labels" in printed


def test_folder_without_holdout(tmp_path: Path) -> None:
    config = ImagesConfig(str(make_folder(tmp_path / "x", 2, 6)), 16)
    assert len(config.open("train")) == len(config.open("test")) == 12


def test_limit_covers_all_classes() -> None:
    source = ImagesConfig("demo", 32, limit=500).open("train")
    counts = Counter(source.label(i) for i in range(500))
    assert len(counts) == 10 and min(counts.values()) > 30


def test_class_balanced_alternates() -> None:
    source = ImagesConfig("demo", 32).open("test")
    assert [source.label(i) for i in class_balanced(20, source)] == [*range(10), *range(10)]
    assert class_balanced(5000, source) != list(range(1000)) and sorted(class_balanced(5000, source)) == list(
        range(1000)
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=20))
def test_selection_has_the_chosen_images(indices: list[int]) -> None:
    source = DemoImages("test")
    chosen = Selection(source, np.array(indices))
    assert [chosen.label(i) for i in range(len(chosen))] == [source.label(i) for i in indices]
    assert np.array_equal(np.asarray(chosen.image(0)), np.asarray(source.image(indices[0])))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"size": 4}, "size must"),
        ({"holdout": 1.0}, "holdout must"),
        ({"limit": 0}, "limit must"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ImagesConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "kept", "latents"), [(32, 32, (8, 8)), ([32, 32], 32, (8, 8)), ([24, 40], (24, 40), (6, 10))]
)
def test_size_is_a_number_or_height_and_width(given: Any, kept: Any, latents: tuple[int, int]) -> None:
    config = ImagesConfig("demo", given)
    assert config.size == kept and config == ImagesConfig("demo", kept)
    assert to_plain(config)["size"] == (kept if isinstance(kept, int) else [*kept])
    assert config.latent_size(4) == latents


@pytest.mark.parametrize(
    ("given", "factor", "message"),
    [
        (40, 16, r"^data\.size must be a multiple of the tokenizer's factor 16, got 40$"),
        ([24, 42], 4, r"^data\.size must be a multiple of the tokenizer's factor 4, got 24x42$"),
        ([22, 40], 4, r"^data\.size must be a multiple of the tokenizer's factor 4, got 22x40$"),
        ([0, 32], 4, r"^size must be at least 8 pixels, got 0x32$"),
        ([32, 7], 4, r"^size must be at least 8 pixels, got 32x7$"),
        ([192], 4, r"^size must be a number or \[height, width\], got \[192\]$"),
    ],
)
def test_sizes_that_do_not_fit_are_named(given: Any, factor: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImagesConfig("demo", given).latent_size(factor)
