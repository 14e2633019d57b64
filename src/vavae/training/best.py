"""The best model of a run so far, by one validation number: a model folder that `best` in the run folder links to.

The link changes in one operation, after the new folder is complete, so `best` is a complete model at every moment.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from vavae.io.files import read_json_object

# Validation numbers of which larger is better.
_RISING = frozenset({"val/psnr"})


class BestModel:
    """The folder `best` of a run.

    Args:
        folder: The run folder.
        number: Name of the validation number, such as `val/loss`; it is in the model's provenance.
    """

    def __init__(self, folder: Path, number: str) -> None:
        self._link = folder / "best"
        self._number = number

    def improves(self, value: float, images: int) -> bool:
        """Return whether a model with `value` after `images` images is better than the one in the folder."""
        if not math.isfinite(value):
            return False
        if not self._link.exists():
            return True
        facts = read_json_object(self._link / "config.json")["provenance"]
        if self._number not in facts:  # another number chose it
            return True
        if facts["images_seen"] == images:  # a resumed run came here again
            return False
        return value > facts[self._number] if self._number in _RISING else value < facts[self._number]

    def replace(self, images: int, save: Callable[[Path], None]) -> None:
        """Let `save` write the new folder, and drop the former."""
        target = self._link.with_name(f"best-{self._number.rpartition('/')[2]}-{images:012d}")
        draft = self._link.with_name(".best")
        shutil.rmtree(target, ignore_errors=True)
        save(target)
        draft.unlink(missing_ok=True)
        draft.symlink_to(target.name)
        draft.replace(self._link)
        for former in self._link.parent.glob("best-*"):
            if former != target:
                shutil.rmtree(former)
