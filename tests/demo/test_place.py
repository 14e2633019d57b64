"""The output folder of `vavae demo`: other files in it are kept, and mistakes leave nothing."""

from pathlib import Path

import pytest
from PIL import Image

from vavae.cli import run


def draw(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 40), (9 * number, 0, 0)).save(folder / f"{number}.png")


def refusal(output: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["demo", "--quick", "--images", str(images), "--output", str(output), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize("count", [12, 20])
def test_folder_of_images_is_refused(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "images", count)
    before = sorted((tmp_path / "images").iterdir())
    assert f"{tmp_path / 'images'} has 0.png, but no demo" in refusal(tmp_path / "images", tmp_path / "images", capsys)
    assert sorted((tmp_path / "images").iterdir()) == before


def test_too_few_images_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "images", 12)
    assert "15 images" in refusal(tmp_path / "run", tmp_path / "images", capsys)
    assert not (tmp_path / "run").exists()


def test_recipe_of_the_user_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "images", 20)
    (tmp_path / "run").mkdir()
    recipe = tmp_path / "run/recipe.yaml"
    recipe.write_text("# notes\n")
    assert f"{recipe} is not the recipe of a run" in refusal(tmp_path / "run", tmp_path / "images", capsys)
    assert [*(tmp_path / "run").iterdir()] == [recipe] and recipe.read_text() == "# notes\n"
