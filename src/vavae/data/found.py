"""What opening a set of images found: where the images are, what was passed over, what was assumed."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Found:
    """What an image source found when it was opened.

    Attributes:
        where: Folder, split and form, for example "folder photos/val" or "hf:cifar10, split test".
        passed_over: Number of files by reason, for example {"unreadable": 2, ".txt files": 3, "@eaDir": 6}.
        notes: Assumptions in a sentence each, for example "no labels: the folders 00000, 00001 are only numbers".
    """

    where: str
    passed_over: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
