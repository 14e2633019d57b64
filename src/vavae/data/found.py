"""Description of an opened set of images: where it is, which files were passed over, and what was assumed."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from vavae.errors import printable

# Class names of a set without labels.
UNLABELED: tuple[str, ...] = ("image",)
# Largest number of listed reasons.
_REASONS = 8


@dataclass(frozen=True)
class Found:
    """Result of opening an image source."""

    where: str  # folder, split and form, for example "folder photos/val" or "hf:cifar10, split test"
    # Number of files by reason, for example {"unreadable": 2, ".txt": 3, "in @eaDir": 6}.
    passed_over: Mapping[str, int] = field(default_factory=dict)
    # Assumptions, one sentence each, for example "no labels: the folders 00000, 00001 are only numbers".
    notes: tuple[str, ...] = ()

    def with_note(self, note: str) -> Self:
        """Return this result with one more note."""
        return replace(self, notes=(*self.notes, note))


def passed_over_text(passed_over: Mapping[str, int]) -> str:
    """Return the counts by reason, the largest first: "6 in @eaDir, 3 .txt"."""
    ordered = sorted(passed_over.items(), key=lambda item: -item[1])
    parts = [f"{count:,} {reason}" for reason, count in ordered[:_REASONS]]
    rest = sum(count for _, count in ordered[_REASONS:])
    return ", ".join([*parts, f"{rest:,} others"] if rest else parts)


def classes_text(class_names: Sequence[str]) -> str:
    """Return "in 2 classes (ant, bee)", with the first and the last name of many, or "without labels"."""
    if tuple(class_names) == UNLABELED:
        return "without labels"
    names = ", ".join(class_names)
    if len(names) > 70:
        names = f"{class_names[0]} … {class_names[-1]}"
    return f"in {len(class_names):,} class{'es' if len(class_names) > 1 else ''} ({names})"


def describe(what: str, count: int, class_names: Sequence[str], found: Found) -> str:
    """Describe a set in one line, wrapped at 80 columns, and each of its notes in a line of its own.

    Without class names, classes are left out.
    """
    classes = f" {classes_text(class_names)}" if class_names else ""
    line = f"{what}: {count:,}{classes} from {found.where}"
    if found.passed_over:
        line += f"; passed over: {passed_over_text(found.passed_over)}"
    wrap = functools.partial(textwrap.fill, width=80, break_long_words=False, break_on_hyphens=False)
    wrapped = [wrap(printable(line), subsequent_indent="  ")]
    wrapped += [wrap(printable(note), initial_indent="  ", subsequent_indent="    ") for note in found.notes]
    return "\n".join(wrapped)
