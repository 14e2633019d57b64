"""The folder of a training run: it has one recipe, and one group of processes at a time works in it."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vavae import rng
from vavae.config import flat, to_plain, to_yaml
from vavae.device import resolve_device
from vavae.errors import UserError, one_line
from vavae.io.files import chosen, read_json_object, write_json, write_text
from vavae.io.yaml_files import read_yaml
from vavae.training.loggers import check_installed
from vavae.training.parallel import World, held_folder, processes
from vavae.training.run_log import write_run_header
from vavae.training.task import TrainingTask
from vavae.training.trainer import Trainer

# Keys that may differ between two calls on one folder. They change neither the numbers nor their meaning.
IGNORED_KEYS = frozenset(
    {
        "output",
        "compile",  # like another device, it changes rounding only
        "training.device",
        "training.keep_checkpoints",
        "training.checkpoint_images",
        "training.preview_images",
        "training.tensorboard",
        "training.loggers",
        "training.project",
        "training.best",
        "training.milestone_images",
        "training.parallel",
        "data.workers",
        "data.check",  # the fingerprint of the images shows what it leaves out
        "teacher.features_folder",
        "teacher.features_on_device",
        "latents_on_device",
        "alignment.data.workers",
        "alignment.data.check",
    }
)

# Files of a call that failed before it made anything, in the order in which they are removed: a recipe without
# versions would be taken for the user's own.
_HEADER = ("recipe.yaml", "data.json", "initial.txt", "steps.json", "images.json", "unreadable.txt", "versions.json")
RUN_FILES = frozenset({".lock", *_HEADER})
# One of these is next to every recipe that vavae wrote; the first is written before the recipe.
_RUN_MARKS = ("versions.json", "metrics.jsonl", "checkpoints")
_LENGTH = "training.images"
# Schedules that depend on the length of the run.
_FALLING = frozenset({"cosine", "linear"})
_WHY = {"training.micro_batch": "adaptive weights and BatchNorm see one micro-batch at a time, so the numbers differ: "}
_REMEDY = "choose another --output, or delete the folder"


@dataclass(frozen=True, eq=False)
class Run:
    """A training run that `open_run` has opened."""

    config: Any  # the recipe, with `output`, `initial` and `training`
    folder: Path
    result: Path  # folder of the trained model
    finished: bool  # whether the result is complete already
    world: World
    device: torch.device

    def record_data(self, fingerprints: Callable[[], Mapping[str, str]]) -> None:
        """Record what the run is trained on, as `check_same_data` does; the first process calls `fingerprints`."""
        self.world.once(lambda: check_same_data(self.folder, fingerprints()))

    def train(self, task: TrainingTask, name: str) -> Any:
        """Train `task` to the end, write the model to `result`, and return it; `name` heads the progress."""
        trainer = Trainer(task, self.config.training, self.folder, self.world)
        # Only now, since a call that fails before must leave the run as it was.
        self.world.once(lambda: _record_length(self.folder, self.config))
        trainer.run(name)
        model = trainer.model()
        self.world.once(lambda: model.save_pretrained(self.result))
        if self.world.first:
            print(f"{self.result.name}: {self.result}")
        return model


@contextmanager
def open_run(config: Any, name: str, ignored_keys: Collection[str] = (), any_recipe: bool = False) -> Iterator[Run]:
    """Open the run folder `config.output` for the block, with the processes that torchrun started.

    Args:
        config: The recipe, with `output` and `training`.
        name: Name of the result's folder, and of the result in messages.
        ignored_keys: As for `open_run_folder`.
        any_recipe: Resume the run in the folder whatever its recipe says; the caller knows that it is the same run.

    Raises:
        OccupiedError: Another process is working in the folder.
        UserError: The folder has a run with another recipe or without one, or the user's own recipe; it cannot be
            written; the device does not exist; or a logger is not installed.
    """
    folder = Path(config.output)
    result = folder / name
    device = resolve_device(config.training.device)
    with processes(config.training.device) as world, held_folder(folder, world, lambda: check_no_own_recipe(folder)):
        finished = world.once(lambda: _take_up(folder, config, result, ignored_keys, any_recipe))
        if not finished:
            check_installed(config.training.loggers)
        yield Run(config, folder, result, finished, world, device)


def _take_up(folder: Path, config: Any, result: Path, ignored_keys: Collection[str], any_recipe: bool) -> bool:
    """Check or write the recipe in a folder that is held; return whether the result is complete."""
    recipe = folder / "recipe.yaml"
    if any_recipe:
        recipe.unlink(missing_ok=True)
    elif not recipe.exists() and (result.exists() or any(folder.glob("checkpoints/[!.]*"))):
        raise UserError(f"{folder} has a run, but its {recipe.name} is missing: restore it, {_REMEDY}")
    open_run_folder(folder, config, ignored_keys)
    finished = _images_of(result) >= config.training.images
    if finished:
        print(f"{result.name}: {result} is complete")
    return finished


def _images_of(result: Path) -> float:
    """Return the images that a result has seen: 0 if it is missing or damaged, infinity if it does not say."""
    config = result / "config.json"
    if not config.exists():
        return 0.0
    try:
        return float(read_json_object(config).get("provenance", {}).get("images_seen", math.inf))
    except (UserError, AttributeError, TypeError, ValueError) as error:
        print(f"{config} is damaged, so the result is made again ({one_line(error)})")
        return 0.0


def check_no_own_recipe(folder: Path) -> None:
    """Raise UserError if a run's recipe would replace a `recipe.yaml` of the user's own."""
    recipe = folder / "recipe.yaml"
    if recipe.exists() and not any((folder / name).exists() for name in _RUN_MARKS):
        raise UserError(
            f"{recipe} is not the recipe of a run, and a run there would replace it: give it another name or folder, "
            "or choose another --output"
        )


def open_run_folder(folder: Path, config: Any, ignored_keys: Collection[str] = ()) -> None:
    """Write the recipe into a new run folder, or check that the run there has the same recipe.

    If nothing was made in the folder yet, its recipe is replaced: a mistake in a first call must not cost the folder. A
    key that is missing in the recipe of the run has its default. A run may be made longer if its learning rate does not
    depend on its length. `ignored_keys` are more keys that may differ, since the numbers of this stage do not depend on
    them.

    Raises:
        UserError: The folder has a run with another recipe (the message names the first key that differs), a recipe
            that cannot be read, or the user's own recipe; or it cannot be written.
    """
    check_no_own_recipe(folder)
    recipe = folder / "recipe.yaml"
    if recipe.exists() and {path.name for path in folder.iterdir()} <= RUN_FILES:
        for name in _HEADER:
            (folder / name).unlink(missing_ok=True)
    if not recipe.exists():
        with chosen("output", folder):
            if (folder / "versions.json").exists():  # of an earlier run, whose record of the data goes with its recipe
                (folder / "data.json").unlink(missing_ok=True)
            write_run_header(folder, config)
        return
    former = flat(to_plain(type(config)())) | flat(read_yaml(recipe))
    present = flat(to_plain(config))
    changed = [key for key in [*present, *former] if former.get(key) != present.get(key)]
    for key in changed:
        if key not in IGNORED_KEYS | set(ignored_keys):
            _check_longer(folder, key, former, present)


def _record_length(folder: Path, config: Any) -> None:
    """Write the recipe of a run that becomes longer."""
    recipe = folder / "recipe.yaml"
    if flat(read_yaml(recipe)).get(_LENGTH) != config.training.images:
        write_text(recipe, to_yaml(config))


def _check_longer(folder: Path, key: str, former: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Raise UserError for a key that differs, unless it makes a run longer that does not depend on its length."""
    why = _WHY.get(key, "")
    if key == _LENGTH and isinstance(former[key], int) and former[key] < present[key]:
        falling = [name for name, kind in present.items() if name.endswith("schedule.kind") and kind in _FALLING]
        if not falling:
            return
        why = f"{falling[0]} {present[falling[0]]} depends on where the run ends, so the numbers differ: "
    raise UserError(f"{folder} has a run with {key} = {former.get(key)}, not {present.get(key)}: {why}{_REMEDY}")


def check_same_data(folder: Path, found: Mapping[str, str]) -> None:
    """Record what a run is trained on, or check that it is unchanged: a path may come to name other files.

    `found` maps keys of the recipe to fingerprints of what they name.

    Raises:
        UserError: The run began with other data (the message names the first such key), or the record is damaged.
    """
    path = folder / "data.json"
    former = read_json_object(path) if path.exists() else {}
    for key, fingerprint in found.items():
        if former.get(key, fingerprint) != fingerprint:
            raise UserError(
                f"{key} must name the data that the run in {folder} began with, and they have changed: restore them, "
                f"{_REMEDY}"
            )
    if former.keys() < found.keys():
        write_json(path, found, indent=1)


def stream_seed(seed: int, order: int) -> int:
    """Return the seed of the data order; `order` counts the rollbacks, and order 0 has the run's own seed."""
    return seed if order == 0 else rng.stream_key(seed, f"data order {order}")
