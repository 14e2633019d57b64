"""Find a model: a local path, a short name, or a repository of the hub."""

import re
from pathlib import Path
from typing import Unpack

from vavae.checkpoints.folder import CHECKPOINT_SUFFIXES, CONFIG, PIPELINE, HubOptions, Part, published_files, subfolder
from vavae.checkpoints.hub import fetch
from vavae.checkpoints.registry import KnownModel, find_model, get_model, near_model
from vavae.errors import UserError
from vavae.io.files import user_path

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[^@]+)?")


def resolve(path_or_hub_id: str | Path, part: Part | None = None, **hub: Unpack[HubOptions]) -> Path:
    """Return a local file or folder, or the file or folder of a model that has been fetched or is in the package.

    Args:
        path_or_hub_id: A path; a short name of `vavae models`; or `owner/name` or `owner/name@revision` on the hub.
        part: The part of a model to fetch; None fetches all files of a repository that can be read.
        hub: See `HubOptions`; only `subfolder` applies to local folders.

    Raises:
        UserError: No such path exists, and no such repository can be reached; or a short name has no such part.
        TypeError: An unknown option.
    """
    if unknown := hub.keys() - HubOptions.__annotations__.keys():
        raise TypeError(f"from_pretrained() got an unexpected keyword argument {min(unknown)!r}")
    path, text = user_path(path_or_hub_id), str(path_or_hub_id)
    if (known := known_model(path_or_hub_id)) is not None:
        return _resolve_known(known, text.partition("@")[2], part, hub)
    if text and path.exists():
        return subfolder(path, within) if (within := hub.get("subfolder")) else path
    if not _REPOSITORY.fullmatch(text) or path.suffix in (*CHECKPOINT_SUFFIXES, ".yaml"):
        raise UserError(f"{text}: no such file or folder{near_model(text)}")
    if Path(path.parts[0]).exists():
        raise UserError(f"{text}: no such file or folder (the folder {path.parts[0]} exists, so this is not a hub id)")
    return fetch(text, part, hub)


def known_model(path_or_hub_id: str | Path) -> KnownModel | None:
    """Return the model of a short name or of a repository that has one; None for others.

    A local file, or a local folder with a model or a training run in it, comes before a short name.
    """
    path = user_path(path_or_hub_id)
    if path.is_file() or (path.is_dir() and _holds_model(path)):
        return None
    return find_model(str(path_or_hub_id))


def known_tokenizer(path_or_hub_id: str | Path) -> KnownModel | None:
    """Return the tokenizer of a short name, which may be a generator's; None for others."""
    known = known_model(path_or_hub_id)
    return get_model(known.tokenizer) if known is not None and known.tokenizer else known


def resolve_statistics(path_or_hub_id: str | Path, **hub: Unpack[HubOptions]) -> Path | None:
    """Return the file of statistics of a short name whose repository has it apart from the weights; None for others."""
    known = known_tokenizer(path_or_hub_id)
    if known is None or not known.statistics_file:
        return None
    if known.name == str(path_or_hub_id).partition("@")[0]:
        revision = str(path_or_hub_id).partition("@")[2]
        return fetch(
            f"{known.hub_id}@{revision}" if revision else known.hub_id, "tokenizer", hub, known.statistics_file
        )
    return fetch(known.hub_id, "tokenizer", options_of_tokenizer(hub), known.statistics_file)


def hub_id(path_or_hub_id: str | Path, part: Part | None = None) -> str | None:
    """Return the repository of a model's part without its revision; None for a local model or one in the package."""
    text = str(path_or_hub_id)
    if (known := known_tokenizer(text) if part == "tokenizer" else known_model(text)) is not None:
        return known.hub_id or None
    fetched = _REPOSITORY.fullmatch(text) is not None and not user_path(text).exists()
    return text.partition("@")[0] if fetched else None


def options_of_tokenizer(hub: HubOptions) -> HubOptions:
    """Return the options for the tokenizer of a model: all but the ones of one repository."""
    return {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}  # type: ignore[return-value]


def _holds_model(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return not {CONFIG, PIPELINE, "checkpoints"}.isdisjoint(names) or bool(published_files(names))


def _resolve_known(known: KnownModel, revision: str, part: Part | None, hub: HubOptions) -> Path:
    if known.kind == "tokenizer" and part in ("transformer", "generator"):
        raise UserError(f"{known.name} must be a generator, got a tokenizer; 'vavae models' lists generators")
    if known.folder is not None:
        return subfolder(known.folder, within) if (within := hub.get("subfolder")) else known.folder
    if part == "tokenizer" and known.tokenizer:
        return _resolve_known(get_model(known.tokenizer), "", part, options_of_tokenizer(hub))
    return fetch(f"{known.hub_id}@{revision}" if revision else known.hub_id, part, hub, known.file)
