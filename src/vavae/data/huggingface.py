"""Image data sets of the Hugging Face hub, or saved by the `datasets` library (extra `datasets`)."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vavae.errors import UserError


class HuggingFaceImages:
    """A map-style data set with an image column and, if there is one, a label column.

    Args:
        source: Name on the hub, or a folder that `Dataset.save_to_disk` wrote.
        split: Name of the split, for the hub.
        image_column: Column of the images; null takes the first one that holds images.
        label_column: Column of the labels; null takes `label`, or the first column of classes.

    Raises:
        UserError: `datasets` is not installed, the set cannot be opened, or it holds no images.
    """

    def __init__(
        self, source: str, split: str = "train", image_column: str | None = None, label_column: str | None = None
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise UserError("images: Hugging Face data sets need the extra: pip install 'vavae[datasets]'") from error
        try:
            local = Path(source).is_dir()
            self._rows: Any = datasets.load_from_disk(source) if local else datasets.load_dataset(source, split=split)
        except Exception as error:
            raise UserError(f"images: the data set {source} cannot be opened: {str(error).splitlines()[0]}") from error
        features = self._rows.features
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        self._image = image_column or next(iter(images), None)
        if self._image not in features:
            raise UserError(f"images: {source} has no column of images; its columns are {', '.join(features)}")
        chosen = label_column or ("label" if "label" in features else next(iter(classes), None))
        self.name = source.rsplit("/", 1)[-1]
        self.labels = np.zeros(len(self._rows), dtype=np.int64)
        self.class_names: tuple[str, ...] = ("image",)
        if chosen is not None:
            self.labels = np.asarray(self._rows[chosen], dtype=np.int64)
            names = getattr(features[chosen], "names", None)
            self.class_names = tuple(names or (str(n) for n in range(int(self.labels.max()) + 1)))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, index: int) -> Image.Image:
        try:
            return self._rows[index][self._image].convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read image {index} of {self.name}: {error}") from error

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def fingerprint(self) -> str:
        """Digest of the library's own fingerprint and the columns used."""
        return hashlib.sha256(f"{self._rows._fingerprint} {self._image} {len(self)}".encode()).hexdigest()
