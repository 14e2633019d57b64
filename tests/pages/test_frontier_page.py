"""The numbers of docs/frontier.md are those of the results beside it, and these are whole."""

import json
from math import hypot
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import pearsonr, spearmanr

from vavae.config import load_recipe
from vavae.frontier.claims import claims, speed_up
from vavae.frontier.grid import Grid
from vavae.frontier.page import claims_markdown
from vavae.frontier.results import Results
from vavae.frontier.run import Config
from vavae.frontier.tables import Measured, tables, to_plain_table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "frontier.md").read_text()
TOLD = " ".join(PAGE.split())
FOLDER = DOCS / "frontier" / "cifar10-cpu"
TABLES = json.loads((FOLDER / "tables.json").read_text())
TEACHERS = {"none": "none", "dinov2-small-focus": "DINOv2-S", "resnet50": "ResNet-50", "mobile-sam": "MobileSAM"}


def test_the_claims_are_those_of_the_run() -> None:
    assert (FOLDER / "claims.md").read_text() in PAGE


EVENNESS = {tuple(row["labels"].values()): row["ours"]["cv"]["mean"] for row in TABLES["tables"]["table6"]["rows"]}


def measured(table: str) -> list[tuple[dict[str, str], dict[str, float]]]:
    """Labels and measured numbers of each row; none for a table that is not there."""
    return [
        (row["labels"], {key.partition("/")[0]: stat["mean"] for key, stat in row["ours"].items()})
        for row in TABLES["tables"].get(table, {"rows": []})["rows"]
    ]


def dimension_of(table: str) -> str:
    return str(TABLES["recipe"]["experiments"][table]["dimension"])


def shown(name: str, ours: dict[str, float], cv: float) -> str:
    """A row as the page writes it."""
    return f"| {name} | {ours['rfid']:.1f} | {ours['psnr']:.2f} | {ours['probe']:.3f} | {ours['gfid']:.1f} | {cv:.3f} |"


def rows() -> list[str]:
    """Every tokenizer of tables 2 and 4 whose generator is measured, and every loss of table 5 but none at all."""
    found = {}
    for table in ("table2", "table4"):
        for labels, ours in measured(table):
            tokenizer = labels.get("d") or dimension_of("table4"), labels["teacher"]
            if ours["gfid"] is not None and tokenizer not in found:
                name = f"{tokenizer[0]} | {TEACHERS[tokenizer[1]]}"
                found[tokenizer] = shown(name, ours, EVENNESS[tokenizer])
    losses = []
    for labels, ours in measured("table5")[1:]:
        teacher = "dinov2-small-focus" + ("" if labels["loss"] == "full" else f" ({labels['loss']})")
        losses.append(shown(labels["loss"], ours, EVENNESS[dimension_of("table5"), teacher]))
    return [*found.values(), *losses]


@pytest.mark.parametrize("row", rows())
def test_the_tables_of_tokenizers_are_those_of_the_run(row: str) -> None:
    assert row in PAGE.splitlines()


def test_the_correlation_with_the_probe_is_that_of_the_run() -> None:
    tokenizers = [ours for _, ours in measured("table4") + measured("table5")[2:]]  # none and full stand in both
    probe, gfid = ([ours[key] for ours in tokenizers] for key in ("probe", "gfid"))
    found = f"r {pearsonr(probe, gfid)[0]:.2f}, rank {spearmanr(probe, gfid)[0]:.2f}".replace("-", "−")
    assert len(tokenizers) == 7 and f"({found} over the seven)" in TOLD


# Of CIFAR-10's 50,000 training images, of the 10,000 that the CPU's recipe takes, and of the test images: the names of
# results are hashes of them too.
FINGERPRINTS = {
    "cifar10": "2d02c9fa012d6660abe9515b26c47c2807d3e3ae0d981c4c26f0a8c7573b08ba",
    "cifar10-cpu": "278273bf3e4d0fe53e19d524bdff28e33a00e95e5b27a32e78508c1fd722e12b",
    "test": "5ca7f9dca536523866b68722ea9a5c9e62b344f40e71d99bf36e53ca2e69120d",
}


@pytest.mark.parametrize("name", ["cifar10", "cifar10-cpu"])
def test_tables_and_claims_follow_from_the_results(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = DOCS / "frontier" / name
    written = json.loads((folder / "tables.json").read_text())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(written["recipe"]))
    grid = Grid(load_recipe(Config, recipe), (FINGERPRINTS[name], FINGERPRINTS["test"]))
    found = Measured(grid, Results(folder / "results"))
    assert len(written["tables"]) == 5
    assert {table.name: to_plain_table(table) for table in tables(found)} == written["tables"]
    assert claims_markdown(claims(found)) == (folder / "claims.md").read_text()
    assert len(every_result(folder)) > 40
    assert capsys.readouterr().out == ""  # no result was set aside


def every_result(folder: Path) -> list[dict[str, Any]]:
    """All that lie there, those of other measurements too; none of them is damaged."""
    results = Results(folder / "results")
    contents = [results.read(path.stem) for path in sorted(results.folder.glob("*.json"))]
    assert all(contents)
    return [content for content in contents if content is not None]


GPU = DOCS / "frontier" / "cifar10"
WRITTEN_ON_GPU = json.loads((GPU / "tables.json").read_text())
ON_GPU = WRITTEN_ON_GPU["tables"]
DECIMALS = {"psnr": 2, "lpips": 3, "ssim": 3, "probe": 3, "agreement": 3}
EVENNESS_ON_GPU = {tuple(row["labels"].values()): row["ours"]["cv"]["mean"] for row in ON_GPU["table6"]["rows"]}


def mean(stat: dict[str, float | None], decimals: int) -> str:
    """As the page writes it; a dash for what is not measured."""
    return "–" if stat["mean"] is None else f"{stat['mean']:.{decimals}f}"


def with_spread(stat: dict[str, float | None]) -> str:
    return f"{stat['mean']:.1f} ± {stat['spread']:.1f}"


def test_the_teachers_measured_on_a_gpu_are_those_of_the_run() -> None:
    rows = ON_GPU["table4"]["rows"]
    assert [row["labels"]["teacher"] for row in rows] == list(TEACHERS)
    for row in rows:
        decimals = {"rfid": 1, "psnr": 2, "probe": 3, "agreement": 3, "gfid": 1}
        numbers = [mean(row["ours"][name], digits) for name, digits in decimals.items()]
        line = " | ".join([f"| {TEACHERS[row['labels']['teacher']]}", *numbers]) + " |"
        assert line in PAGE.splitlines(), line


def test_the_tokenizers_made_on_a_gpu_and_their_generators_are_those_of_the_run() -> None:
    rows = ON_GPU["table2"]["rows"]
    assert len(rows) == 6
    for row in rows:
        ours, d, teacher = row["ours"], row["labels"]["d"], row["labels"]["teacher"]
        numbers = [with_spread(ours["rfid"]), *(mean(ours[name], decimals) for name, decimals in DECIMALS.items())]
        numbers += [f"{EVENNESS_ON_GPU[d, teacher]:.3f}", with_spread(ours["gfid/M/1"]), mean(ours["gfid/S/1"], 1)]
        line = " | ".join([f"| {d}", TEACHERS[teacher], *numbers]) + " |"
        assert line in PAGE.splitlines(), line


def test_the_losses_measured_on_a_gpu_are_those_of_the_run() -> None:
    rows = ON_GPU["table5"]["rows"][1:]
    assert [row["labels"]["loss"] for row in rows] == ["full", "without mcos", "without mdms", "without margins"]
    evenness = {
        content["label"]: record["value"]
        for content in every_result(GPU)
        for record in content.get("records", ())
        if record["name"] == "uniformity: density cv"
    }
    for row, part in zip(rows, ("", "no-mcos, ", "no-mdms, ", "no-margin, "), strict=True):
        ours = {key: stat["mean"] for key, stat in row["ours"].items()}
        line = shown(row["labels"]["loss"], ours, evenness[f"d 16, dinov2-small-focus, {part}seed 0"])
        assert line in PAGE.splitlines(), line


def test_the_claims_that_a_gpu_measured_are_those_of_the_run() -> None:
    assert (GPU / "claims.md").read_text() in PAGE


def verdicts(folder: Path) -> dict[str, str]:
    """Claim, without what it was measured on, and verdict."""
    rows = [line.strip("| ").split(" | ") for line in (folder / "claims.md").read_text().splitlines()[2:]]
    return {row[0].partition(" (")[0]: row[3] for row in rows}


def test_the_verdicts_side_by_side_are_those_of_the_runs() -> None:
    on_gpu, on_cpu = verdicts(GPU), verdicts(FOLDER)
    assert len(on_gpu) == 9 and list(on_gpu) == list(on_cpu)
    for claim, verdict in on_gpu.items():
        assert f"| {claim} | {verdict} | {on_cpu[claim]} |" in PAGE.splitlines()


def test_the_results_of_a_gpu_are_whole_and_say_where_they_were_made() -> None:
    contents = every_result(GPU)
    assert len(contents) == 86
    assert {content["versions"]["gpu"] for content in contents if content["kind"] != "uniformity"} == {"NVIDIA H200"}


def test_the_speed_up_on_a_gpu_and_what_a_seed_may_change_of_it_are_told() -> None:
    plain, aligned = WRITTEN_ON_GPU["curves"].values()
    found, lower, higher = (
        str(speed_up(plain, [(images, gfid * factor) for images, gfid in aligned])) for factor in (1, 1.035, 0.965)
    )
    assert f"{found} earlier" in TOLD
    assert f"it would be {lower.removesuffix(' times')} or {higher}." in TOLD


def test_what_seeds_change_on_a_gpu_is_told() -> None:
    rows = [row["ours"] for row in ON_GPU["table2"]["rows"]]
    for key, said in (("gfid/M/1", "root of the mean square {:.1f} %"), ("rfid", "rFID by 3 to 9 % ({:.1f} %)")):
        squares = [(row[key]["spread"] / row[key]["mean"]) ** 2 for row in rows]
        assert said.format(100 * (sum(squares) / len(squares)) ** 0.5) in TOLD
    ratios, firsts = [], []
    for plain, aligned in ((rows[0]["rfid"], rows[1]["rfid"]), (rows[2]["rfid"], rows[3]["rfid"])):
        ratio = aligned["mean"] / plain["mean"]
        spread = ratio * hypot(aligned["spread"] / aligned["mean"], plain["spread"] / plain["mean"])
        ratios.append(f"{ratio:.2f} ± .{100 * spread:.0f}")
        firsts.append(f"{aligned['values'][0] / plain['values'][0]:.2f}")
    assert f"({' and '.join(ratios)} times; the first seed alone had {' and '.join(firsts)})" in TOLD


def test_what_goes_with_the_distance_at_16_channels_on_a_gpu_is_told() -> None:
    rows = {row["labels"]["teacher"]: row["ours"] for row in ON_GPU["table6"]["rows"] if row["labels"]["d"] == "16"}

    def goes(key: str, *left_out: str) -> str:
        kept = [ours for teacher, ours in rows.items() if teacher not in left_out]
        r = pearsonr([ours[key]["mean"] for ours in kept], [ours["gfid"]["mean"] for ours in kept])[0]
        return f"{r:+.2f}".replace("-", "−").replace("0.", ".")

    assert len(rows) == 7
    assert f"(r {goes('cv')} over seven, and {goes('cv', 'mobile-sam')} without MobileSAM)" in TOLD
    assert f"within d 16 (r {goes('probe')})" in TOLD
