"""The cache of assets: fetched once, checked against pinned hashes, converted, verified on demand.

`<cache>/assets/<name>/` holds the converted files and `manifest.json` with the sha256 of each. The folder is made under
another name and renamed, so that a kill leaves a whole folder or none. A lock lets one process at a time fetch it.
"""

import errno
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from vavae.assets.files import cache_folder, is_offline, read_record
from vavae.assets.hub import HubModel, cached_hub_model, fetch_hub_model, hub_models, is_hub_name, verify_hub_model
from vavae.assets.registry import ASSETS, Asset, get_asset
from vavae.assets.sources import SourceUnavailable, fetch_files
from vavae.errors import RunError, UserError
from vavae.io.files import check_hash, sha256_file, write_json

if TYPE_CHECKING:
    from torch import Tensor

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class AssetStatus:
    """The state of one asset in the cache."""

    name: str
    description: str  # one line
    license: str
    size_bytes: int  # bytes to be fetched; of a cached asset, bytes in the cache
    cached: bool  # whether a converted copy of the current revision is in the cache
    path: Path  # path of that copy, which may be missing
    source: str  # source of the cached copy; empty if it is not cached


@dataclass(frozen=True)
class _Manifest:
    revision: int
    source: str
    source_sha256: list[str]
    files: dict[str, str]


def list_assets() -> list[AssetStatus]:
    """Return the state of every asset of the table."""
    return [status(asset.name) for asset in ASSETS]


def list_hub_models() -> list[AssetStatus]:
    """Return the state of every fetched model of the hub."""
    return [_hub_status(model) for model in hub_models()]


def status(name: str) -> AssetStatus:
    """Return the state of one asset from its manifest; `verify` reads the bytes."""
    if is_hub_name(name):
        return _hub_status(cached_hub_model(name) or HubModel(name, "", "", {}))
    asset = get_asset(name)
    manifest, path = _installed(asset), _folder(asset) / asset.file
    if manifest is None:
        return AssetStatus(name, asset.description, asset.license, asset.size_bytes, False, path, "")
    size = sum((_folder(asset) / file).stat().st_size for file in manifest.files)
    return AssetStatus(name, asset.description, asset.license, size, True, path, manifest.source)


def fetch(name: str) -> Path:
    """Return the path of an asset in the cache; a missing or damaged one is fetched.

    Args:
        name: A name of the table, or a model of the hub (`owner/name`), whose path is a folder.

    Raises:
        UserError: It cannot be fetched: offline, no network, no client, wrong hash, damaged archive. Nothing is
            installed then.
        RunError: The disk is full.
    """
    damage = _damage(name)
    if damage is not None and is_offline():
        raise damage
    if is_hub_name(name):
        return fetch_hub_model(name, again=damage is not None)
    asset = get_asset(name)
    target = _folder(asset) / asset.file
    if damage is None and _installed(asset) is not None:
        return target
    if is_offline():
        raise UserError(f"asset '{name}' is not in the cache {cache_folder()} and VAVAE_OFFLINE forbids fetching it")
    try:
        _folder(asset).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_folder(asset).parent / f".{name}.lock"):
            if _installed(asset) is None or _damage(name) is not None:
                _install(asset)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"asset '{name}': the disk that holds {cache_folder()} is full") from error
        raise UserError(f"asset '{name}': cannot write the cache {cache_folder()}: {error.strerror}") from error
    return target


def path(name: str) -> Path:
    """Return the path of an asset with unchanged files; a missing one is fetched.

    Args:
        name: As for `fetch`. The path of a data set is a folder, too.

    Raises:
        UserError: A file was changed since it was fetched, or see `fetch`.
    """
    if status(name).cached:
        verify(name)
    return fetch(name)


def load(name: str) -> "dict[str, Tensor]":
    """Return the weights of an asset by name, on the CPU, in the stored dtype; a missing one is fetched.

    Raises:
        UserError: It is a data set, or see `path`.
    """
    from safetensors.torch import load_file

    file = path(name)
    if file.suffix != ".safetensors":
        raise UserError(f"asset '{name}' is a data set, not weights; its files are in {file}")
    return load_file(file)


def verify(name: str) -> None:
    """Compare the cached files with their recorded sha256.

    Raises:
        UserError: The asset is not in the cache; or names the first file that is missing or damaged.
    """
    if is_hub_name(name):
        verify_hub_model(name)
        return
    asset = get_asset(name)
    manifest = _installed(asset)
    if manifest is None:
        raise UserError(f"asset '{name}' is not in the cache {cache_folder()}")
    for file, expected in manifest.files.items():
        check_hash(_folder(asset) / file, expected, f"fetch it again: vavae assets fetch {name}")


def _damage(name: str) -> UserError | None:
    """Return the error of a damaged copy; None if it is intact or missing."""
    if status(name).cached:
        try:
            verify(name)
        except UserError as error:
            return error
    return None


def _hub_status(model: HubModel) -> AssetStatus:
    source = f"hub {model.repo_id}@{model.commit}" if model.files else ""
    folder, cached = Path(model.folder), bool(model.files)
    license = model.license or "not stated"
    return AssetStatus(model.repo_id, "model of the hub", license, model.size_bytes, cached, folder, source)


def _folder(asset: Asset) -> Path:
    return cache_folder() / "assets" / asset.name


def _installed(asset: Asset) -> _Manifest | None:
    """Return the manifest if the folder has all files of the current revision."""
    manifest = read_record(_folder(asset) / _MANIFEST, _Manifest)
    if manifest is None:
        return None
    current = manifest.revision == asset.revision and manifest.source_sha256 == list(asset.sha256)
    whole = all((_folder(asset) / file).is_file() for file in manifest.files)
    return manifest if current and whole else None


def _install(asset: Asset) -> None:
    """Fetch, check, convert and put in place; the caller holds the lock."""
    from vavae.assets.convert import CONVERTERS

    parent = _folder(asset).parent
    for leftover in parent.glob(f".{asset.name}-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{asset.name}-", suffix=".partial", dir=parent))
    try:
        source, files = _fetch_source(asset, work)
        converted = work / "converted"
        converted.mkdir()
        CONVERTERS[asset.converter](files, converted)
        hashes = {file.name: sha256_file(file) for file in sorted(converted.iterdir())}
        manifest = _Manifest(asset.revision, source, list(asset.sha256), hashes)
        write_json(converted / _MANIFEST, asdict(manifest))
        shutil.rmtree(_folder(asset), ignore_errors=True)
        converted.replace(_folder(asset))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch_source(asset: Asset, work: Path) -> tuple[str, list[Path]]:
    """Return the files of the first source that can be reached, compared with the pinned hashes."""
    failures = []
    for number, source in enumerate(asset.sources):
        folder = work / f"source-{number}"
        folder.mkdir()
        print(f"fetching {asset.name} ({asset.size_bytes / 1e6:.0f} MB) from {source}", file=sys.stderr, flush=True)
        try:
            files = fetch_files(source, folder)
        except SourceUnavailable as failure:
            failures.append(str(failure))
            continue
        _check_hashes(asset, files)
        return str(source), files
    raise UserError(f"asset '{asset.name}': " + "; ".join(failures))


def _check_hashes(asset: Asset, files: list[Path]) -> None:
    groups = [files] if len(asset.sha256) == 1 else [[file] for file in files]
    for group, expected in zip(groups, asset.sha256, strict=True):
        found = sha256_file(*group)
        if found != expected:
            raise UserError(
                f"asset '{asset.name}': {group[0].name} has sha256 {found}, expected {expected}; nothing installed"
            )
