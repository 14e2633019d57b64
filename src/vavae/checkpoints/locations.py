"""Where a model is: a local path, a model that comes with the package, or a repository of the hub."""

import re
from pathlib import Path
from typing import Unpack

from vavae.checkpoints.folder import CHECKPOINT_SUFFIXES, CONFIG, PIPELINE, HubOptions, Part, subfolder
from vavae.checkpoints.hub import fetch
from vavae.errors import UserError
from vavae.io.files import user_path

# Models that come with the package, by name; see the card in each folder.
SHIPPED = {"demo": Path(__file__).parents[1] / "assets" / "demo_model"}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[^@]+)?")


def resolve(path_or_hub_id: str | Path, part: Part | None = None, **hub: Unpack[HubOptions]) -> Path:
    """Return a local file or folder as it is, the folder of a shipped model, or a fetched repository of the hub.

    A folder that happens to have a shipped model's name, and is not a model, does not hide it.

    Args:
        path_or_hub_id: A path; the name of a shipped model; or `owner/name` on the hub, with `@revision` or without.
        part: What is wanted of a repository; other files are not fetched. None stands for all that can be read.
        hub: See `HubOptions`; only `subfolder` concerns local folders.

    Raises:
        UserError: Neither here nor a repository that can be reached.
        TypeError: An option that is not one of `HubOptions`.
    """
    if unknown := hub.keys() - HubOptions.__annotations__.keys():
        raise TypeError(f"from_pretrained() got an unexpected keyword argument {min(unknown)!r}")
    path = user_path(path_or_hub_id)
    text = str(path_or_hub_id)
    if text in SHIPPED and not any((path / name).is_file() for name in (CONFIG, PIPELINE)):
        path = SHIPPED[text]
    if text and path.exists():
        return subfolder(path, within) if (within := hub.get("subfolder")) else path
    if not _REPOSITORY.fullmatch(text) or path.suffix in (*CHECKPOINT_SUFFIXES, ".yaml"):
        raise UserError(f"{text}: there is no such file or folder")
    if Path(path.parts[0]).exists():
        raise UserError(f"{text}: there is no such file or folder; the hub was not asked, as {path.parts[0]} is here")
    return fetch(text, part, hub)
