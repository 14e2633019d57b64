"""Fetch the files of a model that are needed from the hub into the hub client's cache."""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from vavae.assets.files import is_offline
from vavae.assets.hub import hub_errors, unreachable
from vavae.checkpoints import folder as files
from vavae.checkpoints.folder import CONFIG, DIFFUSERS_WEIGHTS, PIPELINE, STATISTICS, WEIGHTS, HubOptions, Part
from vavae.errors import UserError
from vavae.io.files import check_hash, git_blob_sha1, sha256_file


def fetch(name: str, part: Part | None, hub: HubOptions, file: str = "") -> Path:
    """Return the folder with the needed files of a repository, fetched unless they are in the hub client's cache.

    If the hub cannot be reached, the cached files are used.

    Args:
        name: `owner/name` or `owner/name@revision`.
        part: The part to fetch; None fetches all files that can be read.
        hub: Options.
        file: Fetch this file alone, and return its path.

    Raises:
        UserError: No such repository, revision, subfolder or file, no network, or a cached file is damaged.
    """
    import huggingface_hub

    repository, _, at = name.partition("@")
    revision = hub.get("revision") or at or None
    if at and revision != at:
        raise UserError(f"revision must be {at}, as in {name}, got {revision}")
    within = f"{subfolder.strip('/')}/" if (subfolder := hub.get("subfolder")) else ""

    def get(wanted: Sequence[str]) -> Path:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            token=hub.get("token"),
            cache_dir=hub.get("cache_dir"),
            local_files_only=local,
            force_download=hub.get("force_download", False),
            allow_patterns=[within + file for file in wanted],
        )
        return Path(folder) / within

    with hub_errors(repository, revision):
        listed = None if hub.get("local_files_only") or is_offline() else _list(repository, revision, hub.get("token"))
        local = listed is None
        if file:
            if listed is not None and within + file not in listed:
                raise UserError(f"{name}: has no file {within + file}")
            return _checked(get([file]), [file]) / file
        if listed is None:
            folder = get((PIPELINE, CONFIG))
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        else:
            names = [file.removeprefix(within) for file in listed if file.startswith(within)]
        if not names:
            raise UserError(f"{name}: no files{' in ' + within if within else ''}")
        configurations = [file for file in (PIPELINE, CONFIG) if file in names]
        known = _checked(get(configurations), configurations) if configurations else None
        chosen = needed(known, names, part, name)
        return _checked(get(chosen), chosen)


def _list(repository: str, revision: str | None, token: str | bool | None) -> list[str] | None:
    """Return the names of a repository's files, or None if the hub cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi(token=token).list_repo_files(repository, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception as error:
        if unreachable(error):
            return None
        raise


def needed(folder: Path | None, names: Collection[str], part: Part | None, source: str) -> list[str]:
    """Return the names of the files that are needed, among the `names` of all files of a repository.

    `folder` has the `model_index.json` and `config.json` of the repository, and is None if it has neither. Without a
    `part`, all files that can be read are needed.

    Raises:
        UserError: It is of another kind, or has several checkpoints.
    """
    if folder is None:
        return _published(names, part, source)
    form = files.form_of(folder)
    if form == "pipeline":
        # Of a pipeline of others, only the autoencoder can be read.
        ours = "sampling" in files.read_pipeline(folder)
        transformer = ours and part != "tokenizer"
        vae = part == "tokenizer" or part is None or (ours and part == "generator")
        parts = [name for name, wanted in (("transformer", transformer), ("vae", vae)) if wanted]
        return [PIPELINE, *(file for name in parts for file in _diffusers(names, f"{name}/"))]
    if form == "diffusers":
        return _diffusers(names, "")
    if form == "tokenizer":
        return [CONFIG, WEIGHTS, STATISTICS]
    network = [WEIGHTS] if part != "tokenizer" else []
    tokenizer = [f"tokenizer/{file}" for file in (CONFIG, WEIGHTS, STATISTICS)] if part != "transformer" else []
    return [CONFIG, *network, *tokenizer]


def _diffusers(names: Collection[str], within: str) -> list[str]:
    """Return the configuration and the weights of one network in one format, safetensors if possible."""
    weights = [within + file for file in DIFFUSERS_WEIGHTS if within + file in names]
    return [within + CONFIG, *weights[:1]]


def _published(names: Collection[str], part: Part | None, source: str) -> list[str]:
    """Return the checkpoint, its statistics, and for a generator also the files in `tokenizer/`."""
    chosen = []
    for within in ("",) if part in ("tokenizer", "transformer") else ("", "tokenizer/"):
        here = [file.removeprefix(within) for file in names if file.startswith(within)]
        here = [file for file in here if "/" not in file]
        checkpoints = files.published_files(here)
        if len(checkpoints) > 1:
            raise UserError(f"{source}: several checkpoints ({', '.join(checkpoints[:5])}); fetch one of them")
        statistics = [file for file in here if files.is_statistics(file)]
        chosen += [within + file for file in (*checkpoints, *statistics)]
    if not chosen:
        raise UserError(f"{source}: must have {PIPELINE}, {CONFIG} or a checkpoint")
    return chosen


def _checked(folder: Path, names: Iterable[str]) -> Path:
    """Compare files with the hub's hashes: its client names a file by its hash and links to it."""
    for name in names:
        blob = (folder / name).resolve()
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
            kind = git_blob_sha1 if len(blob.name) == 40 else sha256_file
            check_hash(folder / name, blob.name, f"delete {blob} and fetch it again", kind)
    return folder
