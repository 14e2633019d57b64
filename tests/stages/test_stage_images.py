"""The images of a recipe: parts do not overlap, limits stay balanced, order is fixed."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vavae.config import to_plain
from vavae.errors import UserError
from vavae.stages.images import ImagesConfig, Selection, evenly


def make_folder(folder: Path, classes: int, each: int) -> Path:
    for label in range(classes):
        (folder / f"c{label}").mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (16, 16), (label * 20, i * 5, 0)).save(folder / f"c{label}/{i:02d}.png")
    return folder


def colours(source: Selection) -> list[tuple[int, ...]]:
    return [source.image(i).getpixel((0, 0)) for i in range(len(source))]  # type: ignore[misc]


def test_a_holdout_splits_a_folder_in_two(tmp_path: Path) -> None:
    config = ImagesConfig(str(make_folder(tmp_path / "x", 4, 10)), 16, holdout=0.25)
    train, test = config.open("train"), config.open("test")
    assert (len(train), len(test)) == (30, 10)
    one, other = set(colours(train)), set(colours(test))  # type: ignore[arg-type]
    assert not one & other and len(one | other) == 40
    assert train.fingerprint() != test.fingerprint()
    assert all(source.image(i).getpixel((0, 0))[0] == source.label(i) * 20 for source in (train, test) for i in (0, 5))  # type: ignore[index]


def test_a_folder_with_a_test_part_keeps_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "x/train", 2, 6)
    make_folder(tmp_path / "x/val", 2, 3)
    config = ImagesConfig(str(tmp_path / "x"), 16, holdout=0.5)
    assert (len(config.open("train")), len(config.open("test"))) == (12, 6)


def test_a_holdout_of_a_folder_with_a_train_part_only(tmp_path: Path) -> None:
    make_folder(tmp_path / "x/train", 2, 10)
    config = ImagesConfig(str(tmp_path / "x"), 16, holdout=0.2)
    train, test = config.open("train"), config.open("test")
    assert (len(train), len(test)) == (16, 4) and test.class_names == ("c0", "c1")
    assert not set(colours(train)) & set(colours(test))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"has a train folder but none of .*data\.holdout"):
        ImagesConfig(str(tmp_path / "x"), 16).open("test")


def test_a_recipe_can_leave_images_unread_until_they_are_used(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x", 1, 3)
    cut = folder / "c0/01.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    assert len(ImagesConfig(str(folder), 16).open("train")) == 2
    assert len(ImagesConfig(str(folder), 16, check="header").open("train")) == 3


def test_without_a_holdout_a_folder_is_taken_whole(tmp_path: Path) -> None:
    config = ImagesConfig(str(make_folder(tmp_path / "x", 2, 6)), 16)
    assert len(config.open("train")) == len(config.open("test")) == 12


def test_a_limit_is_spread_over_the_classes() -> None:
    source = ImagesConfig("demo", 32, limit=500).open("train")
    counts = Counter(source.label(i) for i in range(500))
    assert len(counts) == 10 and min(counts.values()) > 30


def test_evenly_takes_turns() -> None:
    source = ImagesConfig("demo", 32).open("test")
    assert [source.label(i) for i in evenly(20, source)] == [*range(10), *range(10)]
    assert evenly(5000, source) != list(range(1000)) and sorted(evenly(5000, source)) == list(range(1000))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=20))
def test_a_selection_is_its_images(indices: list[int]) -> None:
    source = ImagesConfig("demo", 32).open("test")
    chosen = Selection(source, np.array(indices))
    assert [chosen.label(i) for i in range(len(chosen))] == [source.label(i) for i in indices]
    assert np.array_equal(np.asarray(chosen.image(0)), np.asarray(source.image(indices[0])))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"size": 4}, "size"), ({"holdout": 1.0}, "holdout"), ({"limit": 0}, "limit"), ({"workers": -1}, "workers: -1")],
)
def test_wrong_numbers_are_named(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ImagesConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "kept", "latents"), [(32, 32, (8, 8)), ([32, 32], 32, (8, 8)), ([24, 40], (24, 40), (6, 10))]
)
def test_a_size_is_a_number_or_height_and_width(given: Any, kept: Any, latents: tuple[int, int]) -> None:
    config = ImagesConfig("demo", given)
    assert config.size == kept and config == ImagesConfig("demo", kept)
    assert to_plain(config)["size"] == (kept if isinstance(kept, int) else [*kept])
    assert config.latent_size(4) == latents


@pytest.mark.parametrize(
    ("given", "factor", "told"),
    [
        (40, 16, r"^data\.size: 40 is no multiple of the tokenizer's factor 16$"),
        ([24, 42], 4, r"^data\.size: 24x42 is no multiple of the tokenizer's factor 4$"),
        ([22, 40], 4, r"^data\.size: 22x40 is no multiple of the tokenizer's factor 4$"),
        ([0, 32], 4, r"^size: images of 0x32 pixels are too small; at least 8$"),
        ([32, 7], 4, r"^size: images of 32x7 pixels are too small; at least 8$"),
        ([192], 4, r"^size: \[192\] is neither a number nor \[height, width\]$"),
    ],
)
def test_a_size_that_does_not_fit_is_named(given: Any, factor: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        ImagesConfig("demo", given).latent_size(factor)
