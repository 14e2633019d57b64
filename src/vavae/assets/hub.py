"""Models of the hub by repository name (`owner/name`): fetched into the hub client's own cache, checked, recorded.

The hub declares a sha256 for every large file and a git hash for every small one; both are checked when a file is
fetched. The sha256 of all files is recorded in the cache of assets and compared whenever the model is loaded.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from vavae.assets.files import cache_folder, is_offline, read_record
from vavae.errors import UserError, one_line
from vavae.io.files import check_hash, git_blob_sha1, sha256_file, write_json

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_CONFIGURATION = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class HubModel:
    """A model of the hub as the cache records it."""

    repo_id: str  # owner and name
    commit: str  # the commit that was fetched
    folder: str  # folder with the files
    files: dict[str, str]  # sha256 by file name
    license: str = ""  # as the model's page declares it; empty if it does not

    @property
    def size_bytes(self) -> int:
        """Number of bytes in all files."""
        return sum((Path(self.folder) / file).stat().st_size for file in self.files)


def is_hub_name(name: str) -> bool:
    """Return whether `name` has the form of a repository, `owner/name`."""
    return _REPOSITORY.fullmatch(name) is not None


def hub_models() -> list[HubModel]:
    """Return the recorded models whose files exist."""
    models = (_read_record(path) for path in sorted((cache_folder() / "hub").glob("*.json")))
    return [model for model in models if model is not None]


def cached_hub_model(repo_id: str) -> HubModel | None:
    """Return the recorded model if all its files exist."""
    return _read_record(_record_path(repo_id))


def _record_path(repo_id: str) -> Path:
    return cache_folder() / "hub" / f"{repo_id.replace('/', '--')}@main.json"


def _read_record(path: Path) -> HubModel | None:
    model = read_record(path, HubModel)
    return model if model and all((Path(model.folder) / file).is_file() for file in model.files) else None


def fetch_hub_model(repo_id: str, *, again: bool = False) -> Path:
    """Return the folder with a model's configuration and weights (safetensors if there are any), fetched if missing.

    A fetched model stays at its commit.

    Args:
        repo_id: Owner and name.
        again: Fetch it again and overwrite the cached copy.

    Raises:
        UserError: Offline, no network, no such repository, a gated one, a file that differs from the hub's hash.
    """
    known = cached_hub_model(repo_id)
    if known is not None and not again:
        return Path(known.folder)
    if is_offline():
        raise UserError(f"model '{repo_id}' is not in the cache and VAVAE_OFFLINE forbids fetching it")
    record = _record_path(repo_id)
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(record.with_suffix(".lock")):
        known = cached_hub_model(repo_id)
        if known is None or again:
            known = _fetch(repo_id, again)
            write_json(record, asdict(known))
    return Path(known.folder)


def verify_hub_model(repo_id: str) -> None:
    """Compare the files with their recorded sha256.

    Raises:
        UserError: The model is not in the cache; or names the first file that is missing or damaged.
    """
    model = cached_hub_model(repo_id)
    if model is None:
        raise UserError(f"model '{repo_id}' is not in the cache")
    for file, expected in model.files.items():
        check_hash(Path(model.folder) / file, expected, f"fetch it again: vavae assets fetch {repo_id}")


def _fetch(repo_id: str, again: bool) -> HubModel:
    import huggingface_hub

    with hub_errors(repo_id):
        info = huggingface_hub.HfApi().model_info(repo_id, files_metadata=True)
        wanted = _needed_files(repo_id, info.siblings or [])
        commit = info.sha or "main"
        names = [file.rfilename for file in wanted]
        folder = huggingface_hub.snapshot_download(repo_id, revision=commit, allow_patterns=names, force_download=again)
    files = {file.rfilename: _checked(repo_id, Path(folder), file) for file in wanted}
    return HubModel(repo_id, commit, str(folder), files, str(getattr(info.card_data, "license", None) or ""))


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn the errors of the hub's client into one line.

    Raises:
        UserError: Such an error.
    """
    from huggingface_hub import errors

    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)  # it reports each of its attempts to reach the hub
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"model '{repo_id}' is gated: accept its license on its page of the hub, then log in (hf auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"model '{repo_id}' has no revision '{revision}'") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"the hub has no model '{repo_id}' (or it is private)") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"model '{repo_id}' is not in the cache, and the hub was not reached") from error
    except errors.HFValidationError as error:
        raise UserError(f"model '{repo_id}': {one_line(error)}") from error
    except Exception as error:
        if not unreachable(error):
            raise
        raise UserError(f"model '{repo_id}': the hub cannot be reached ({type(error).__name__})") from error
    finally:
        client.setLevel(level)


def unreachable(error: Exception) -> bool:
    """Return whether an error of the hub's client comes from the connection or the hub, not from this program."""
    from huggingface_hub.errors import HfHubHTTPError

    # Versions of the client send requests through different libraries, whose errors have no common class.
    transport = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests")
    return transport or isinstance(error, (HfHubHTTPError, OSError))


def _needed_files(repo_id: str, siblings: "list[RepoSibling]") -> "list[RepoSibling]":
    """Return the configuration, and the weights in one format: safetensors, else PyTorch's (read as weights only)."""
    top = {file.rfilename: file for file in siblings if "/" not in file.rfilename}
    if "config.json" not in top:
        raise UserError(f"model '{repo_id}' has no config.json: it is not a transformers model")
    configuration = [top[name] for name in _CONFIGURATION if name in top]
    for name, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        weights = [top[file] for file in sorted(top) if re.fullmatch(rf"{name}(-\d+-of-\d+)?\.{suffix}", file)]
        index = [top[file] for file in top if file.endswith(f".{suffix}.index.json")]
        if weights:
            return configuration + weights + (index if len(weights) > 1 else [])
    raise UserError(f"model '{repo_id}' has no weights that transformers reads")


def _checked(repo_id: str, folder: Path, file: "RepoSibling") -> str:
    """Compare the hash of a fetched file with the hub's, and return its sha256."""
    path = folder / file.rfilename
    sha256 = sha256_file(path)
    declared, found = (file.lfs.sha256, sha256) if file.lfs else (file.blob_id, git_blob_sha1(path))
    if found != declared:
        raise UserError(f"model '{repo_id}': {file.rfilename} has hash {found}, the hub declares {declared}")
    return sha256
