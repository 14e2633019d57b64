"""The run folder of a stage: one recipe each, so that a second call resumes and never mixes two runs."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from vavae import counter
from vavae.config import to_plain
from vavae.errors import UserError
from vavae.pretrained import Generator, Tokenizer
from vavae.training.tracking import write_run_header

# What may differ between two calls on one folder: it changes neither the numbers nor their meaning.
_FREE = frozenset(
    {
        "output",
        "training.device",
        "training.keep_checkpoints",
        "training.checkpoint_images",
        "training.preview_images",
        "training.tensorboard",
        "training.wandb",
        "training.milestone_images",
        "training.parallel",
        "data.workers",
        "teacher.features_folder",
        "teacher.features_on_device",
        "latents_on_device",
    }
)


# What a call leaves that failed before it made anything, over a wrong path, say.
_BEGINNINGS = frozenset({".lock", "recipe.yaml", "versions.json", "steps.json", "unreadable.txt"})


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        key: value
        for name, part in values.items()
        for key, value in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def claim(folder: Path, config: Any) -> None:
    """Make `folder` the run folder of `config`; a folder with the same recipe is taken up again.

    A folder in which nothing was made yet changes its recipe: a mistake in a first call must not cost its folder.
    A key that the recipe of a former version does not have counts as its default.

    Raises:
        UserError: It holds a run with another recipe (the message names the first key that differs), or it
            cannot be written.
    """
    recipe = folder / "recipe.yaml"
    if recipe.exists() and {path.name for path in folder.iterdir()} <= _BEGINNINGS:
        for name in _BEGINNINGS - {".lock"}:
            (folder / name).unlink(missing_ok=True)
    if recipe.exists():
        try:
            former = _flat(to_plain(type(config)())) | _flat(yaml.safe_load(recipe.read_text()))
        except yaml.YAMLError as error:
            raise UserError(f"{recipe}: not YAML; is {folder} a run folder?") from error
        present = _flat(to_plain(config))
        for key in [*present, *former]:
            if key not in _FREE and former.get(key) != present.get(key):
                raise UserError(
                    f"{folder} holds a run with {key} = {former.get(key)}, not {present.get(key)}: "
                    "choose another --output, or delete the folder"
                )
        return
    try:
        write_run_header(folder, config)
    except OSError as error:
        raise UserError(f"output: {folder} cannot be written ({error.strerror})") from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a run folder alone; two processes writing one run would spoil it.

    Raises:
        UserError: Another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {folder} cannot be made ({error.strerror})") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process is working in this run folder") from error
    try:
        yield
    finally:
        lock.release()


def begin(folder: Path, config: Any, done: Path, what: str, held: ExitStack) -> bool:
    """Take a training run's folder for as long as `held` lasts; true if its result `done` is there already.

    Raises:
        UserError: See `exclusive` and `claim`.
    """
    held.enter_context(exclusive(folder))
    claim(folder, config)
    finished = (done / "config.json").exists()
    if finished:
        print(f"{what}: {done} is there already")
    return finished


def finish(model: Tokenizer | Generator, done: Path, what: str) -> None:
    """Write a training run's result and say where."""
    model.save_pretrained(done)
    print(f"{what}: {done}")


def stream_seed(seed: int, order: int) -> int:
    """Seed of the data order. `order` counts the times a run went back; the first order is the seed's own."""
    return seed if order == 0 else counter.stream_key(seed, f"data order {order}")
