"""The documentation site: its pages are complete, their numbers are measured, their code runs, and it builds."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import loss_figures
import pytest
import yaml

import vavae
from vavae.cli import run
from vavae.data import DemoImages, open_images
from vavae.teachers import TEACHERS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def pages(nav: Any) -> list[str]:
    """Return the files in a part of the nav."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_nav_has_every_page_once() -> None:
    written = [path.relative_to(DOCS).as_posix() for folder in (DOCS, DOCS / "api") for path in folder.glob("*.md")]
    assert sorted(pages(SITE["nav"])) == sorted(written)


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    models = (tmp_path / "site" / "api" / "models.html").read_text()
    assert 'id="vavae.models.Generator.from_pretrained"' in models
    cluster = (tmp_path / "site" / "cluster.html").read_text()
    assert 'href="repository/examples/slurm.sh"' in cluster
    assert (tmp_path / "site" / "repository" / "examples" / "slurm.sh").exists()


def test_api_overview_names_the_public_names() -> None:
    overview = (DOCS / "api" / "index.md").read_text()
    missing = [name for name in vavae.__all__ if f"`vavae.{name}`" not in overview and name != "__version__"]
    assert missing == []


@pytest.mark.slow
def test_loss_figures_are_those_of_the_pages(tmp_path: Path) -> None:
    loss_figures.main(tmp_path)
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    shown = re.findall(r"\(pictures/(loss-.*?)\.svg\)", pages)
    assert sorted(shown) == sorted(loss_figures.FIGURES) == sorted(path.stem for path in tmp_path.iterdir())
    for name in shown:
        drawn, committed = ((folder / f"{name}.svg").read_text() for folder in (tmp_path, DOCS / "pictures"))
        assert re.findall("<text[^>]*>([^<]+)<", drawn) == re.findall("<text[^>]*>([^<]+)<", committed)


@pytest.mark.slow
def test_measured_rows_of_losses() -> None:
    for page, rows in (
        ("losses.md", loss_figures.perceptual_rows()),
        ("alignment.md", loss_figures.normalization_rows()),
    ):
        assert "\n".join(rows) in (DOCS / page).read_text()


def test_teacher_numbers_are_measured() -> None:
    page = (DOCS / "teachers.md").read_text()
    files = [f"{run}/{name}.md" for run in ("cifar10", "cifar10-cpu") for name in ("tables", "claims")]
    results = "".join((DOCS / "frontier" / file).read_text() for file in files)
    rows = [line for line in page.splitlines() if re.match(r"\| (here|paper|\d+ \|)", line)]
    assert len(rows) == 7
    for number in re.findall(r"\d+\.\d\d(?: ± \d+\.\d\d)?", "".join(rows)):
        assert number in results or number in (DOCS / "frontier.md").read_text(), number


def test_teacher_table_has_all_teachers() -> None:
    page = (DOCS / "teachers.md").read_text()
    for teacher in TEACHERS:
        (row,) = [line for line in page.splitlines() if line.startswith("| `") and f"`{teacher.name}`" in line]
        assert str(teacher.width) in row and str(teacher.patch) in row and teacher.license.split()[0] in row


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.md", "sampling.md", "api/stages.md"])
def test_python_of_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    if "images" in names:
        assert [image.size for image in names["images"]] == [(32, 32)] * 2


def commands(page: Path) -> list[list[str]]:
    """Return the words of every command of vavae in the shell blocks of a page."""
    text = "".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("vavae ")]


@pytest.mark.slow
def test_own_images_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are classes of a folder, and its five commands are the README's, which test_readme.py runs."""
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("own-images.md", "python")[0], "own-images.md", "exec"), {})
    assert len(list(Path("my-images").glob("*/*.png"))) == 1000
    images = open_images("my-images")
    assert (len(images), images.class_names) == (1000, DemoImages("train").class_names)
    tutorial = commands(DOCS / "own-images.md")[:5]
    assert [command[1] for command in tutorial] == ["train-tokenizer", "encode", "train-dit", "sample", "evaluate"]
    assert all(command in commands(ROOT / "README.md") for command in tutorial)


def test_flags_in_the_text_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    helps = ""
    for command in ("train-tokenizer", "encode", "train-dit", "sample", "evaluate", "convert"):
        assert run([command, "--help"]) == 0
        helps += capsys.readouterr().out
    of_others = {"--nproc", "--no", "--max", "--image_size"}  # torchrun's, cut at the hyphen, and the published code's
    known = set(re.findall(r"--[\w.]+", helps)) | of_others
    for page in ("own-images", "imagenet", "teachers", "losses", "sampling", "troubleshooting"):
        text = re.sub(r"```.*?```", "", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
        flags = re.findall(r"--[a-z][\w.]*", " ".join(re.findall(r"`([^`]+)`", text)))
        assert set(flags) <= known, (page, set(flags) - known)
