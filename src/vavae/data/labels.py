"""Names of images, labels and parts in data sets, and the values that are class numbers."""

import re
from typing import Any

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
        ValueError: It is not a class number; the message names the value.
    """
    shown = str(value).strip()[:40]
    if isinstance(value, str) and is_number(value):
        value = int(value.strip().partition(".")[0])
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool):
        raise ValueError(f"its label {shown!r} is not a class number")
    if value < 0:
        raise ValueError(f"its label {shown} is hidden")
    if value >= MOST_CLASSES:
        raise ValueError(f"its label {shown} is not below {MOST_CLASSES:,}")
    return int(value)
