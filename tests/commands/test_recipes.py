"""`vavae recipes` lists what the package has and prints one recipe."""

from pathlib import Path

import pytest

from vavae.cli import run
from vavae.config.recipes import recipe_file, recipe_names


def test_list_has_title_published_number_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert [line.split("  (")[0] for line in listed.splitlines() if not line.startswith(" ")] == list(recipe_names())
    assert max(map(len, listed.splitlines())) <= 80
    assert "imagenet256/lightningdit-xl-800ep  (1,788 H800-hours)\n    LightningDiT-XL/1 on latents" in listed
    assert "    published: gFID 2.17 (sFID 4.36, IS 205.6) without guidance" in listed


def test_every_recipe_states_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    run(["recipes"])
    names = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [line for line in names if "  (" not in line] == []


def test_folder_narrows_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "small"]) == 0
    listed = capsys.readouterr().out
    assert "small/tokenizer  (" in listed and "imagenet256" not in listed


def test_print_gives_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "small/transformer"]) == 0
    assert capsys.readouterr().out == recipe_file("small/transformer").read_text()


def test_list_is_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small/tokenizer").mkdir(parents=True)
    (tmp_path / "small/transformer").write_text("# Mine.\n")
    assert run(["recipes", "small"]) == 0
    assert "Mine" not in capsys.readouterr().out


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "small/transfomer"]) == 2
    assert "did you mean 'small/transformer'?" in capsys.readouterr().err
