"""A folder without a test part: its images are not called test images, and nothing is measured against itself."""

import json
import shutil
from pathlib import Path

import pytest
from evaluate_models import make_tokenizer, use_colours

from vavae.cli import run
from vavae.data import open_images
from vavae.stages import evaluate


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((evaluate, "load_feature_network"), (evaluate.of_tokenizer, "perceptual_networks")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    use_colours()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images of several classes, and a tokenizer."""
    source = open_images("demo", "train")
    for i in range(40):
        label = tmp_path / "images" / source.class_names[source.label(i)]
        label.mkdir(parents=True, exist_ok=True)
        source.image(i).save(label / f"{i:03d}.png")
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def evaluated(folder: Path, what: str, model: str, *options: str) -> int:
    arguments = ["--data.images", str(folder / "images"), "--data.size", "32", "--device", "cpu", "--network", "a"]
    kept = ["--features", str(folder / "features"), "--output", str(folder / "records.json")]
    return run(["evaluate", what, str(folder / model), *arguments, *kept, *options])


def recorded(folder: Path) -> tuple[set[str], set[str]]:
    """Names of the records, and their splits."""
    records = json.loads((folder / "records.json").read_text())
    return {r["name"] for r in records}, {r["protocol"]["split"].rpartition(" ")[2] for r in records}


def test_a_probe_does_not_see_its_own_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--conventions", "[strict]", "--tsne_seeds", "0"]
    probes = {"linear probe", "k-NN accuracy (k = 20)"}
    assert evaluated(folder, "tokenizer", "tokenizer", *few) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(told) == 1 and "--data.holdout" in told[0] and "linear probe" in told[0]
    names, splits = recorded(folder)
    assert "PSNR" in names and not names & probes and splits == {"(all)"}
    assert evaluated(folder, "tokenizer", "tokenizer", *few, "--data.holdout", "0.3") == 0
    assert "left out" not in capsys.readouterr().out
    names, splits = recorded(folder)
    assert probes <= names and splits == {"(test)"}


def test_a_test_part_without_labels_has_no_probe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images").rename(folder / "train")
    (folder / "images/val").mkdir(parents=True)
    (folder / "images/test").mkdir()
    (folder / "train").rename(folder / "images/train")
    for part in ("val", "test"):
        for path in sorted((folder / "images/train").rglob("*.png"))[:8]:
            shutil.copy(path, folder / "images" / part)
    assert evaluated(folder, "tokenizer", "tokenizer", "--conventions", "[strict]", "--tsne_seeds", "0") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"images: 8 without labels from folder {folder}/images/val" in told
    assert f"{folder}/images/test is not used: a validation part is taken for testing before a test part" in told
    assert "linear probe and k-NN are left out: the images have no labels" in told
    noted = json.loads((folder / "records.images.json").read_text())
    assert noted["images"]["from"] == f"folder {folder}/images/val" and list(noted) == ["images"]


def test_samples_and_their_reference_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images/notes.txt").write_text("x")
    assert evaluated(folder, "samples", "images", "--metrics", "[frechet]") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"samples: 40 from folder {folder}/images; passed over: 1 .txt" in told
    assert "reference: 40 in 10 classes (airplane, " in told
    assert json.loads((folder / "records.images.json").read_text())["reference"]["passed_over"] == {".txt": 1}


def test_the_unit_of_fdr_is_not_the_reference_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--real_split", "train", "--metrics", "[frechet]"]
    assert evaluated(folder, "samples", "images", *options) == 2
    error = capsys.readouterr().err
    assert "real_split" in error and "--data.holdout" in error and len(error.strip().splitlines()) == 1
    assert evaluated(folder, "samples", "images", *options, "--data.holdout", "0.3") == 0


def test_statistics_of_the_same_images_are_no_unit_either(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(folder / "reference.npz")
    assert evaluated(folder, "samples", "images", "--metrics", "[frechet]", "--save_reference", saved) == 0
    assert evaluated(folder, "samples", "images", "--reference", saved, "--real_split", "train") == 2
    assert "real_split: its images are those of the reference" in capsys.readouterr().err
