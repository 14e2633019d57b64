"""Images in a folder: its files, its parts for training and testing, and its labels.

Other files are counted by the reason why they are passed over: an unknown ending, a hidden name, or a folder of a file
server or an operating system.
"""

import errno
import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vavae.data.formats import IMAGE_SUFFIXES
from vavae.data.found import UNLABELED, Found, passed_over_text
from vavae.data.labels import LABELS_FILE, PART_OF, PARTS, LabelFile, find_label_file
from vavae.data.loader import loaded_ahead
from vavae.data.readable import DEFAULT_OPTIONS, ReadOptions, image_error, keep_readable, range_key, read_rgb, reading
from vavae.data.sources import ImageSource
from vavae.errors import UserError, printable

# Names of parts may have these words and a year around them: `train2017`, `val_images`.
_AROUND_PARTS = frozenset({"image", "images", "img", "imgs", "data", "split"})

# Folders of file servers and operating systems for thumbnails, deleted files and so on, in lower case. Names that begin
# with a dot (`.AppleDouble`, `.@__thumb`, `.Trashes`) are hidden.
_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@tmp", "#recycle"),  # Synology
        *("@recycle", "@recently-snapshot", "@transcode"),  # QNAP
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000"),  # Windows
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        "lost+found",  # Linux
    }
)
# Each can contain many copies of the whole set, so their files are not counted.
_SNAPSHOTS = frozenset({"#snapshot", "~snapshot", ".snapshot", ".snapshots", ".zfs"})

# Files of EDM and REPA, `00000/img00000042`, and of FFHQ, `01000/01042`: each folder holds a thousand.
_NUMBERED = re.compile(r"\d{5}/img\d{8}|(\d\d)000/\1\d{3}")


@dataclass(frozen=True)
class Parts:
    """Folders of the parts of a set for training and testing; None for a missing part."""

    train: Path | None = None
    test: Path | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)  # number of files outside the parts, by reason
    notes: tuple[str, ...] = ()  # what was assumed
    left_out: Path | None = None  # a test part that is not used, since there is a validation part


def _part_of(folder: Path) -> str | None:
    """Return "train", "val" or "test" if a folder is named after a part, also as `Train2017` or `val_images`."""
    words = [word.removesuffix("set") for word in re.findall(r"[a-z]+|\d+", folder.name.lower())]
    words = [word for word in words if word and word not in _AROUND_PARTS]
    if len(words) == 2 and re.fullmatch(r"(19|20)\d\d", words[1]):
        words.pop()
    return PART_OF.get(words[0]) if len(words) == 1 else None


def find_parts(root: Path) -> Parts:
    """Find the training and the test part of a folder by the names of its sub-folders, in any case.

    Names of parts count only if no other sub-folder contains images: `train` next to `bus` and `aeroplane` is a class.
    A validation part is taken for testing before a part called test, whose labels are often hidden.

    Raises:
        UserError: Two sub-folders are the same part, or a folder cannot be listed.
    """
    passed: Counter[str] = Counter()
    with _naming_folder(root):
        files, folders = _content(root, passed)
        named = {folder: part for folder in folders if (part := _part_of(folder)) is not None}
        others = [folder for folder in folders if folder not in named]
        if not named:
            return Parts()
        other = next((folder for folder in others if any(images_below(folder, passed))), None)
    names = ", ".join(folder.name for folder in named)
    if other is not None:
        what = "is a class, not a part" if len(named) == 1 else "are classes, not parts"
        return Parts(notes=(f"{names} {what} of the set, since {other.name} contains images too",))
    parts: dict[str, Path] = {}
    for folder, part in named.items():
        former = parts.setdefault(part, folder)
        if former is not folder:
            raise UserError(
                f"{root}: {former.name} and {folder.name} are the same part of the set: rename or remove one"
            )
    passed["next to the parts"] += sum(1 for _ in _images_of(files, passed))
    train, val, test = (parts.get(part) for part in PARTS)
    return Parts(train, val or test, dict(+passed), left_out=test if val is not None else None)


@dataclass(frozen=True, eq=False)
class Listing:
    """Image files of a folder and their labels."""

    paths: list[Path]  # sorted within their class
    labels: NDArray[np.int64]  # (N,)
    class_names: tuple[str, ...]  # in label order
    passed_over: Mapping[str, int]  # number of other files, by reason
    notes: tuple[str, ...]  # what was assumed


def list_images(root: Path, names: Sequence[str] | None = None, base: Path | None = None) -> Listing:
    """List the images of a folder, at every depth, with their labels.

    Labels come from `dataset.json` if there is one, otherwise each sub-folder is a class. Images directly in the folder
    and numbered files in numbered folders (`00000/img00000000.png`) have no labels.

    Args:
        root: The folder.
        names: Names of all classes in label order, if another part of the set decides them.
        base: Folder of the whole set, whose `dataset.json` counts if `root` has none.

    Raises:
        UserError: The folder cannot be listed or has no images; images are both directly in it and in sub-folders;
            a class is not among `names`; or `dataset.json` is damaged or does not cover an image.
    """
    passed: Counter[str] = Counter()
    with _naming_folder(root):
        files, folders = _content(root, passed)
        direct = list(_images_of(files, passed))
        # Paths compare in Python, their parts in C.
        groups = {f: sorted(images_below(f, passed), key=lambda path: path.parts) for f in folders}
    empty = [folder.name for folder, group in groups.items() if not group]
    groups = {folder: group for folder, group in groups.items() if group}
    paths = [*direct, *(path for group in groups.values() for path in group)]
    passed = +passed
    if not paths:
        raise UserError(f"no images in folder: {root}{f' (passed over: {passed_over_text(passed)})' if passed else ''}")
    label_file = find_label_file(root, base or root)
    if label_file is not None and label_file.stated:
        labels, class_names, notes = _labels_of_file(label_file, root, paths, names)
        return Listing(paths, labels, class_names, passed, tuple(notes))
    if direct and groups:
        raise UserError(
            f"{root} holds images both directly ({direct[0].name}) and in sub-folders ({next(iter(groups)).name}): "
            "put every image in a class folder, or none"
        )
    labels = np.zeros(len(paths), dtype=np.int64)
    class_names, notes = _classes(root, list(groups), _are_numbered(groups), names)
    if class_names != UNLABELED:
        number_of = {name: number for number, name in enumerate(class_names)}
        numbers = np.array([number_of[printable(folder.name)] for folder in groups], dtype=np.int64)
        labels = np.repeat(numbers, [len(group) for group in groups.values()])
    if label_file is not None:
        notes.append(f'{label_file.path} is not used: it has no "labels"')
    notes += _nested_parts(groups)
    if empty:
        notes.append(f"folders without images are not counted as classes: {', '.join(empty)}")
    return Listing(paths, labels, class_names, passed, tuple(notes))


def _nested_parts(groups: Mapping[Path, list[Path]]) -> list[str]:
    """Return a note if folders for training and testing are inside a class, for example `images/train`."""
    for folder, paths in groups.items():
        inner = sorted({folder / path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
        parts = [path for path in inner if _part_of(path) is not None]
        if len({_part_of(path) for path in parts}) > 1:
            names = " and ".join(str(path.relative_to(folder.parent)) for path in parts)
            return [f"{names} are not parts of the set but images of the class {folder.name}"]
    return []


def class_names_of(root: Path, base: Path) -> tuple[str, ...]:
    """Return the class names that `list_images` finds, without listing every image of a class.

    Raises:
        UserError: The folder cannot be listed, or `dataset.json` is damaged.
    """
    label_file = find_label_file(root, base)
    if label_file is not None and label_file.stated:
        return label_file.class_names() if label_file.labels else UNLABELED
    ignored: Counter[str] = Counter()
    with _naming_folder(root):
        _, folders = _content(root, ignored)
        classes = [folder for folder in folders if any(images_below(folder, ignored))]
        numbered = _are_numbered({folder: images_below(folder, ignored) for folder in classes})
    return _classes(root, classes, numbered, None)[0]


def _classes(
    root: Path, folders: list[Path], numbered: bool, names: Sequence[str] | None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the class names of folders with images, and notes."""
    if not folders:
        if names is None or tuple(names) == UNLABELED:
            return UNLABELED, []
        return UNLABELED, [f"no labels: {root} has no class folders; the training part has {len(names):,} classes"]
    if numbered:
        which = folders[0].name if len(folders) == 1 else f"{folders[0].name} … {folders[-1].name}"
        return UNLABELED, [f"no labels: {which} are numbered folders of numbered files, and there is no {LABELS_FILE}"]
    own = tuple(printable(folder.name) for folder in folders)
    if len(set(own)) < len(own):
        raise UserError(f"{root}: two class folders are both called {Counter(own).most_common(1)[0][0]}: rename one")
    if names is None:
        return own, []
    if tuple(names) == UNLABELED:
        return UNLABELED, [f"no labels: the training part has none, so the folders of {root} are not classes"]
    unknown = next((name for name in own if name not in names), None)
    if unknown is not None:
        same = unicodedata.normalize("NFC", unknown) in {unicodedata.normalize("NFC", name) for name in names}
        form = "; one differs only in its Unicode form (NFC and NFD): rename this folder" if same else ""
        raise UserError(f"{root / unknown}: the training images have no class {unknown}{form}")
    return tuple(names), []


def _labels_of_file(
    label_file: LabelFile, root: Path, paths: Sequence[Path], names: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...], list[str]]:
    """Return labels, class names and notes for images with a label file."""
    if not label_file.labels:
        return np.zeros(len(paths), dtype=np.int64), UNLABELED, [f"no labels: {label_file.path} gives none"]
    labels = label_file.labels_of(paths)
    class_names = label_file.class_names() if names is None else tuple(names)
    if labels.max() >= len(class_names):
        path = paths[int(labels.argmax())]
        raise UserError(f"{path}: its label is {labels.max()}, but the training part has {len(class_names):,} classes")
    notes = [f"labels from {label_file.path}"]
    missing = label_file.missing(root, paths)
    if missing:
        notes.append(f"{len(missing):,} files that it names are not among the images, first {missing[0]}")
    return labels, class_names, notes


def _are_numbered(groups: Mapping[Path, Iterable[Path]]) -> bool:
    """Return whether all folders and files are only numbered, as in the layout of `dataset.json`."""
    return all(_NUMBERED.fullmatch(f"{folder.name}/{path.stem}") for folder, group in groups.items() for path in group)


@contextmanager
def _naming_folder(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read folder of images {error.filename or root}: {error.strerror}") from error


def _images_of(files: Iterable[Path], passed: Counter[str]) -> Iterator[Path]:
    """Yield the images of some files, and count the others by their ending."""
    for path in files:
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            yield path
        elif path.name != LABELS_FILE:
            passed[suffix or "without an ending"] += 1


def images_below(folder: Path, passed: Counter[str]) -> Iterator[Path]:
    """Yield the images in a folder and below it. Links are followed, but each real folder is read once."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in seen:
            passed["folders reached twice by links"] += 1
            continue
        seen.add(real)
        files, folders = _content(current, passed)
        waiting += folders
        yield from _images_of(files, passed)


def _content(folder: Path, passed: Counter[str]) -> tuple[list[Path], list[Path]]:
    """Return the files and the sub-folders of a folder, sorted, and count those that never belong to a set.

    Raises:
        OSError: The folder cannot be listed, or a file in it cannot be examined.
    """
    files, folders = [], []
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path, name = folder / entry.name, entry.name.lower()
        if name in _SNAPSHOTS:
            passed[f"{path.name} (not opened)"] += 1
        elif name in _SYSTEM_FOLDERS:
            passed[f"in {path.name}"] += _count_files(path)
        elif name.startswith("."):
            passed["hidden"] += _count_files(path)
        elif (kind := _kind(entry)) == stat.S_IFDIR:
            folders.append(path)
        elif kind == stat.S_IFREG:
            files.append(path)
        else:
            passed["broken links or special files"] += 1
    return files, folders


def _kind(entry: os.DirEntry[str]) -> int | None:
    """Return the type of an entry's target; None for a broken link. Most file systems list it, without a query."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise


def _count_files(path: Path) -> int:
    """Return the number of files in a folder and below it; 1 for a file."""
    return sum(len(files) for _, _, files in os.walk(path)) if os.path.isdir(path) else 1  # noqa: PTH112 never fails


class FolderImages(ImageSource):
    """Images of a folder: one class per sub-folder (sorted by name), or without labels; see `list_images`.

    Other files, hidden files and files of file servers and operating systems are passed over and counted. Unreadable
    images are left out, counted and named, so every index is an image that can be read. The result for a large folder
    is cached until one of its files, or Pillow, changes.

    Args:
        folder: The folder.
        options: How to read the images.
        class_names: Names of all classes, in label order, if another part of the set decides them; None takes the
            folder's own.
        base: Folder of the whole set, whose `dataset.json` counts if `folder` has none.

    Attributes:
        paths: Readable image files, sorted within their class.
        unreadable: (path, reason) of each image left out.

    Raises:
        UserError: The folder is missing, contains nothing readable or a file that cannot be accessed, or its labels
            are in doubt (see `list_images`).
        RunError: There is not enough memory to decode an image.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        options: ReadOptions = DEFAULT_OPTIONS,
        class_names: Sequence[str] | None = None,
        base: str | os.PathLike[str] | None = None,
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"{root}: no such folder of images")
        listing = list_images(root, class_names, None if base is None else Path(base))
        self.root = root
        self.name = printable(root.resolve().name)
        self.gray_range = options.gray_range
        self.class_names = listing.class_names
        paths = listing.paths
        kept, self.unreadable = keep_readable(
            len(paths),
            lambda number: image_error(paths[number], options.decode, options.gray_range),
            lambda number: paths[number],
            ("folder", _state_of(paths, root)),
            options,
        )
        self.paths = [paths[number] for number in kept]
        self.labels = listing.labels[kept]
        unreadable = {"unreadable": len(self.unreadable)} if self.unreadable else {}
        self.found = Found(f"folder {root}", {**listing.passed_over, **unreadable}, listing.notes)
        if not self.paths:
            name, reason = self.unreadable[0]
            raise UserError(
                f"no readable images in folder: {root} ({len(self.unreadable)} failed, {Path(name).name}: {reason})"
            )

    def image(self, index: int) -> Image.Image:
        path = self.paths[index]
        with reading(f"image {path}"):
            return read_rgb(path, self.gray_range)

    def fingerprint(self) -> str:
        """Return a digest of relative paths, file sizes and labels.

        Contents do not count, since reading them would cost millions of reads at each start. Times do not count, so a
        copied set has the same digest. Different BMP or PPM files can therefore count as the same images.
        """
        digest = hashlib.sha256(repr(self.class_names).encode() + range_key(self.gray_range))
        for (path, state), label in zip(_states(self.paths), self.labels, strict=True):
            digest.update(os.fsencode(f"{path.relative_to(self.root).as_posix()}\0{state.st_size}\0{label}\n"))
        return digest.hexdigest()


def _state_of(paths: Sequence[Path], root: Path) -> str:
    """Return a digest of names, sizes and times of change of files below `root`."""
    digest = hashlib.sha256()
    for path, state in _states(paths):
        digest.update(os.fsencode(f"{path.relative_to(root)}\0{(state.st_size, state.st_mtime_ns)}\n"))
    return digest.hexdigest()


def _state(path: Path) -> os.stat_result:
    with reading(f"image {path}"):
        return path.stat()


def _states(paths: Sequence[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every path with its state. Threads hide the latency of network file systems."""
    blocks = (paths[first : first + 1024] for first in range(0, len(paths), 1024))
    for block, states in loaded_ahead(blocks, lambda block: [_state(path) for path in block], 16):
        yield from zip(block, states, strict=True)
