"""The run folder of a stage: one recipe each, so that a second call resumes and never mixes two runs."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vavae import rng
from vavae.config import to_plain, to_yaml
from vavae.errors import UserError, one_line
from vavae.io.files import chosen, drop_drafts, read_json_object, written_whole
from vavae.io.yaml_files import read_yaml
from vavae.models import Generator, Tokenizer
from vavae.training.run_log import write_run_header

# What may differ between two calls on one folder: it changes neither the numbers nor their meaning.
IGNORED_KEYS = frozenset(
    {
        "output",
        "compile",  # as on another device, but for rounding
        "training.device",
        "training.keep_checkpoints",
        "training.checkpoint_images",
        "training.preview_images",
        "training.tensorboard",
        "training.wandb",
        "training.milestone_images",
        "training.parallel",
        "data.workers",
        "data.check",  # what it leaves out shows in the fingerprint of the images
        "teacher.features_folder",
        "teacher.features_on_device",
        "latents_on_device",
    }
)


# What a call leaves that failed before it made anything, over a wrong path, say. In the order in which it is removed:
# a recipe without versions would be taken for the user's own.
_HEADER = (
    "recipe.yaml",
    "data.json",
    "initial.txt",
    "steps.json",
    "images.json",
    "unreadable.txt",
    "versions.json",
)
RUN_FILES = frozenset({".lock", *_HEADER})
# Beside a recipe that vavae wrote lies one of these; the first is written before the recipe.
_RUN_MARKS = ("versions.json", "metrics.jsonl", "checkpoints")
# Schedules that know where a run ends.
_LENGTH = "training.images"
_FALLING = frozenset({"cosine", "linear"})
_WHY = {
    "training.micro_batch": "adaptive weights and BatchNorm see one micro-batch at a time, so this is another run: "
}


class OccupiedError(UserError):
    """Another process is working in a run folder; it may end."""


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        key: value
        for name, part in values.items()
        for key, value in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def check_no_own_recipe(folder: Path) -> None:
    """Refuse a folder whose `recipe.yaml` is the user's own, which a run's would replace.

    Raises:
        UserError: It is.
    """
    recipe = folder / "recipe.yaml"
    if recipe.exists() and not any((folder / name).exists() for name in _RUN_MARKS):
        raise UserError(
            f"{recipe} is no recipe of a run, and a run there would replace it: give it another name or place, or "
            "choose another --output"
        )


def open_run_folder(folder: Path, config: Any, free: Collection[str] = ()) -> None:
    """Make `folder` the run folder of `config`; a folder with the same recipe is taken up again.

    A folder in which nothing was made yet changes its recipe: a mistake in a first call must not cost its folder.
    A key that the recipe of a former version does not have counts as its default. A run whose learning rate does not
    depend on where it ends may be made longer.

    Args:
        folder: The folder.
        config: The recipe.
        free: Further keys that may differ, since this stage's numbers do not depend on them.

    Raises:
        UserError: It holds a run with another recipe (the message names the first key that differs) or with one that
            cannot be read, or a recipe of the user's own, or it cannot be written.
    """
    check_no_own_recipe(folder)
    recipe = folder / "recipe.yaml"
    if recipe.exists() and {path.name for path in folder.iterdir()} <= RUN_FILES:
        for name in _HEADER:
            (folder / name).unlink(missing_ok=True)
    if recipe.exists():
        former = _flat(to_plain(type(config)())) | _flat(read_yaml(recipe))
        present = _flat(to_plain(config))
        changed = [key for key in [*present, *former] if former.get(key) != present.get(key)]
        for key in changed:
            if key not in IGNORED_KEYS | set(free):
                _check_longer(folder, key, former, present)
        if _LENGTH in changed:
            with written_whole(recipe) as temporary:
                temporary.write_text(to_yaml(config))
        return
    with chosen("output", folder):
        if (folder / "versions.json").exists():  # a run was here; what it was trained on belongs to its recipe
            (folder / "data.json").unlink(missing_ok=True)
        write_run_header(folder, config)


def _check_longer(folder: Path, key: str, former: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse a recipe in which `key` differs, unless it makes a run longer that does not know its end."""
    why = _WHY.get(key, "")
    if key == _LENGTH and isinstance(former[key], int) and former[key] < present[key]:
        falling = [name for name, kind in present.items() if name.endswith("schedule.kind") and kind in _FALLING]
        if not falling:
            return
        why = f"{falling[0]} {present[falling[0]]} depends on where the run ends, so a longer one is another run: "
    raise UserError(
        f"{folder} holds a run with {key} = {former.get(key)}, not {present.get(key)}: {why}"
        "choose another --output, or delete the folder"
    )


def check_same_data(folder: Path, found: Mapping[str, str]) -> None:
    """Remember what a run is trained on, and refuse anything else later: one recipe may come to name other files.

    A run of a former version, which does not say, goes on with what is there.

    Args:
        folder: The run folder.
        found: Keys of the recipe -> fingerprints of what they name.

    Raises:
        UserError: The run began with something else (the message names the first such key), or what it began with
            cannot be read.
    """
    path = folder / "data.json"
    former = read_json_object(path) if path.exists() else {}
    for key, fingerprint in found.items():
        if former.get(key, fingerprint) != fingerprint:
            raise UserError(
                f"{key}: not what the run in {folder} began with, though the recipe is the same: bring that back, "
                "choose another --output, or delete the folder"
            )
    if former.keys() < found.keys():
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(dict(found), indent=1) + "\n")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a run folder alone; two processes writing one run would spoil it. What a killed one left is removed.

    Raises:
        OccupiedError: Another process has it.
        UserError: It cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        with chosen("output", folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout as error:
        raise OccupiedError(
            f"{folder}: another process is working in this run folder (where none is, on any machine, a dead one left "
            f"{lock.lock_file}: remove it)"
        ) from error
    try:
        drop_drafts(folder)
        yield
    finally:
        lock.release()


def start_run(
    folder: Path,
    config: Any,
    done: Path,
    what: str,
    held: ExitStack,
    free: Collection[str] = (),
    any_recipe: bool = False,
) -> bool:
    """Take a training run's folder for as long as `held` lasts; true if its result `done` is there already.

    Args:
        folder: The run folder.
        config: The recipe.
        done: Where the result lies, or will lie.
        what: What it is called.
        held: Gives the folder back in the end.
        free: As for `open_run_folder`.
        any_recipe: Take up a run whatever its recipe says; the caller knows that it is this one.

    Raises:
        UserError: See `exclusive` and `open_run_folder`; or it holds a run and no recipe that says which.
    """
    check_no_own_recipe(folder)  # before a lock is left beside it
    held.enter_context(exclusive(folder))
    recipe = folder / "recipe.yaml"
    if any_recipe:
        recipe.unlink(missing_ok=True)
    elif not recipe.exists() and (done.exists() or any(folder.glob("checkpoints/[!.]*"))):
        raise UserError(
            f"{folder} holds a run, but no {recipe.name} that says which: bring it back, choose another --output, or "
            "delete the folder"
        )
    open_run_folder(folder, config, free)
    finished = _images_of(done) >= config.training.images
    if finished:
        print(f"{what}: {done} is there already")
    return finished


def _images_of(done: Path) -> float:
    """Images that a result has seen; none where it is missing or damaged, infinitely many where it does not say."""
    config = done / "config.json"
    if not config.exists():
        return 0.0
    try:
        return float(read_json_object(config).get("provenance", {}).get("images_seen", math.inf))
    except (UserError, AttributeError, TypeError, ValueError) as error:
        print(f"{config}: damaged, so the result is made again ({one_line(error)})")
        return 0.0


def finish(model: Tokenizer | Generator, done: Path, what: str) -> None:
    """Write a training run's result and say where."""
    model.save_pretrained(done)
    print(f"{what}: {done}")


def stream_seed(seed: int, order: int) -> int:
    """Seed of the data order. `order` counts the times a run went back; the first order is the seed's own."""
    return seed if order == 0 else rng.stream_key(seed, f"data order {order}")
