"""Sets of images to measure: which files of a folder count, and what a compressed npz may take."""

import random
from pathlib import Path

import numpy as np
import pytest
from evaluate_models import use_colours
from PIL import Image

from vavae.cli import run
from vavae.errors import UserError
from vavae.evaluation.images import FileBlocks, npz_images
from vavae.metrics.frechet import read_npz
from vavae.stages import evaluate


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((evaluate, "load_feature_network"), (evaluate.of_tokenizer, "perceptual_networks")):
        monkeypatch.setattr(module, name, getattr(module, name))
    use_colours()


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (random.Random(path.name).randrange(256), 0, 0)).save(path)


def test_all_names_of_samples_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that are hashes begin with a digit or a letter by chance."""
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
    files = [path.relative_to(tmp_path).as_posix() for path in FileBlocks(tmp_path).files]
    assert files == ["01.png", "1.png", "2.png", "10.png", "a9.png", "a10.jpg", "b/1.png"]


@pytest.mark.parametrize("name", ["arr_0", "sigma"])
def test_an_npz_that_unpacks_to_far_more_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **{name: np.zeros((23_000, 32, 32, 3), np.uint8)})  # 71 MB of 70 kB
    with pytest.raises(UserError, match=rf"bomb\.npz.*{name}\.npy unpacks [\d,]+ bytes to 70,656,128;"):
        npz_images(path) if name == "arr_0" else read_npz(path)
