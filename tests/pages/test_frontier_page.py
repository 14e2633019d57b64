"""docs/frontier.md and the pages beside the committed results are what the generator writes from these results."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vavae.config import load_recipe
from vavae.frontier.claims import claims
from vavae.frontier.grid import Grid
from vavae.frontier.page import claims_markdown, tables_markdown
from vavae.frontier.results import Results
from vavae.frontier.run import Config
from vavae.frontier.tables import Measured, tables, to_csv, to_plain_table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "frontier.md").read_text()
# Names of results contain hashes of the images: CIFAR-10's training images, the 10,000 that the CPU recipe takes, and
# the test images.
FINGERPRINTS = {
    "cifar10": "2d02c9fa012d6660abe9515b26c47c2807d3e3ae0d981c4c26f0a8c7573b08ba",
    "cifar10-cpu": "278273bf3e4d0fe53e19d524bdff28e33a00e95e5b27a32e78508c1fd722e12b",
    "test": "5ca7f9dca536523866b68722ea9a5c9e62b344f40e71d99bf36e53ca2e69120d",
}


def every_result(folder: Path) -> list[dict[str, Any]]:
    """Return all results of a folder, none of which is damaged."""
    results = Results(folder / "results")
    contents = [results.read(path.stem) for path in sorted(results.folder.glob("*.json"))]
    assert all(contents)
    return [content for content in contents if content is not None]


@pytest.mark.parametrize("name", ["cifar10", "cifar10-cpu"])
def test_committed_pages_follow_from_the_results(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = DOCS / "frontier" / name
    written = json.loads((folder / "tables.json").read_text())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(written["recipe"]))
    config = load_recipe(Config, recipe)
    found = Measured(Grid(config, (FINGERPRINTS[name], FINGERPRINTS["test"])), Results(folder / "results"))
    every = tables(found)
    assert len(every) == 5
    assert {name: to_plain_table(table) for name, table in every.items()} == written["tables"]
    assert tables_markdown(config.title, tuple(every.values())) == (folder / "tables.md").read_text()
    for table in every.values():
        assert to_csv(table) == (folder / f"{table.name}.csv").read_text()
    assert claims_markdown(claims(found)) == (folder / "claims.md").read_text()
    html = (folder / "frontier.html").read_text()
    for claim in claims(found):
        assert f'class="verdict">{claim.verdict}</td>' in html
    assert (folder / "claims.md").read_text() in PAGE
    assert len(every_result(folder)) > 40
    assert capsys.readouterr().out == ""  # no result was renamed as damaged


def verdicts(folder: Path) -> dict[str, str]:
    """Return the verdicts by claim, without the part in brackets that names dimension and teacher."""
    rows = [line.strip("| ").split(" | ") for line in (folder / "claims.md").read_text().splitlines()[2:]]
    return {row[0].partition(" (")[0]: row[3] for row in rows}


def test_verdicts_of_both_runs_are_on_the_page() -> None:
    on_gpu, on_cpu = (verdicts(DOCS / "frontier" / name) for name in ("cifar10", "cifar10-cpu"))
    assert len(on_gpu) == 9 and list(on_gpu) == list(on_cpu)
    for claim, verdict in on_gpu.items():
        assert f"| {claim} | {verdict} | {on_cpu[claim]} |" in PAGE.splitlines()


def test_gpu_results_name_the_gpu() -> None:
    contents = every_result(DOCS / "frontier" / "cifar10")
    assert len(contents) == 86
    assert {content["versions"]["gpu"] for content in contents if content["kind"] != "uniformity"} == {"NVIDIA H200"}
