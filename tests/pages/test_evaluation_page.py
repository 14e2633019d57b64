"""docs/evaluation.md shows the numbers of the newest result, and its commands resolve."""

import re
import shlex
from pathlib import Path

import pytest

import evaluation_pitfalls
from vavae.cli import run
from vavae.stages import evaluate

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
INLINE = re.findall(r"`(vavae [^`]+)`", re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL))


def test_page_shows_the_newest_result() -> None:
    assert evaluation_pitfalls.tables(evaluation_pitfalls.latest()) in PAGE.read_text()


def test_rows_of_what_to_report_have_commands() -> None:
    rows = PAGE.read_text().split("## What to report")[1].split("\n\n")[1].splitlines()[2:]
    assert len(rows) >= 5
    for row in rows:
        assert sum(f"`{line}` |" in row for line in INLINE) == 1, row


@pytest.mark.parametrize("line", INLINE)
def test_commands_in_the_text_resolve(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Parse the command line without running the command."""
    assert run([*shlex.split(line)[1:], "--print_config"]) == 0, capsys.readouterr().err


def test_commands_name_their_images() -> None:
    """The default, the embedded images, suits the demo's models only."""
    text = PAGE.read_text().replace("\\\n", " ")
    lines = re.findall(r"vavae evaluate (?:tokenizer|generator|samples) [^`\n]+", text)
    assert len(lines) > len(INLINE)
    for line in lines:
        assert "--data.images" in line or "--reference" in line, line


def test_inception_score_command_names_weights_with_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that are fetched have no logits, which the Inception Score needs."""
    row = next(row for row in PAGE.read_text().splitlines() if row.startswith("|") and "Inception Score" in row)
    command = next(line for line in INLINE if f"`{line}`" in row)
    seen: list[evaluate.Config] = []
    monkeypatch.setattr(evaluate, "run", seen.append)
    assert run(shlex.split(command)[1:]) == 0
    assert seen[0].networks == ("inception:pt_inception-2015-12-05-6726825d.pth",)
