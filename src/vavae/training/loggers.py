"""Loggers other than the run folder's own files: TensorBoard, and by name those of `accelerate.tracking`.

Every logger gets the same series at the same step, which is the number of images seen.
"""

import math
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from vavae.config import flat
from vavae.errors import UserError, one_line
from vavae.io.yaml_files import read_yaml

LoggerName = Literal["wandb", "mlflow", "comet_ml", "aim", "clearml", "swanlab", "trackio"]


class TensorBoard:
    """Events in `tensorboard/` of the run folder.

    Args:
        folder: The run folder; its recipe becomes a text.
        images: Points beyond it are removed.
    """

    def __init__(self, folder: Path, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=images + 1)
        if (folder / "recipe.yaml").exists():
            self._writer.add_text("recipe", f"```yaml\n{(folder / 'recipe.yaml').read_text()}```", images)

    def log(self, values: Mapping[str, float], images: int) -> None:
        """Log numbers by series."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, images)

    def picture(self, name: str, path: Path, images: int) -> None:
        """Log the picture in a file."""
        self._writer.add_image(name, np.array(Image.open(path, formats=["PNG"])), images, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class _Library(NamedTuple):
    """What differs between the libraries behind `accelerate.tracking`."""

    resume: str  # option of a start that continues a run, given its id
    id: str  # attribute of the library's run with its id
    name: str | None = None  # option for the name of a new run
    folder: str | None = None  # option for the folder of its files
    allow: bool = False  # whether continuing needs resume="allow"
    picture: Literal["list", "single"] | None = None  # argument of the tracker's `log_images`; None has no pictures


_LIBRARIES: dict[LoggerName, _Library] = {
    "wandb": _Library("id", "id", "name", "dir", allow=True, picture="list"),
    "mlflow": _Library("run_id", "info.run_id", "run_name"),
    "comet_ml": _Library("experiment_key", "id"),
    "aim": _Library("run_hash", "hash", folder="logging_dir", picture="single"),
    "clearml": _Library("continue_last_task", "id", "task_name", picture="single"),
    "swanlab": _Library("id", "id", "experiment_name", "logdir", allow=True, picture="list"),
    "trackio": _Library("name", "name", allow=True),
}


def check_installed(names: tuple[LoggerName, ...]) -> None:
    """Raise UserError if a logger is not installed."""
    for name in names:
        try:
            from accelerate.tracking import get_available_trackers

            found = name in [str(tracker) for tracker in get_available_trackers()]
        except ImportError:
            found = False
        if not found:
            raise UserError(f"training.loggers: {name} is not installed: pip install accelerate {name}")


class Tracked:
    """A run in one of the loggers of `accelerate.tracking`.

    Args:
        name: The logger.
        project: Name of the project there.
        folder: The run folder; its name becomes that of the run, and its recipe the configuration.
        run_id: The run to continue; None begins one.

    Attributes:
        run_id: The logger's id of the run.

    Raises:
        UserError: The logger does not start, for example without a key for its server.
    """

    def __init__(self, name: LoggerName, project: str, folder: Path, run_id: str | None) -> None:
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's own logging needs it
        library, kind = _LIBRARIES[name], LOGGER_TYPE_TO_CLASS[name]
        options: dict[str, Any] = {"resume": "allow"} if library.allow else {}
        if library.folder is not None:
            options[library.folder] = str(folder)
        if run_id is not None:
            options[library.resume] = run_id
        elif library.name is not None:
            options[library.name] = folder.name
        self._library = library
        try:
            self._tracker = kind(project, **options)
            self._tracker.start()
            if run_id is None and (folder / "recipe.yaml").exists():
                self._tracker.store_init_configuration(flat(read_yaml(folder / "recipe.yaml")))
        except Exception as error:  # each library has its own
            raise UserError(f"training.loggers: {name} does not start ({one_line(error)[:200]})") from error
        self.run_id: str = attrgetter(library.id)(self._tracker.tracker)

    def log(self, values: Mapping[str, float], images: int) -> None:
        """Log numbers by series, without those that are not finite, which ClearML would take for zero."""
        self._tracker.log({name: value for name, value in values.items() if math.isfinite(value)}, step=images)

    def picture(self, name: str, path: Path, images: int) -> None:
        """Log the picture in a file, if this logger shows pictures."""
        if self._library.picture is not None:
            image = Image.open(path, formats=["PNG"])
            self._tracker.log_images({name: [image] if self._library.picture == "list" else image}, step=images)

    def close(self) -> None:
        """End the connection."""
        self._tracker.finish()
