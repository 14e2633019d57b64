"""Names of images and labels in other people's data, and which values are class numbers."""

import re
from typing import Any

# Names of columns, and parts of endings in shards, that hold the image where there are several.
IMAGE_NAMES = ("image", "img", "picture", "photo", "pixels")
# Names of columns, of keys in JSON and of endings in shards that hold labels, in order of preference.
LABEL_NAMES = (
    *("label", "labels", "cls", "class", "class_id", "class_idx", "class_index", "class_label"),
    *("label_id", "label_idx", "target", "targets", "fine_label", "category_id", "category", "y"),
)
# The option `label_column` of images that shall count as unlabeled.
NO_LABELS = "none"
# Memory grows with the largest class number.
_MOST_CLASSES = 1_000_000


def label_names(column: str | None) -> tuple[str, ...]:
    """Return the names that labels may have under the option `label_column`; none where labels are not wanted."""
    if column is None:
        return LABEL_NAMES
    return () if column == NO_LABELS else (column,)


def is_number(text: str) -> bool:
    """Return whether a text is a whole number in decimal digits, such as "3", " 3\\n" or "3.0"."""
    return re.fullmatch(r"\s*[+-]?\d+(\.0*)?\s*", text, re.ASCII) is not None


def class_number(value: Any) -> int:
    """Return the class number that a value is: a whole number in [0, 1,000,000), as a number or as text.

    Raises:
        ValueError: It is another value (names, lists, true and false too); the message names the value.
    """
    shown = str(value).strip()[:40]
    if isinstance(value, str) and is_number(value):
        value = int(value.strip().partition(".")[0])
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool):
        raise ValueError(f"its label {shown!r} is not a class number")
    if value < 0:
        raise ValueError(f"its label {shown} is hidden")
    if value >= _MOST_CLASSES:
        raise ValueError(f"its label {shown} is not below {_MOST_CLASSES:,}")
    return int(value)
