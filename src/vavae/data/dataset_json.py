"""Read labels of files from `dataset.json`, the layout of StyleGAN, EDM and REPA.

`{"labels": [["00000/img00000000.png", 3], …]}` gives a class number for each file, by its path relative to the folder.
`{"labels": null}` means that the images have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vavae.data.labels import class_number
from vavae.errors import UserError, one_line
from vavae.io.files import parse_json

NAME = "dataset.json"


@dataclass(frozen=True)
class LabelFile:
    """The content of a `dataset.json`.

    Attributes:
        path: The file.
        stated: Whether it has the key `labels`. Other tools write files of this name too.
        labels: Class number by path relative to the file's folder; empty if the images have none.
    """

    path: Path
    stated: bool
    labels: dict[str, int]

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
    path = next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)
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
