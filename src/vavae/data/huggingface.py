"""Image data sets of the Hugging Face hub, or saved by the `datasets` library (extra `datasets`)."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vavae.data.readable import IMAGE_ERRORS, Unreadable, find_unreadable, image_error, write_unreadable
from vavae.data.sources import read_rgb
from vavae.errors import UserError

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

    Attributes:
        unreadable: (number in the set, reason) of each image left out.

    Raises:
        UserError: `datasets` is not installed, the set cannot be opened, or it holds no images.
    """

    def __init__(
        self,
        source: str,
        split: Literal["train", "test"] = "train",
        image_column: str | None = None,
        label_column: str | None = None,
        unreadable_list: str | os.PathLike[str] | None = None,
        check: Literal["decode", "header"] = "decode",
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise UserError("images: Hugging Face data sets need the extra: pip install 'vavae[datasets]'") from error
        try:
            rows = _open(source, split)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"images: the data set {source} cannot be opened: {str(error).splitlines()[0]}") from error
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
            labels = np.asarray(rows[chosen], dtype=np.int64)
            if len(labels) and labels.min() < 0:
                raise UserError(f"images: the {split} part of {source} has hidden labels ({chosen} = {labels.min()})")
            names = getattr(features[chosen], "names", None)
            self.class_names = tuple(names or (str(n) for n in range(int(labels.max()) + 1)))
        self._identity = f"{rows._fingerprint} {self._image}"
        key = ("hf", self._identity, len(rows), check)
        failed = find_unreadable(len(rows), lambda i: image_error(self._file(i), check == "decode"), key)
        self.unreadable: Unreadable = [(f"{source} {split} {number}", reason) for number, reason in failed.items()]
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
        entry = self._rows[row][self._image]
        return io.BytesIO(entry["bytes"]) if entry["bytes"] is not None else Path(entry["path"])

    def image(self, index: int) -> Image.Image:
        try:
            return read_rgb(self._file(int(self._kept[index])))
        except IMAGE_ERRORS as error:
            raise UserError(f"cannot read image {index} of {self.name}: {error}") from error

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def fingerprint(self) -> str:
        """Digest of the library's own fingerprint, the column used, and which images can be read."""
        digest = hashlib.sha256(f"{self._identity} {len(self)}".encode())
        digest.update(self._kept.astype("<i8").tobytes())
        return digest.hexdigest()


def _open(source: str, split: str) -> Any:
    import datasets

    local = Path(source).is_dir() and any(
        (Path(source) / name).exists() for name in ("state.json", "dataset_dict.json")
    )
    whole = datasets.load_from_disk(source) if local else None
    if isinstance(whole, datasets.Dataset):
        return whole
    parts = list(whole) if whole is not None else datasets.get_dataset_split_names(source)
    name = next((name for name in _SPLITS[split] if name in parts), None)
    if name is None:
        raise UserError(f"images: {source} has none of {', '.join(_SPLITS[split])}; its parts are {', '.join(parts)}")
    return whole[name] if whole is not None else datasets.load_dataset(source, split=name)
