"""Methods that align the transformer: cells, recipes, the table, a tiny run."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from frontier_grid import ONLY, grid_config, here_from, trained

from vavae.errors import UserError
from vavae.frontier.config import MethodsConfig
from vavae.frontier.grid import GeneratorCell, Grid
from vavae.frontier.results import Results
from vavae.frontier.tables import Measured, tables, to_markdown
from vavae.stages import train_joint

METHODS = [
    *[*ONLY, "--experiments.table2.seeds=[]", "--experiments.alignment.dimension=2", "--measure.teacher=null"],
    *["--experiments.alignment.size=nano/2", "--experiments.alignment.projector_hidden=16"],
    *["--experiments.alignment.teacher=dinov2-small-focus@28", "--experiments.alignment.seeds=[0]"],
]


def test_cells_and_their_recipes(tmp_path: Path) -> None:
    grid = Grid(grid_config(tmp_path, *METHODS), ("train", "test"))
    assert [cell.label for cell in grid.generators] == [
        f"nano/2 on d 2, none, seed 0{method}" for method in ("", ": REPA", ": iREPA", ": REG", ": joint (REPA-E)")
    ]
    none, repa, irepa, reg, joint = (grid.recipe(cell) for cell in grid.generators)
    assert none.alignment is None and none.transformer.class_token is None
    assert [(r.alignment.projector.kind, r.alignment.normalization) for r in (repa, irepa, reg)] == [
        ("mlp", "none"), ("conv", "zscore"), ("mlp", "none"),
    ]  # fmt: skip
    assert [r.transformer.class_token for r in (repa, irepa, reg)] == [None, None, 384]
    assert {r.alignment.weight for r in (repa, irepa, reg)} == {joint.alignment.weight} == {0.5}
    assert {r.alignment.teachers[0].input_size for r in (repa, irepa, reg)} == {joint.teacher.input_size} == {28}
    assert isinstance(joint, train_joint.Config) and joint.alignment.block == grid.block(grid.generators[0]) == 1
    assert joint.objective == replace(grid.tokenizer(grid.tokenizers[0]).objective, reduction="mean")
    assert {(r.training, r.flow, r.sampling) for r in (repa, irepa, reg, joint)} == {
        (none.training, none.flow, none.sampling)
    }
    assert len({grid.name(cell) for cell in grid.generators}) == 5
    assert joint.data.flip == none.flip and joint.teacher.cache_features == (not none.flip)
    assert len(grid.tokenizers) == 1  # all learn the latents of one tokenizer, and joint training starts from it
    assert grid.placed_generator(grid.generators[-1]).initial == grid.encoding(grid.tokenizers[0]).tokenizer


def test_teacher_has_the_grid_of_tokens_and_class_tokens_are_encoded_for_reg_only(tmp_path: Path) -> None:
    config = grid_config(tmp_path, *METHODS, "--experiments.alignment.teacher=dinov2-small-focus")
    grid = Grid(config, ("train", "test"))
    assert grid.aligning_teacher.input_size == 14 * 8 // 2  # latents of 8 x 8 in patches of 2
    with_tokens = grid.encoding(grid.tokenizers[0])
    assert with_tokens.class_token == "dinov2-small-focus@56"
    methods = replace(config.experiments.alignment, methods=("none", "repa"))
    other = Grid(replace(config, experiments=replace(config.experiments, alignment=methods)), ("train", "test"))
    without = other.encoding(other.tokenizers[0])
    assert without.class_token is None and without.output != with_tokens.output
    assert other.name(other.generators[1]) == grid.name(grid.generators[1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": "some/model"}, "experiments.alignment.teacher must be one of dinov2-"),
        ({"size": "DiTDH-S/2"}, "experiments.alignment.size must be a LightningDiT, got DiTDH-S/2"),
        ({"block": 2}, "alignment.block must be from 1 to 1, the transformer's blocks, got 2"),
    ],
)
def test_mistakes_are_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    config = grid_config(tmp_path, *METHODS)
    methods = replace(config.experiments.alignment, **change)
    wrong = replace(config, experiments=replace(config.experiments, alignment=methods))
    with pytest.raises(UserError) as error:
        len(Grid(wrong, ("train", "test")).jobs)
    assert named in str(error.value)


def test_alignment_of_generators_is_set_by_the_grid(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generator\.alignment\.[\w.]+ is set by the grid"):
        grid_config(tmp_path, "--generator.alignment.block", "2")


def measured(folder: Path, numbers: dict[tuple[str, int], tuple[float, float]], *overrides: str) -> Measured:
    """Results with a probe and a velocity loss by (method, seed)."""
    grid, results = Grid(grid_config(folder, *METHODS, *overrides), ("train", "test")), Results(folder / "results")
    for job in grid.jobs:
        if job.kind == "hidden" and isinstance(job.cell, GeneratorCell):
            found = numbers.get((job.cell.method, job.cell.tokenizer.seed))
            names = ("linear probe of hidden states", "held-out velocity loss")
            records = [] if found is None else [
                {"name": name, "value": value} for name, value in zip(names, found, strict=True)
            ]  # fmt: skip
            results.write(job.result, {"records": records})
    return Measured(grid, results)


def test_table_marks_what_does_not_compare(tmp_path: Path) -> None:
    numbers = {("none", 0): (0.3, 1.5), ("none", 1): (0.5, 1.6), ("repa", 0): (0.45, 1.4)}
    numbers |= {("reg", 0): (0.9, 0.1), ("joint", 0): (0.42, 0.2)}
    found = tables(measured(tmp_path, numbers, "--experiments.alignment.seeds=[0,1]"))["alignment"]
    rows = {row.labels[0]: row for row in found.rows}
    assert rows["none"].ours["hidden_probe"].mean == pytest.approx(0.4)
    assert rows["none"].ours["hidden_probe"].spread == pytest.approx(0.02**0.5)
    best = {column.key: [name for name, row in rows.items() if found.is_best(row, column)] for column in found.columns}
    assert (best["hidden_probe"], best["velocity"]) == (["REPA"], ["REPA"])  # the numbers of REG and joint are better
    lines = to_markdown(found).splitlines()
    assert lines[0] == "| method | probe | CKNNA | velocity loss | gFD |"
    assert lines[2] == "| none | 0.400 ± 0.141 | – | 1.5500 ± 0.0707 | – |"
    assert lines[5:] == ["| REG | 0.900 † | – | 0.1000 † | – |", "| joint (REPA-E) | 0.420 | – | 0.2000 † | – |"]
    assert "All transformers see 64 images" in found.note and "block 1, where REPA aligns" in found.note


def test_table_is_left_out_without_seeds(tmp_path: Path) -> None:
    config = grid_config(tmp_path)
    assert config.experiments.alignment == MethodsConfig()
    grid = Grid(config, ("train", "test"))
    assert "alignment" not in tables(Measured(grid, Results(tmp_path / "results")))
    assert not any(job.kind == "hidden" for job in grid.jobs)


@pytest.mark.slow
@pytest.mark.usefixtures("small_dinov2")
def test_run_writes_the_table_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["--experiments.alignment.methods=[none,reg,joint]", "--kinds=[tokenizer,generator,hidden]"]
    config = grid_config(tmp_path / "run", *METHODS, *chosen)
    code, output, error = here_from(config, monkeypatch)
    assert code == 0, output + error
    assert len(trained(output)) == 4
    stored = json.loads((tmp_path / "run/tables.json").read_text())["tables"]["alignment"]
    assert [row["labels"]["method"] for row in stored["rows"]] == ["none", "REG", "joint (REPA-E)"]
    assert all(stat["mean"] is not None for row in stored["rows"] for stat in row["ours"].values())
    with (tmp_path / "run/alignment.csv").open() as file:
        assert [line["method"] for line in csv.DictReader(file)] == ["none", "REG", "joint (REPA-E)"]
    page = (tmp_path / "run/frontier.html").read_text()
    assert "Alignment inside the transformer" in page and "The paper’s claims" not in page
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "run/results").glob("*.json"))
    hidden = sorted((tmp_path / "run/results").glob("hidden-*.json"))
    before = [path.read_text() for path in hidden]
    hidden[0].unlink()
    code, output, error = here_from(config, monkeypatch)
    assert (code, trained(output)) == (0, []), error

    def values(texts: list[str]) -> list[list[float]]:
        return [[record["value"] for record in json.loads(text)["content"]["records"]] for text in texts]

    assert values([path.read_text() for path in hidden]) == values(before)
