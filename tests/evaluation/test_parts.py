"""Parts of a set: without a test part, no probe is tested on its training images and FDr has no unit."""

import json
import shutil
from pathlib import Path

import pytest
from evaluate_models import make_tokenizer, use_colors

from vavae.cli import run
from vavae.data import open_images

COUNT = 20


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_colors(monkeypatch.setattr)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with images of ten classes and a tokenizer."""
    source = open_images("demo", "train")
    for i in range(COUNT):
        label = tmp_path / "images" / source.class_names[i % 10]
        label.mkdir(parents=True, exist_ok=True)
        source.image(i).save(label / f"{i:03d}.png")
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def evaluated(folder: Path, what: str, model: str, *options: str) -> int:
    arguments = ["--data.images", str(folder / "images"), "--data.size", "32", "--device", "cpu", "--network", "a"]
    kept = ["--features", str(folder / "features"), "--output", str(folder / "records.json")]
    return run(["evaluate", what, str(folder / model), *arguments, *kept, *options])


def recorded(folder: Path) -> tuple[set[str], set[str]]:
    """Return the names of the records, and their splits."""
    records = json.loads((folder / "records.json").read_text())
    return {r["name"] for r in records}, {r["protocol"]["split"].rpartition(" ")[2] for r in records}


@pytest.mark.slow
def test_probe_needs_a_test_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--conventions", "[strict]", "--tsne_seeds", "0"]
    probes = {"linear probe", "k-NN accuracy (k = 20)"}
    assert evaluated(folder, "tokenizer", "tokenizer", *few) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert "--data.holdout" in line and "linear probe" in line
    names, splits = recorded(folder)
    assert "PSNR" in names and not names & probes and splits == {"(all)"}
    assert evaluated(folder, "tokenizer", "tokenizer", *few, "--data.holdout", "0.3") == 0
    assert "left out" not in capsys.readouterr().out
    names, splits = recorded(folder)
    assert probes <= names and splits == {"(test)"}
    assert (folder / "records.images.csv").exists()
    few = ["--conventions", "[]", "--tsne_seeds", "0", "--data.holdout", "0.3"]
    assert evaluated(folder, "tokenizer", "tokenizer", *few, "--split", "train") == 0
    assert "linear probe and k-NN are left out: they are tested on images" in " ".join(capsys.readouterr().out.split())
    assert not (folder / "records.images.csv").exists()  # it was of the former call


def test_test_part_without_labels_has_no_probe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images").rename(folder / "train")
    (folder / "images/val").mkdir(parents=True)
    (folder / "images/test").mkdir()
    (folder / "train").rename(folder / "images/train")
    for part in ("val", "test"):
        for path in sorted((folder / "images/train").rglob("*.png"))[:8]:
            shutil.copy(path, folder / "images" / part)
    assert evaluated(folder, "tokenizer", "tokenizer", "--conventions", "[strict]", "--tsne_seeds", "0") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"images: 8 without labels from folder {folder}/images/val" in printed
    assert f"{folder}/images/test is not used: a validation part is taken for testing before a test part" in printed
    assert "linear probe and k-NN are left out: the images have no labels" in printed
    noted = json.loads((folder / "records.images.json").read_text())
    assert noted["images"]["from"] == f"folder {folder}/images/val" and list(noted) == ["images"]


def test_samples_and_reference_are_described(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images/notes.txt").write_text("x")
    assert evaluated(folder, "samples", "images", "--metrics", "[frechet]") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"samples: {COUNT} from folder {folder}/images; passed over: 1 .txt" in printed
    assert f"reference: {COUNT} in 10 classes (airplane, " in printed
    assert json.loads((folder / "records.images.json").read_text())["reference"]["passed_over"] == {".txt": 1}


def test_fdr_needs_a_test_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--real_split", "train", "--metrics", "[frechet]"]
    assert evaluated(folder, "samples", "images", *options) == 2
    error = capsys.readouterr().err
    assert "real_split" in error and "--data.holdout" in error and len(error.strip().splitlines()) == 1
    assert evaluated(folder, "samples", "images", *options, "--data.holdout", "0.3") == 0


def test_fdr_unit_is_not_the_reference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(folder / "reference.npz")
    assert evaluated(folder, "samples", "images", "--metrics", "[frechet]", "--save_reference", saved) == 0
    assert evaluated(folder, "samples", "images", "--reference", saved, "--real_split", "train") == 2
    assert "real_split must have other images than the reference" in capsys.readouterr().err
