"""Image data sets of the Hugging Face hub, or saved by the `datasets` library (extra `datasets`)."""

import hashlib
import io
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vavae.data.found import Found
from vavae.data.readable import (
    GrayRange,
    Unreadable,
    find_unreadable,
    image_error,
    range_key,
    read_rgb,
    reading,
    write_unreadable,
)
from vavae.errors import UserError, told

# What sets call the part for testing. Some (ImageNet) hide the labels of `test`, so a validation part goes first.
_SPLITS = {"train": ("train", "training"), "test": ("validation", "valid", "val", "test")}


class HuggingFaceImages:
    """A map-style data set with an image column and, if there is one, a label column.

    Images that cannot be read are left out, counted and named.

    Args:
        source: Name on the hub, or a folder that `save_to_disk` wrote.
        split: "train" or "test"; "test" is the set's validation part where it has one. A folder with one set only
            is taken whole for both.
        image_column: Column of the images; null takes the first one that holds images.
        label_column: Column of the labels; null takes `label`, or the first column of classes.
        unreadable_list: Where to write numbers of unreadable images and the reasons, one per line, tab-separated.
        check: "decode" reads every image whole once; "header" reads only the beginnings.
        gray_range: See `readable.upright_rgb`.

    Attributes:
        unreadable: (number in the set, reason) of each image left out.

    Raises:
        UserError: `datasets` is not installed, the set cannot be opened, its labels are no class numbers, a file of
            it could not be got at, or it holds no images.
        RunError: There is not enough memory to decode an image.
    """

    def __init__(
        self,
        source: str,
        split: Literal["train", "test"] = "train",
        image_column: str | None = None,
        label_column: str | None = None,
        unreadable_list: str | os.PathLike[str] | None = None,
        check: Literal["decode", "header"] = "decode",
        gray_range: GrayRange | None = None,
    ) -> None:
        datasets = _library()
        with _naming_set(source):
            rows, of_training = _open(source, split)
        features = rows.features
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        self._image = image_column or next(iter(images), None)
        if self._image not in features:
            raise UserError(f"images: {source} has no column of images; its columns are {', '.join(features)}")
        # Undecoded, so that all sources are decoded in the same way.
        self._rows: Any = rows.select_columns([self._image]).cast_column(self._image, datasets.Image(decode=False))
        self.name = source.rsplit("/", 1)[-1]
        chosen = label_column or ("label" if "label" in features else next(iter(classes), None))
        labels = np.zeros(len(rows), dtype=np.int64)
        self.class_names: tuple[str, ...] = ("image",)
        if chosen is not None:
            labels = _numbers(rows[chosen][:], f"column {chosen} of the {split} part of {source}")
            if len(labels) and labels.min() < 0:
                raise UserError(f"images: the {split} part of {source} has hidden labels ({chosen} = {labels.min()})")
            names = getattr(features[chosen], "names", None)
            if names != getattr(of_training.get(chosen), "names", names):
                raise UserError(
                    f"images: the {split} part of {source} has other classes in {chosen} than the train part"
                )
            self.class_names = tuple(names or (str(n) for n in range(int(labels.max(initial=0)) + 1)))
        self._identity = f"{rows._fingerprint} {self._image}"
        self.gray_range = gray_range
        key = ("hf", self._identity, len(rows), check, gray_range)

        def error_of(row: int) -> str | None:
            file = self._file(row)
            return "there is no image" if file is None else image_error(file, check == "decode", gray_range)

        failed = find_unreadable(len(rows), error_of, lambda row: f"{row} of {source} {split}", key)
        self.unreadable: Unreadable = [(f"{source} {split} {number}", reason) for number, reason in failed.items()]
        self.found = Found(f"hf:{source}, split {split}", {"unreadable": len(failed)} if failed else {})
        write_unreadable(self.unreadable, unreadable_list)
        self._kept = np.array([i for i in range(len(rows)) if i not in failed], dtype=np.int64)
        self.labels = labels[self._kept]
        if not len(self._kept):
            raise UserError(f"images: no readable images in {source} ({len(failed)} failed)")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._kept)

    def _file(self, row: int) -> Any:
        """An image's file, open or by its path; None where the row has none."""
        entry = self._rows[row][self._image] or {}
        if entry.get("bytes") is not None:
            return io.BytesIO(entry["bytes"])
        return Path(entry["path"]) if entry.get("path") else None

    def image(self, index: int) -> Image.Image:
        with reading(f"image {index} of {self.name}"):
            return read_rgb(self._file(int(self._kept[index])), self.gray_range)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def fingerprint(self) -> str:
        """Digest of the library's own fingerprint, the column used, and which images can be read."""
        digest = hashlib.sha256(f"{self._identity} {len(self)}".encode() + range_key(self.gray_range))
        digest.update(self._kept.astype("<i8").tobytes())
        return digest.hexdigest()


def has_test_part(source: str) -> bool:
    """Whether a set has a part of its own for testing.

    Raises:
        UserError: `datasets` is not installed, or the set cannot be opened.
    """
    _library()
    with _naming_set(source):
        parts = _parts(source)[0]
    return any(name in parts for name in _SPLITS["test"])


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("images: Hugging Face data sets need the extra: pip install 'vavae[datasets]'") from error
    return datasets


def _naming_set(source: str) -> AbstractContextManager[None]:
    name = f"the data set {source}"
    return told(lambda reason: f"images: {name} cannot be opened: {reason}", f"open {name}")


def _parts(source: str) -> tuple[list[str], Any]:
    """Names of a set's parts, and what is on disk: its parts by name, one set alone, or None for one of the hub."""
    import datasets

    if not source:
        raise UserError("images: hf: names no data set; give its name on the hub or its folder, as hf:cifar10")
    names = ("state.json", "dataset_dict.json")
    local = Path(source).is_dir() and any((Path(source) / name).exists() for name in names)
    if not local:
        return datasets.get_dataset_split_names(source), None
    whole = datasets.load_from_disk(source)
    return ([] if isinstance(whole, datasets.Dataset) else list(whole)), whole


def _open(source: str, split: str) -> tuple[Any, dict[str, Any]]:
    """Rows of a part, and the columns of the training part: those of the hub are the same in all parts."""
    import datasets

    parts, whole = _parts(source)
    if isinstance(whole, datasets.Dataset):
        return whole, {}
    names = {which: next((name for name in _SPLITS[which] if name in parts), None) for which in _SPLITS}
    name = names[split]
    if name is None:
        raise UserError(f"images: {source} has none of {', '.join(_SPLITS[split])}; its parts are {', '.join(parts)}")
    if whole is None:
        return datasets.load_dataset(source, split=name), {}
    return whole[name], dict(whole[names["train"]].features) if names["train"] is not None else {}


def _numbers(values: list[Any], where: str) -> NDArray[np.int64]:
    """Class numbers, (N,) int64.

    Raises:
        UserError: One of them is none: a name, a list, nothing, or a number that is not whole.
    """
    for value in values:
        if not isinstance(value, int) and not (isinstance(value, float) and value.is_integer()):
            raise UserError(f"images: {where} holds {str(value)[:40]!r}, which is no class number")
    return np.array(values, dtype=np.int64)
