"""Image data sets on the Hugging Face hub, in local folders of parquet or tar files, or saved by `datasets`.

The extra `datasets` is required.
"""

import glob
import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vavae.data.formats import IMAGE_SUFFIXES
from vavae.data.found import UNLABELED, Found
from vavae.data.labels import IMAGE_NAMES, LABEL_NAMES, NO_LABELS, PART_OF, PARTS, class_number, is_number
from vavae.data.readable import DEFAULT_OPTIONS, ReadOptions, image_error, keep_readable, range_key, read_rgb, reading
from vavae.data.sources import ImageSource, Split
from vavae.errors import UserError, as_user_error
from vavae.extras import require_extra

# Some sets (ImageNet) hide the labels of `test`, so a validation part goes first.
_SPLITS = {"train": PARTS["train"], "test": (*PARTS["val"], *PARTS["test"])}
_IMAGE_COLUMNS = (*IMAGE_NAMES, *sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))


class HuggingFaceImages(ImageSource):
    """A map-style data set with an image column and, optionally, a label column.

    Images that cannot be read are left out, counted and named. `found` names the columns in use.

    Args:
        source: Name on the hub, or a folder of parquet, tar or image files, or a folder that `save_to_disk` wrote. A
            configuration may follow after a colon and a revision after an @: `owner/name:config@revision`.
        split: "train" or "test"; "test" is the set's validation part if it has one. Case does not matter in the names
            of parts. A set without parts is used whole for both.
        options: How to read the images. Without `image_column`, a column of type Image or else of files' bytes
            (binary, or a struct with `bytes`) is used: the one called `image`, `img`, …, or else the first one of type
            Image, or the only one of bytes. Without `label_column`, it is `label`, or the first column of classes, or
            else whole numbers, or else text, under one of `LABEL_NAMES`. Text numbers classes by their sorted names
            in the training part.

    Raises:
        UserError: `datasets` is not installed, the set cannot be opened, a column is missing or in doubt, its labels
            are not class numbers, a file of it cannot be accessed, or it has no images.
        RunError: There is not enough memory to decode an image.
    """

    def __init__(self, source: str, split: Split = "train", options: ReadOptions = DEFAULT_OPTIONS) -> None:
        parts, others = _parts(source)
        part = _part(parts, split)
        if part is None:
            raise UserError(
                f"images: {source} has none of {', '.join(_SPLITS[split])}; its parts are {', '.join(parts)}"
                + ("; keep some images for testing (data.holdout)" if split == "test" else "")
            )
        rows = parts[part]
        self.name = source.rsplit("/", 1)[-1]
        self.gray_range = options.gray_range
        self._image, notes = _image_column(rows.features, source, options.image_column)
        label_column, label_note = _label_column(rows.features, source, options.label_column)
        labels, self.class_names = np.zeros(len(rows), dtype=np.int64), UNLABELED
        if label_column is not None:
            training = parts.get(_part(parts, "train") or part, rows)
            labels, self.class_names = _labels(label_column, rows, training, split, source)
        # Not decoded by the library, so that all sources are decoded in the same way.
        self._rows: Any = _as_files(rows.select_columns([self._image]), self._image)
        self._identity = f"{rows._fingerprint} {self._image}"
        self._kept, self.unreadable = keep_readable(
            len(rows),
            lambda row: self._error(row, options),
            lambda row: f"{source} {split} {row}",
            ("hf", self._identity, len(rows)),
            options,
        )
        self.labels = labels[self._kept]
        if not len(self._kept):
            reason = f"{len(rows)} failed; {self.unreadable[0][1]}" if self.unreadable else "it has no rows"
            raise UserError(f"images: no readable images in column {self._image} of {source} ({reason})")
        where = f"hf:{source}" + (f", split {part}" if part else "")
        if rows.config_name not in (None, "default", ""):
            where += f", configuration {rows.config_name}"
        if not part:
            notes = ["the set has no splits and counts for training and testing", *notes]
        passed_over = Counter({"unreadable": len(self.unreadable), "files that are not named after a split": others})
        self.found = Found(where, dict(+passed_over), (*notes, label_note))

    def _file(self, row: int) -> Any:
        """Return an image's file, open or by its path; None if the row has no image."""
        entry = self._rows[row][self._image] or {}
        if entry.get("bytes") is not None:
            return io.BytesIO(entry["bytes"])
        return Path(entry["path"]) if entry.get("path") else None

    def _error(self, row: int, options: ReadOptions) -> str | None:
        file = self._file(row)
        return "it has no image" if file is None else image_error(file, options.decode, options.gray_range)

    def image(self, index: int) -> Image.Image:
        with reading(f"image {index} of {self.name}"):
            return read_rgb(self._file(int(self._kept[index])), self.gray_range)

    def fingerprint(self) -> str:
        """Return a digest of the library's own fingerprint, the columns used, and which images can be read."""
        digest = hashlib.sha256(f"{self._identity} {len(self)}".encode() + range_key(self.gray_range))
        digest.update(self._kept.astype("<i8").tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def has_test_part(source: str) -> bool:
    """Return whether a set has a part of its own for testing.

    Raises:
        UserError: `datasets` is not installed, or the set cannot be opened.
    """
    return bool(_part(_parts(source)[0], "test"))


def _parts(source: str) -> tuple[dict[str, Any], int]:
    """Open a set. Return its parts by name, or {"": set} without parts, and the number of unused files."""
    require_extra("datasets", f"images: hf:{source}")
    import datasets

    if not source:
        raise UserError("images: hf: names no data set; give its name on the hub or its folder, as hf:cifar10")
    what = f"the data set {source}"
    with as_user_error(lambda reason: f"images: {what} cannot be opened: {reason}", f"open {what}"):
        folder = Path(source).expanduser()
        if any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            whole = datasets.load_from_disk(str(folder))
            return ({"": whole} if isinstance(whole, datasets.Dataset) else dict(whole)), 0
        if folder.is_file():
            raise UserError(f"images: {source} is a file: give the folder it is in")
        name, config, revision = source, "", ""
        if not folder.is_dir():
            name, _, revision = source.partition("@")
            name, _, config = name.partition(":")
            folder = Path(name).expanduser()
        if folder.is_dir() and revision:
            raise UserError(f"images: hf:{source}: a local folder has no revisions (@{revision})")
        if not folder.is_dir() and (name.count("/") > 1 or name.startswith(("/", ".", "~"))):
            raise UserError(f"{name}: no such folder of images")
        name = str(folder) if folder.is_dir() else name
        named, others = _files_by_split(folder)
        if any(file != file.lower() for files in named.values() for file in files):
            # The library recognizes only lower-case names of splits.
            return dict(datasets.load_dataset(name, data_files=named)), others
        try:
            return dict(datasets.load_dataset(name, config or None, revision=revision or None)), others
        except ValueError:
            configs = datasets.get_dataset_config_names(name, revision=revision or None)
            if len(configs) == 1 or config in configs:
                raise
            raise UserError(
                f"images: {name} has the configurations {', '.join(configs)}: choose one, as hf:{name}:{configs[0]}"
            ) from None


def _files_by_split(folder: Path) -> tuple[dict[str, list[str]], int]:
    """Find the files of each split in a folder without a card (README.md) that lists them.

    Returns:
        Patterns of files and folders that are named after a split, in any case, and the number of other files with the
        same endings, which the library does not use.
    """
    named: dict[str, dict[str, None]] = {}
    endings: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for path in [] if (folder / "README.md").exists() else sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_dir() or any(part.startswith(".") for part in parts):
            continue
        splits = [(depth, word) for depth, part in enumerate(parts) for word in re.split(r"[^a-z]+", part.lower())]
        depth, split = next(((d, word) for d, word in splits if word in PART_OF), (0, ""))
        (endings if split else others)[path.suffix] += 1
        if split:
            pattern = "/".join(glob.escape(part) for part in parts[: depth + 1])
            named.setdefault(split, {})[pattern + ("/**" if depth + 1 < len(parts) else "")] = None
    return {split: list(patterns) for split, patterns in named.items()}, sum(others[ending] for ending in endings)


def _part(parts: dict[str, Any], which: str) -> str | None:
    """Return the name of the part for "train" or "test", "" for a set without parts, None if there is none."""
    return "" if "" in parts else _chosen(list(parts), _SPLITS[which])


def _chosen(candidates: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the candidate with the first matching name in `names`; None if none matches."""
    return next((column for name in names for column in candidates if _bare(column) == _bare(name)), None)


def _bare(name: str) -> str:
    """Return a name without case and separators: labelId, Label_ID and label-id are one name."""
    return re.sub(r"[\W_]", "", name).lower()


def _check_column(column: str, features: Any, source: str, option: str) -> None:
    if column not in features:
        raise UserError(f"{option}: {source} has no column {column}; its columns are {', '.join(features)}")


def _note(what: str, chosen: str, candidates: Sequence[str]) -> str:
    others = [name for name in candidates if name != chosen]
    return f"{what} from column {chosen}" + (f" (not {', '.join(others)})" if others else "")


def _image_column(features: Any, source: str, asked: str | None) -> tuple[str, list[str]]:
    """Return the column of images, and a note if there are several."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    files = [name for name, kind in features.items() if _holds_bytes(kind)]
    if asked is not None:
        _check_column(asked, features, source, "image_column")
        if asked not in (*images, *files):
            raise UserError(f"image_column: {asked} of {source} does not hold images but {_described(features[asked])}")
        return asked, []
    candidates = images or files
    chosen = _chosen(candidates, _IMAGE_COLUMNS)
    if chosen is None and (images or len(files) == 1):
        chosen = candidates[0]
    if chosen is None:
        columns = ", ".join(f"{name} ({_described(kind)})" for name, kind in features.items())
        raise UserError(
            f"images: {source} has no column of images (of type Image, or files' bytes)"
            + (f" that its name shows; name one of {', '.join(files)} (data.image_column)" if files else "")
            + f"; its columns are {columns}"
        )
    return chosen, [_note("images", chosen, candidates)] if len(candidates) > 1 else []


def _holds_bytes(kind: Any) -> bool:
    """Return whether a column has bytes of files, as pandas, polars and Spark write them."""
    if isinstance(kind, dict):
        return _holds_bytes(kind.get("bytes"))
    return getattr(kind, "dtype", None) in ("binary", "large_binary", "binary_view")


def _as_files(rows: Any, column: str) -> Any:
    """Convert a column to undecoded images: a path, or bytes of any of Arrow's types."""
    import datasets

    kind, plain = rows.features[column], datasets.Value("binary")
    if not isinstance(kind, datasets.Image):
        rows = rows.cast_column(column, {**kind, "bytes": plain} if isinstance(kind, dict) else plain)
    return rows.cast_column(column, datasets.Image(decode=False))


def _described(kind: Any) -> str:
    """Return a short name of a column's type."""
    inner = getattr(kind, "feature", None)
    if inner is not None:
        return f"lists of {_described(inner)}"
    name = "struct" if isinstance(kind, dict) else type(kind).__name__
    if name == "Value":
        name = str(kind.dtype)
    return "text" if name in ("string", "large_string", "string_view") else name


def _label_column(features: Any, source: str, asked: str | None) -> tuple[str | None, str]:
    """Return the column of labels, None for no labels, and a note on the choice."""
    import datasets

    if asked == NO_LABELS:
        return None, "no labels, as asked: one class"
    if asked is not None:
        _check_column(asked, features, source, "label_column")
        return asked, f"labels from column {asked}"
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [name for name in features if _chosen([name], LABEL_NAMES)]
    numbers = [name for name in named if str(getattr(features[name], "dtype", "")).startswith(("int", "uint"))]
    texts = [name for name in named if _described(features[name]) == "text"]
    chosen = "label" if "label" in features else next(iter(classes), None)
    chosen = chosen or _chosen(numbers, LABEL_NAMES) or _chosen(texts, LABEL_NAMES)
    if chosen is None:
        return None, f"no labels: one class (columns {', '.join(features)})"
    return chosen, _note("labels", chosen, [*dict.fromkeys((*classes, *numbers, *texts))])


def _labels(
    column: str, rows: Any, training: Any, split: str, source: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return class numbers, (N,) int64, and the names of the classes, which the training part decides."""
    names = getattr(rows.features[column], "names", None)
    if column not in training.features or names != getattr(training.features[column], "names", None):
        raise UserError(f"images: the {split} part of {source} has other classes in {column} than the train part")
    values = rows[column][:]
    known = values if training is rows else training[column][:]
    where = f"images: column {column} of the {split} part of {source}"
    if all(isinstance(value, str) for value in known) and not all(is_number(value) for value in known):
        names = sorted(set(known))
        numbers = {name: number for number, name in enumerate(names)}
        unknown = next((value for value in values if value not in numbers), None)
        if unknown is not None:
            raise UserError(f"{where} holds {str(unknown)[:40]!r}, which is not a class of the train part")
        return np.array([numbers[value] for value in values], dtype=np.int64), tuple(names)
    labels = _numbers(values, where)
    if names is None:
        largest = _numbers(known, f"images: column {column} of the train part of {source}").max(initial=0)
        names = [str(number) for number in range(int(largest) + 1)]
    if labels.max(initial=0) >= len(names):
        raise UserError(f"{where} holds the class {labels.max()}, but the classes of the train part are {len(names)}")
    return labels, tuple(names)


def _numbers(values: list[Any], where: str) -> NDArray[np.int64]:
    """Return class numbers, (N,) int64. Raises UserError for other values."""
    numbers = np.zeros(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        try:
            numbers[row] = class_number(value)
        except ValueError as error:
            raise UserError(f"{where}: row {row}: {error} (data.label_column none takes no labels)") from error
    return numbers
