"""The numbers of docs/frontier.md are those of the results beside it, and these are whole."""

import json
from pathlib import Path

import pytest
from scipy.stats import pearsonr, spearmanr

from vavae.stages.frontier_store import Results

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "frontier.md").read_text()
FOLDER = DOCS / "frontier" / "cifar10-cpu"
TABLES = json.loads((FOLDER / "tables.json").read_text())
TEACHERS = {"none": "none", "dinov2-small-focus": "DINOv2-S", "resnet50": "ResNet-50", "mobile-sam": "MobileSAM"}


def test_the_claims_are_those_of_the_run() -> None:
    assert (FOLDER / "claims.md").read_text() in PAGE


def rows() -> list[str]:
    """Every tokenizer of the tables whose generator is measured, as the page shows it."""
    evenness = {tuple(r["labels"].values()): r["ours"] for r in TABLES["tables"]["table6"]["rows"]}
    found = {}
    for table in ("table2", "table4"):
        for row in TABLES["tables"].get(table, {"rows": []})["rows"]:
            dimension = row["labels"].get("d", str(TABLES["recipe"]["experiments"]["table4"]["dimension"]))
            teacher = row["labels"]["teacher"]
            ours = {key.partition("/")[0]: stat["mean"] for key, stat in row["ours"].items()}
            cv = evenness[dimension, teacher]["cv"]["mean"]
            if ours["gfid"] is not None and (dimension, teacher) not in found:
                numbers = f"{ours['rfid']:.1f} | {ours['psnr']:.2f} | {ours['probe']:.3f} | {ours['gfid']:.1f}"
                found[dimension, teacher] = f"| {dimension} | {TEACHERS[teacher]} | {numbers} | {cv:.3f} |"
    return list(found.values())


@pytest.mark.parametrize("row", rows())
def test_the_table_of_tokenizers_is_that_of_the_run(row: str) -> None:
    assert row in PAGE.splitlines()


def cells_of_table(name: str) -> list[tuple[str, dict[str, float]]]:
    """Last label and measured numbers of each row."""
    return [
        (list(row["labels"].values())[-1], {key.partition("/")[0]: stat["mean"] for key, stat in row["ours"].items()})
        for row in TABLES["tables"][name]["rows"]
    ]


@pytest.mark.parametrize("loss, ours", cells_of_table("table5")[1:])
def test_the_table_of_losses_is_that_of_the_run(loss: str, ours: dict[str, float]) -> None:
    dino = "dinov2-small-focus" + ("" if loss == "full" else f" ({loss})")
    dimension = str(TABLES["recipe"]["experiments"]["table5"]["dimension"])
    cv = next(
        row["ours"]["cv"]["mean"]
        for row in TABLES["tables"]["table6"]["rows"]
        if list(row["labels"].values()) == [dimension, dino]
    )
    numbers = f"{ours['rfid']:.1f} | {ours['psnr']:.2f} | {ours['probe']:.3f} | {ours['gfid']:.1f} | {cv:.3f}"
    assert f"| {loss} | {numbers} |" in PAGE.splitlines()


def test_the_correlation_with_the_probe_is_that_of_the_run() -> None:
    tokenizers = dict(cells_of_table("table4")) | dict(cells_of_table("table5")[2:])  # none and full stand in both
    probe, gfid = ([ours[key] for ours in tokenizers.values()] for key in ("probe", "gfid"))
    found = f"r {pearsonr(probe, gfid)[0]:.2f}, rank {spearmanr(probe, gfid)[0]:.2f}".replace("-", "−")
    assert len(tokenizers) == 7 and f"({found} over the seven)" in " ".join(PAGE.split())


def test_the_results_are_whole_and_the_tables_are_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    results = Results(FOLDER / "results")
    values = set()
    for path in sorted((FOLDER / "results").glob("*.json")):
        content = results.read(path.stem)
        assert content is not None, path
        values |= {record["value"] for record in content.get("records", ())}
    shown = {
        value
        for table in TABLES["tables"].values()
        for row in table["rows"]
        for stat in row["ours"].values()
        for value in stat["values"]
    }
    assert len(shown) > 20 and shown <= values
    assert capsys.readouterr().out == ""  # nothing was set aside
