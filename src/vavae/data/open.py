"""Open the images that a recipe or a command line names."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from vavae.data.folders import FolderImages, class_names_of, find_parts
from vavae.data.huggingface import HuggingFaceImages, has_test_part
from vavae.data.readable import DEFAULT_OPTIONS, ReadOptions
from vavae.data.sources import Cifar10Images, DemoImages, ImageSource, Split, check_split
from vavae.data.webdataset import WebDatasetImages
from vavae.errors import UserError
from vavae.io.files import user_path

_SHARDS, _HUB = "webdataset:", "hf:"


def open_images(spec: str, split: Split = "train", options: ReadOptions = DEFAULT_OPTIONS) -> ImageSource:
    """Open the images that `spec` names.

    Args:
        spec: "demo" (embedded), "cifar10" (an asset that is fetched on first use), "webdataset:" and shards
            (`WebDatasetImages`; one list for both splits), "hf:" and a data set (`HuggingFaceImages`), or a folder.
        split: "train" or "test". If a folder has such parts (`find_parts`), one of them is opened, and its test part
            numbers classes as its training part does. Any other folder is used whole for both splits.
        options: How to read the images.

    Raises:
        UserError: `spec` is neither a known name nor a folder of images, has no such split or no columns, or has a
            class for testing only.
    """
    check_split(split)
    for key, column in (("image_column", options.image_column), ("label_column", options.label_column)):
        if column is not None and not spec.startswith((_HUB, _SHARDS)):
            raise UserError(f"data.{key} must be null, got {column}: only hf: and webdataset: have it, not {spec}")
    if spec == "demo":
        return DemoImages(split)
    if spec == "cifar10":
        return Cifar10Images(split)
    if spec.startswith(_SHARDS):
        return WebDatasetImages(spec.removeprefix(_SHARDS), options)
    if spec.startswith(_HUB):
        return HuggingFaceImages(spec.removeprefix(_HUB), split, options)
    path = _path_of(spec)
    if path is None:
        raise UserError(f'no such images: {spec} (a folder, "demo", "cifar10", "webdataset:…" or "hf:…")')
    if path.is_file():
        raise UserError(f"images: {spec} is a file: give the folder it is in")
    return _open_folder(path, split, options)


def hub_dataset(spec: str) -> str | None:
    """Return the name on the hub of the data set behind `spec`, as for `open_images`; None if it has none."""
    if spec in ("demo", "cifar10"):
        return "uoft-cs/cifar10"
    name = re.split("[:@]", spec.removeprefix(_HUB))[0]
    return name if spec.startswith(_HUB) and not user_path(name).exists() else None


def has_part(spec: str, split: Split) -> bool:
    """Return whether the images that `spec` names, as for `open_images`, have a part of their own for a split.

    Raises:
        UserError: A Hugging Face set or a folder cannot be opened.
    """
    if spec.startswith(_HUB):
        return split == "train" or has_test_part(spec.removeprefix(_HUB))
    if spec in ("demo", "cifar10"):
        return True
    path = None if spec.startswith(_SHARDS) else _path_of(spec)
    if path is None or not path.is_dir():
        return False
    parts = find_parts(path)
    return (parts.test if split == "test" else parts.train) is not None


def _path_of(spec: str) -> Path | None:
    """Return the folder or file that `spec` names, or None; raise UserError if it may not be accessed."""
    path = user_path(spec, "images: {} cannot be opened: {}")
    return path if spec and path.exists() else None


def _open_folder(root: Path, split: Split, options: ReadOptions) -> FolderImages:
    """Open the images of a folder, or of the part of it that `split` names."""
    parts = find_parts(root)
    names: tuple[str, ...] | None = None
    notes = list(parts.notes)
    folder = parts.train if split == "train" else parts.test
    if folder is None and parts.train is not None:
        raise UserError(
            f"{root} has a train folder but none of test, val, valid, validation, dev: add one, or keep some of its "
            "images for testing (data.holdout)"
        )
    if folder is None and parts.test is not None:
        raise UserError(f"{root} has a {parts.test.name} folder but no train folder: add one, or give {parts.test}")
    if split == "test" and parts.train is not None:
        # A class has the same number in both parts, also if the test part lacks some classes.
        names = class_names_of(parts.train, root)
    if split == "test" and parts.left_out is not None:
        notes.append(f"{parts.left_out} is not used: a validation part is taken for testing before a test part")
    source = FolderImages(folder or root, options, names, root)
    passed = Counter(parts.passed_over) + Counter(source.found.passed_over)
    source.found = replace(source.found, passed_over=dict(passed), notes=(*notes, *source.found.notes))
    return source
