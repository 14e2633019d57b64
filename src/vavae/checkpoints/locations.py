"""Find a model: a local path, a model in the package, or a repository of the hub."""

import re
from pathlib import Path
from typing import Unpack

from vavae.checkpoints.folder import CHECKPOINT_SUFFIXES, CONFIG, PIPELINE, HubOptions, Part, subfolder
from vavae.checkpoints.hub import fetch
from vavae.errors import UserError
from vavae.io.files import user_path

# Models in the package, by name; each folder has a card.
SHIPPED = {"demo": Path(__file__).parents[1] / "assets" / "demo_model"}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[^@]+)?")


def resolve(path_or_hub_id: str | Path, part: Part | None = None, **hub: Unpack[HubOptions]) -> Path:
    """Return a local file or folder, the folder of a shipped model, or the folder of a fetched repository.

    A local folder with a shipped model's name comes first if it is a model.

    Args:
        path_or_hub_id: A path; the name of a shipped model; or `owner/name` or `owner/name@revision` on the hub.
        part: The part of a repository to fetch; None fetches all files that can be read.
        hub: See `HubOptions`; only `subfolder` applies to local folders.

    Raises:
        UserError: No such path exists, and no such repository can be reached.
        TypeError: An unknown option.
    """
    if unknown := hub.keys() - HubOptions.__annotations__.keys():
        raise TypeError(f"from_pretrained() got an unexpected keyword argument {min(unknown)!r}")
    path, text = user_path(path_or_hub_id), str(path_or_hub_id)
    if text in SHIPPED and not any((path / name).is_file() for name in (CONFIG, PIPELINE)):
        path = SHIPPED[text]
    if text and path.exists():
        return subfolder(path, within) if (within := hub.get("subfolder")) else path
    if not _REPOSITORY.fullmatch(text) or path.suffix in (*CHECKPOINT_SUFFIXES, ".yaml"):
        raise UserError(f"{text}: no such file or folder")
    if Path(path.parts[0]).exists():
        raise UserError(f"{text}: no such file or folder (the folder {path.parts[0]} exists, so this is not a hub id)")
    return fetch(text, part, hub)
