"""The cache of assets: fetched once, checked against pinned hashes, converted, verified on demand.

Layout: `<cache>/assets/<name>/` holds the converted files and `manifest.json` with the sha256 of each. A folder
appears under its final name whole or not at all: it is made under another name and renamed, so that a killed run
leaves nothing that counts. One lock per asset keeps two processes from fetching the same asset.
"""

import errno
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from vavae.assets.files import cache_folder, is_offline, read_record, write_record
from vavae.assets.hub import HubModel, cached_hub_model, fetch_hub_model, hub_models, is_hub_name, verify_hub_model
from vavae.assets.registry import ASSETS, Asset, get_asset
from vavae.assets.sources import SourceUnavailable, fetch_files
from vavae.errors import RunError, UserError
from vavae.io.files import check_hash, sha256_file

if TYPE_CHECKING:
    from torch import Tensor

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class AssetStatus:
    """What the cache holds of one asset.

    Attributes:
        name: Name of the asset.
        description: One line about it.
        licence: Its licence.
        size_bytes: Bytes to be fetched, or, once cached, bytes in the cache.
        cached: Whether a converted copy of the current revision is in the cache.
        path: Where that copy is, or would be.
        source: Where the cached copy came from; empty if there is none.
    """

    name: str
    description: str
    licence: str
    size_bytes: int
    cached: bool
    path: Path
    source: str


@dataclass(frozen=True)
class _Manifest:
    name: str
    revision: int
    source: str
    source_sha256: list[str]
    licence: str
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
        return _hub_status(cached_hub_model(name) or HubModel(name, "main", "", "", "", {}))
    asset = get_asset(name)
    manifest = _installed(asset)
    size = asset.size_bytes
    if manifest is not None:
        size = sum((_folder(asset) / file).stat().st_size for file in manifest.files)
    return AssetStatus(
        name=asset.name,
        description=asset.description,
        licence=asset.licence,
        size_bytes=size,
        cached=manifest is not None,
        path=_folder(asset) / asset.file,
        source=manifest.source if manifest else "",
    )


def fetch(name: str) -> Path:
    """Make sure that a sound copy of the asset is in the cache, fetched again over a damaged one; return its path.

    Args:
        name: A name of the table, or a model of the hub (`owner/name`), whose path is a folder.

    Raises:
        UserError: It is missing and cannot be fetched: offline, no network, no client, wrong hash, damaged archive.
            Nothing is installed then.
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
    """Return the path of an asset whose files have their recorded sha256, fetched if missing.

    Args:
        name: As for `fetch`; the path of a data set and of a model of the hub is a folder.

    Raises:
        UserError: A file was changed since it was fetched, or see `fetch`.
    """
    if status(name).cached:
        verify(name)
    return fetch(name)


def load(name: str) -> "dict[str, Tensor]":
    """Return the weights of an asset by name, fetched if missing; on the CPU, in the stored dtype.

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
        UserError: The asset is not in the cache, or names the first file that is missing or damaged.
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
    """Return what is wrong with a cached copy; None if it is sound or missing."""
    if status(name).cached:
        try:
            verify(name)
        except UserError as error:
            return error
    return None


def remove(name: str) -> None:
    """Remove an asset from the cache, if it is there."""
    asset = get_asset(name)
    if _folder(asset).exists():
        with FileLock(_folder(asset).parent / f".{name}.lock"):
            shutil.rmtree(_folder(asset), ignore_errors=True)


def _hub_status(model: HubModel) -> AssetStatus:
    return AssetStatus(
        name=model.repo_id,
        description="model of the hub",
        licence=model.licence or "not stated",
        size_bytes=model.size_bytes,
        cached=bool(model.files),
        path=Path(model.folder),
        source=f"hub {model.repo_id}@{model.commit}" if model.files else "",
    )


def _folder(asset: Asset) -> Path:
    return cache_folder() / "assets" / asset.name


def _installed(asset: Asset) -> _Manifest | None:
    """Return the manifest if the folder holds a whole conversion of the current revision."""
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
        manifest = _Manifest(
            name=asset.name,
            revision=asset.revision,
            source=source,
            source_sha256=list(asset.sha256),
            licence=asset.licence,
            files={file.name: sha256_file(file) for file in sorted(converted.iterdir())},
        )
        write_record(converted / _MANIFEST, manifest)
        shutil.rmtree(_folder(asset), ignore_errors=True)
        converted.replace(_folder(asset))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch_source(asset: Asset, work: Path) -> tuple[str, list[Path]]:
    """Return the files of the first source that can be reached, after comparing them with the pinned hashes."""
    failures = []
    for number, source in enumerate(asset.sources):
        folder = work / f"source-{number}"
        folder.mkdir()
        size = asset.size_bytes / 1e6
        print(f"fetching {asset.name} ({size:.0f} MB) from {source}", file=sys.stderr, flush=True)
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
