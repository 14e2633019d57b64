"""Description of an opened set of images: where it is, which files were passed over, and what was assumed."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vavae.errors import printable

# Class names of a set without labels.
NO_LABELS: tuple[str, ...] = ("image",)
_WIDTH = 80
# Largest length of listed class names in characters, and largest number of listed reasons.
_NAMES_WIDTH, _REASONS = 70, 8


@dataclass(frozen=True)
class Found:
    """Result of opening an image source.

    Attributes:
        where: Folder, split and form, for example "folder photos/val" or "hf:cifar10, split test".
        passed_over: Number of files by reason, for example {"unreadable": 2, ".txt": 3, "in @eaDir": 6}.
        notes: Assumptions, one sentence each, for example "no labels: the folders 00000, 00001 are only numbers".
    """

    where: str
    passed_over: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def passed_over_text(passed_over: Mapping[str, int]) -> str:
    """Return the counts by reason, the largest first: "6 in @eaDir, 3 .txt"."""
    ordered = sorted(passed_over.items(), key=lambda item: -item[1])
    parts = [f"{count:,} {reason}" for reason, count in ordered[:_REASONS]]
    rest = sum(count for _, count in ordered[_REASONS:])
    return ", ".join([*parts, f"{rest:,} others"] if rest else parts)


def classes_text(class_names: Sequence[str]) -> str:
    """Return "in 2 classes (ant, bee)", with the first and the last name of many, or "without labels"."""
    if tuple(class_names) == NO_LABELS:
        return "without labels"
    names = ", ".join(class_names)
    if len(names) > _NAMES_WIDTH:
        names = f"{class_names[0]} … {class_names[-1]}"
    return f"in {len(class_names):,} class{'es' if len(class_names) > 1 else ''} ({names})"


def describe(what: str, count: int, class_names: Sequence[str], found: Found) -> str:
    """Describe a set in one line, wrapped at 80 columns, and each of its notes in a line of its own.

    Args:
        what: Kind of the set: "images", "latents", "validation".
        count: Number of images.
        class_names: One name per class; empty to leave classes out.
        found: Result of opening the set.
    """
    classes = f" {classes_text(class_names)}" if class_names else ""
    line = f"{what}: {count:,}{classes} from {found.where}"
    if found.passed_over:
        line += f"; passed over: {passed_over_text(found.passed_over)}"
    return "\n".join([_wrapped(line, ""), *(_wrapped(note, "  ") for note in found.notes)])


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        printable(text),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
