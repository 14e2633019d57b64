"""Every `vavae` command in README, docs and recipes is one that runs: options and recipes exist, links lead on."""

import re
import shlex
from pathlib import Path

import pytest

from vavae.cli import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))


def commands(text: str) -> list[str]:
    """`vavae …` lines of fenced shell blocks, continued lines joined."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if re.match(r"\s*(\$ )?vavae ", line)]


def headed_commands(path: Path) -> list[str]:
    """`vavae …` commands in the comment at the top of a recipe."""
    head = [line[1:] for line in path.read_text().splitlines() if line.startswith("#")]
    return [re.sub(r"^\s*(Run:)?\s*", "", line) for line in head if re.match(r"\s*(Run:)?\s*vavae \S", line)]


ALL = [(page.name, line) for page in PAGES for line in commands(page.read_text())] + [
    (path.name, line) for path in RECIPES for line in headed_commands(path)
]


def test_there_are_commands_to_check() -> None:
    assert len([line for page, line in ALL if page == "README.md"]) >= 8


@pytest.mark.parametrize(("page", "line"), ALL)
def test_a_command_resolves(
    page: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command line is read, recipe included, without running it."""
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(line, comments=True)[1:]
    asks = any(a in ("--help", "--version", "--print_config") for a in arguments)
    code = run(arguments if asks else [*arguments, "--print_config"])
    assert code == 0, capsys.readouterr().err


def test_the_readme_keeps_the_same_images_for_testing_all_along(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what training never saw is encoded and trained on by the next command, or measured as if it were new."""
    monkeypatch.chdir(ROOT)
    lines = [line for page, line in ALL if page == "README.md" and "--data.images my-images" in line]
    assert [line.split()[1] for line in lines] == ["train-tokenizer", "encode", "evaluate"]
    for line in lines:
        assert run([*shlex.split(line)[1:], "--print_config"]) == 0
        assert "holdout: 0.1\n" in capsys.readouterr().out, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("https://", "mailto:")):
            assert (page.parent / target).exists(), target
