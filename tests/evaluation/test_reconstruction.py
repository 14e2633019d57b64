"""Reconstructions: PNGs, their folder, and the seed of the posterior."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_models import color_network, make_tokenizer, use_colors
from PIL import Image

from vavae.cli import run
from vavae.data import to_tensor, to_uint8
from vavae.data.images import ImagesConfig
from vavae.evaluation import features
from vavae.evaluation.features import BlockStore, extract
from vavae.evaluation.reconstruction import EvaluationContext, Reconstructions
from vavae.metrics import Convention
from vavae.training.parallel import World

BLOCK, COUNT = 8, 12  # a block and a half


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BLOCK", BLOCK)
    use_colors(monkeypatch.setattr)


def reconstruct(folder: Path, *arguments: str) -> int:
    given = ["--data.size", "32", "--data.limit", str(COUNT), "--latents", "8", "--tsne_seeds", "0", "--device", "cpu"]
    given += ["--features", str(folder / "features"), "--reconstructions", str(folder / "images")]
    return run(["evaluate", "tokenizer", str(folder / "tokenizer"), *given, *arguments])


@pytest.mark.slow
def test_reconstructions_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert reconstruct(tmp_path) == 0
    source = ImagesConfig("demo", 32, limit=COUNT).open("test")
    pixels = torch.stack([torch.from_numpy(np.array(source.image(i))) for i in (0, COUNT - 1)])
    expected = to_uint8(tokenizer.decode(tokenizer.encode(to_tensor(pixels)))).numpy().astype(int)
    for convention in ("strict", "published"):
        files = sorted((tmp_path / "images" / convention).glob("*.png"))
        assert [path.name for path in files] == [f"{i:06d}.png" for i in range(COUNT)]
    strict = tmp_path / "images/strict"
    for i, image in zip((0, COUNT - 1), expected, strict=True):
        assert np.abs(np.asarray(Image.open(strict / f"{i:06d}.png")) - image).max() <= 1
    # The same command writes an image that a killed call did not, though the features are stored.
    (strict / "000011.png").unlink()
    former = (strict / "000000.png").stat().st_mtime_ns
    assert reconstruct(tmp_path) == 0
    assert (strict / "000011.png").is_file() and (strict / "000000.png").stat().st_mtime_ns == former
    # The folder can be measured as samples.
    capsys.readouterr()
    arguments = ["--data.size", "32", "--data.limit", str(COUNT), "--features", str(tmp_path / "f"), "--device", "cpu"]
    assert run(["evaluate", "samples", str(strict), *arguments]) == 0
    assert f"samples: {COUNT} from folder {strict}; passed over: 1 .json" in " ".join(capsys.readouterr().out.split())


def test_folder_of_another_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    strict = tmp_path / "images/strict"
    strict.mkdir(parents=True)
    (strict / "mine.png").touch()
    assert reconstruct(tmp_path) == 2
    assert "strict has mine.png" in capsys.readouterr().err
    (strict / "mine.png").unlink()
    (strict / "reconstructions.json").write_text(json.dumps({"reconstructions": "others"}))
    assert reconstruct(tmp_path) == 2
    assert "strict is of another tokenizer, other images or settings" in capsys.readouterr().err
    (strict / "reconstructions.json").unlink()
    published = tmp_path / "images/published"
    published.mkdir()
    (published / "mine.png").touch()
    assert reconstruct(tmp_path) == 2
    assert "published has mine.png" in capsys.readouterr().err
    assert not list(strict.glob("*.png"))  # refused before the work
    assert reconstruct(tmp_path, "--conventions", "[]") == 2
    assert "reconstructions needs one tokenizer" in capsys.readouterr().err


def test_seed_matters_in_the_published_convention(tmp_path: Path) -> None:
    """It decodes a sample of the posterior; the strict convention decodes the mean."""
    source, tokenizer, store = ImagesConfig("demo", 32, limit=8).open("test"), make_tokenizer(), BlockStore(tmp_path)

    def measured(convention: Convention, seed: int) -> torch.Tensor:
        rebuilt = Reconstructions(
            tokenizer, source, 32, convention, {}, EvaluationContext(store, World(), 8, "fp32", seed)
        )
        found = extract(rebuilt.images(), [color_network("a")], store, 8, World(), "test")
        return rebuilt.values(found["a"])["psnr"]

    assert not torch.equal(measured("published", 0), measured("published", 1))
    assert torch.equal(measured("published", 0), measured("published", 0))
    assert torch.equal(measured("strict", 0), measured("strict", 1))
