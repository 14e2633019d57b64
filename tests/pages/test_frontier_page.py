"""Pages of committed results are what the generator writes from these results."""

from pathlib import Path

import pytest

from vavae.config import parse_command_line
from vavae.frontier.claims import claims
from vavae.frontier.config import Config
from vavae.frontier.grid import Grid
from vavae.frontier.page import claims_markdown, tables_markdown
from vavae.frontier.results import Results
from vavae.frontier.tables import Measured, tables, to_csv

ROOT = Path(__file__).parents[2]
# Names of results contain hashes of the images: the training images that the recipe takes, and the test images.
TEST_IMAGES = "5ca7f9dca536523866b68722ea9a5c9e62b344f40e71d99bf36e53ca2e69120d"
# Of the runs with 2,000 training images.
SMALL = (
    "64032e740dd666bdd516168f1d4e67bb79085665ffe74f2e762c3d7fd86a5279",
    "a5d4fc4595041af89397adb13b980f8b4f9b59e7b38a7a28758488534323792c",
)
# By folder and recipe: the images, overrides, the number of tables, the number of results (None: the page's).
RUNS = {
    "cifar10": (("2d02c9fa012d6660abe9515b26c47c2807d3e3ae0d981c4c26f0a8c7573b08ba", TEST_IMAGES), [], 5, 86),
    "cifar10-cpu": (
        ("278273bf3e4d0fe53e19d524bdff28e33a00e95e5b27a32e78508c1fd722e12b", TEST_IMAGES),
        ["--experiments.table2.seeds", "[0,1]"],
        5,
        54,
    ),
    "alignment-cpu": (SMALL, [], 2, None),
    "teacher-latent-cpu": (SMALL, [], 2, 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_committed_pages_follow_from_the_results(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, (images, overrides, shown, count) = ROOT / "docs/frontier" / name, RUNS[name]
    config = parse_command_line(Config, [f"frontier/{name}", *overrides], "vavae frontier")
    results = Results(folder / "results")
    measured = Measured(Grid(config, images), results)
    every = tables(measured)
    assert len(every) == shown
    assert tables_markdown(config.title, tuple(every.values())) == (folder / "tables.md").read_text()
    for table in every.values():
        assert to_csv(table) == (folder / f"{table.name}.csv").read_text()
    found = claims(measured)
    assert bool(found) == (folder / "claims.md").exists()
    assert not found or claims_markdown(found) == (folder / "claims.md").read_text()
    html = (folder / "frontier.html").read_text()
    assert all(f'class="verdict">{claim.verdict}</span></td>' in html for claim in found)
    contents = [results.read(path.stem) for path in sorted(results.folder.glob("*.json"))]
    assert all(contents) and (count or f"{len(contents)} of {len(measured.grid.jobs)} jobs" in html)
    assert count is None or len(contents) == count
    assert capsys.readouterr().out == ""  # no result was renamed as damaged


def test_frontier_page_shows_both_verdicts_of_each_claim() -> None:
    page = (ROOT / "docs/frontier.md").read_text().splitlines()
    rows = {}
    for name in ("cifar10", "cifar10-cpu"):
        text = (ROOT / "docs/frontier" / name / "claims.md").read_text()
        rows[name] = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    assert len(rows["cifar10"]) == 9
    for on_gpu, on_cpu in zip(rows["cifar10"], rows["cifar10-cpu"], strict=True):
        claim = on_gpu[0].partition(" (")[0]  # without dimension and teacher
        assert f"| {claim} | {on_gpu[3]} | {on_cpu[3]} |" in page


def test_gpu_results_name_the_gpu() -> None:
    results = Results(ROOT / "docs/frontier/cifar10/results")
    contents = [results.read(path.stem) for path in results.folder.glob("*.json")]
    assert {c["versions"]["gpu"] for c in contents if c is not None and c["kind"] != "uniformity"} == {"NVIDIA H200"}
