"""The numbers of docs/frontier.md are those of the results beside it, and these are whole."""

import json
from pathlib import Path

import pytest

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
