"""Sets of images to measure: folders of samples and npz files."""

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_models import use_colors
from PIL import Image

from vavae.cli import run
from vavae.errors import UserError
from vavae.evaluation.images import npz_images, sample_files
from vavae.metrics.npz import read_npz


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_colors(monkeypatch.setattr)


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (random.Random(path.name).randrange(256), 0, 0)).save(path)


def test_samples_may_have_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that are hashes begin with a digit or a letter."""
    folder = tmp_path / "samples"
    for i in range(15):
        put(folder / f"{'0123456789abcde'[i]}{i:039x}.png")
    put(folder / "grid.png")
    put(folder / "@eaDir/0.png")
    put(folder / ".hidden.png")
    (folder / "notes.txt").touch()
    output = tmp_path / "records.json"
    arguments = ["--data.size", "32", "--data.limit", "20", "--features", str(tmp_path / "f"), "--output", str(output)]
    assert run(["evaluate", "samples", str(folder), *arguments, "--device", "cpu"]) == 0
    line = " ".join(capsys.readouterr().out.split()).partition(" reference: ")[0]
    beginning, _, passed = line.partition("; passed over: ")
    assert beginning == f"samples: 15 from folder {folder}"
    expected = {"1 .txt", "1 grid.png", "as vavae sample writes it", "1 hidden", "1 in @eaDir"}  # in any order
    assert set(passed.split(", ")) == expected
    assert '"samples": 15' in output.read_text()


def test_samples_are_in_natural_order(tmp_path: Path) -> None:
    names = ["b/1.png", "2.png", "10.png", "1.png", "a10.jpg", "a9.png", "01.png"]
    for name in names:
        put(tmp_path / name)
    (tmp_path / "b/loop").symlink_to(tmp_path)
    files = [path.relative_to(tmp_path).as_posix() for path in sample_files(tmp_path)[0]]
    assert files == ["01.png", "1.png", "2.png", "10.png", "a9.png", "a10.jpg", "b/1.png"]


@pytest.mark.parametrize("name", ["arr_0", "sigma"])
def test_npz_that_unpacks_to_far_more_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **{name: np.zeros((23_000, 32, 32, 3), np.uint8)})  # 71 MB of 70 kB
    with pytest.raises(UserError, match=rf"bomb\.npz.*{name}\.npy unpacks [\d,]+ bytes to 70,656,128;"):
        npz_images(path) if name == "arr_0" else read_npz(path)


def pixels(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_in_fortran_order_are_read(save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "a.npz", arr_0=np.asfortranarray(pixels()))
    found = npz_images(tmp_path / "a.npz")
    assert found is not None and torch.equal(found.block(range(6)).pixels(slice(None)), torch.from_numpy(pixels()))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_array_longer_than_its_header_is_refused(compression: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, pixels(10))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("arr_0.npy", buffer.getvalue().replace(b"(10, 8", b"( 3, 8"))
    with pytest.raises(
        UserError, match=r"a\.npz: .*arr_0 has 2,048 bytes, which its shape \(3, 8, 8, 3\) does not fit"
    ):
        npz_images(tmp_path / "a.npz")


def measure(samples: Path, folder: Path, *options: str) -> int:
    given = ["--data.size", "32", "--data.limit", "20", "--features", str(folder / "f"), "--device", "cpu"]
    return run(["evaluate", "samples", str(samples), *given, *options])


def test_other_arrays_of_an_npz_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.NPZ.npz", pixels(), np.arange(6))
    (tmp_path / "a.NPZ.npz").rename(tmp_path / "a.NPZ")
    assert measure(tmp_path / "a.NPZ", tmp_path, "--reference", str(tmp_path / "a.NPZ")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"samples: 6 from {tmp_path}/a.NPZ; passed over: 1 array arr_1" in printed
    assert f"reference: 6 from {tmp_path}/a.NPZ; passed over: 1 array arr_1" in printed


def test_folder_name_may_end_in_npz(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / "a.npz" / f"{i}.png")
    assert measure(tmp_path / "a.npz", tmp_path) == 0


def test_omitted_metrics_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        put(tmp_path / "a" / f"{i}.png")
    assert measure(tmp_path / "a", tmp_path) == 0
    printed = capsys.readouterr().out
    for name in ("precision_recall", "kid"):
        assert f"{name} is left out: it needs at least 4 samples and 4 reference images, not 3" in printed


def test_outputs_do_not_replace_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, other = str(tmp_path / "a.npz"), str(tmp_path / "b.json")
    np.savez(samples, arr_0=np.zeros((4, 32, 32, 3), np.uint8))
    before = Path(samples).read_bytes()
    assert measure(Path(samples), tmp_path, "--save_reference", samples) == 2
    assert measure(Path(samples), tmp_path, "--output", other, "--save_reference", other) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "save_reference: " in first and "output: " in second and "another file of this command" in second
    assert Path(samples).read_bytes() == before and not Path(other).exists()
