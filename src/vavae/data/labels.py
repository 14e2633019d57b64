"""Labels and parts of data sets: their names, class numbers, and the labels in `dataset.json`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vavae.errors import UserError, one_line
from vavae.io.files import parse_json

# Names of columns, and parts of endings in shards, that hold the image if there are several.
IMAGE_NAMES = ("image", "img", "picture", "photo", "pixels")
# Names of columns, of keys in JSON and of endings in shards that hold labels, in order of preference.
LABEL_NAMES = (
    *("label", "labels", "cls", "class", "class_id", "class_idx", "class_index", "class_label"),
    *("label_id", "label_idx", "target", "targets", "fine_label", "category_id", "category", "y"),
    *("gt", "ground_truth", "coarse_label", "classes", "class_name", "label_name", "category_name"),
)
# Value of the option `label_column` that takes no labels.
NO_LABELS = "none"
# Names of parts of a set, in order of preference.
PARTS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
PART_OF = {name: part for part, names in PARTS.items() for name in names}
# Memory grows with the largest class number.
MOST_CLASSES = 1_000_000
# Labels of files, in the layout of StyleGAN, EDM and REPA: {"labels": [["00000/img00000000.png", 3], …]} gives a class
# number for each file, by its path relative to the folder; {"labels": null} means that the images have none.
LABELS_FILE = "dataset.json"


def label_names(column: str | None) -> tuple[str, ...]:
    """Return the names that labels may have under the option `label_column`; empty if no labels are wanted."""
    if column is None:
        return LABEL_NAMES
    return () if column == NO_LABELS else (column,)


def is_number(text: str) -> bool:
    """Return whether a text is a whole number in decimal digits, such as "3", " 3\\n" or "3.0"."""
    return re.fullmatch(r"\s*[+-]?\d+(\.0*)?\s*", text, re.ASCII) is not None


def class_number(value: Any) -> int:
    """Return a value as a class number: a whole number in [0, 1,000,000), as a number or as text.

    Raises:
        ValueError: It is not a class number; the message has the value.
    """
    shown = repr(value)[:40]
    if isinstance(value, str) and is_number(value):
        value = int(value.strip().partition(".")[0])
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or not 0 <= value < MOST_CLASSES:
        raise ValueError(f"its label must be a whole number from 0 to {MOST_CLASSES - 1:,}, got {shown}")
    return int(value)


@dataclass(frozen=True)
class LabelFile:
    """The content of a `dataset.json`."""

    path: Path
    stated: bool  # whether it has the key `labels`: other tools write files of this name too
    labels: dict[str, int]  # class number by path relative to the file's folder; empty if the images have none

    def class_names(self) -> tuple[str, ...]:
        """Return the class numbers as names, up to the largest."""
        return tuple(str(number) for number in range(max(self.labels.values()) + 1))

    def labels_of(self, paths: Sequence[Path]) -> NDArray[np.int64]:
        """Return the class numbers of files, (N,) int64.

        Raises:
            UserError: A file has none.
        """
        names = [path.relative_to(self.path.parent).as_posix() for path in paths]
        for name in names:
            if name not in self.labels:
                raise UserError(f"{self.path} must have a label for every image, but has no label for {name}")
        return np.array([self.labels[name] for name in names], dtype=np.int64)

    def missing(self, root: Path, paths: Sequence[Path]) -> list[str]:
        """Return the files below `root` that have a label and are not among `paths`."""
        inside = "" if root == self.path.parent else f"{root.relative_to(self.path.parent).as_posix()}/"
        found = {path.relative_to(self.path.parent).as_posix() for path in paths}
        return [name for name in self.labels if name.startswith(inside) and name not in found]


def find_label_file(*folders: Path) -> LabelFile | None:
    """Read the `dataset.json` of the first folder that has one.

    Raises:
        UserError: It is damaged, a label is not a class number, or only some images have one.
    """
    path = next((folder / LABELS_FILE for folder in folders if (folder / LABELS_FILE).is_file()), None)
    if path is None:
        return None
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict) or "labels" not in content:
        return LabelFile(path, False, {})
    return LabelFile(path, True, _checked(content["labels"], path))


def _checked(entries: Any, path: Path) -> dict[str, int]:
    """Return class number by file; empty if all labels are null."""
    if entries is None:
        return {}
    pairs = list(entries.items()) if isinstance(entries, dict) else entries
    if not isinstance(pairs, list):
        raise UserError(f"{path}: labels must be a list of [file, label], got {type(entries).__name__}")
    labels: dict[str, int] = {}
    without: str | None = None
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(f"{path}: labels must be a list of [file, label], got {str(pair)[:60]} in it")
        name, label = pair
        if label is None:
            without = name
            continue
        try:
            number = class_number(label)
        except ValueError as error:
            raise UserError(f"{path}: {name}: {error}") from error
        if labels.setdefault(name, number) != number:
            raise UserError(f"{path}: {name} has two labels, {labels[name]} and {number}")
    if without is not None and labels:
        raise UserError(f"{path}: {without} has no label and {next(iter(labels))} has one: give all a label, or none")
    return labels
