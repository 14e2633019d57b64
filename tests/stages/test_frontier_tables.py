"""Tables, claims and speed-ups against numbers worked out by hand; published numbers against the paper's."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vavae.config import load_recipe
from vavae.errors import UserError
from vavae.stages import frontier_published as paper
from vavae.stages.frontier import Config
from vavae.stages.frontier_claims import claims, judge, speed_up
from vavae.stages.frontier_plan import Grid, TokenizerCell, down_to
from vavae.stages.frontier_store import Results
from vavae.stages.frontier_tables import Measured, Stat, correlations, table1, table2, table5, table6, to_csv

RECIPE = Path(__file__).with_name("frontier_grid.yaml")
DINO = "dinov2-small-focus@28"


def config(folder: Path, *overrides: str) -> Config:
    return load_recipe(Config, RECIPE, ["--output", str(folder), *overrides])


def measured(folder: Path, values: dict[str, Any], *overrides: str) -> Measured:
    """Results with chosen numbers: `values` maps (kind, dimension, teacher, seed) to numbers by name."""
    recipe = config(folder, *overrides)
    grid, results = Grid(recipe, ("train", "test")), Results(folder / "results")
    for unit in grid.units:
        cell = unit.cell if isinstance(unit.cell, TokenizerCell) else unit.cell.tokenizer
        row = getattr(unit.cell, "row", "rope")
        key = (unit.kind, cell.dimension, cell.teacher, cell.loss, cell.seed, row)
        found = values.get(key) or values.get(key[:-1])
        if found is not None:
            records = [{"name": name, "value": value} for name, value in found.items()]
            results.write(unit.result, {"records": records})
    return Measured(grid, results)


def test_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    values: dict[Any, Any] = {}
    for seed, (psnr, distance) in enumerate([(20.0, 31.0), (23.0, 37.0), (20.0, 34.0)]):
        values["tokenizer", 4, "none", "none", seed] = {"PSNR": psnr}
        if seed < 2:
            values["generator", 4, "none", "none", seed] = {"FID": distance}
    found = table2(
        measured(tmp_path, values, "--experiments.table2.seeds", "[0,1,2]", "--measure.network", "inception")
    )
    row = next(row for row in found.rows if row.labels == ("4", "none"))
    assert row.ours["psnr"].mean == 21.0
    assert row.ours["psnr"].spread == pytest.approx(math.sqrt(3.0))  # ((-1)² + 2² + (-1)²) / 2
    assert row.ours["gfid/nano/2"].mean == 34.0
    assert row.ours["gfid/nano/2"].spread == pytest.approx(math.sqrt(18.0))
    assert (len(row.ours["gfid/nano/2"].values), row.ours["gfid/nano/2"].wanted) == (2, 3)
    empty = next(row for row in found.rows if row.labels == ("2", DINO))
    assert empty.ours["psnr"] == Stat((), 3) and empty.ours["psnr"].mean is None

    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    line = next(r for r in rows if (r["d"], r["teacher"]) == ("4", "none"))
    assert (line["psnr mean"], line["psnr seeds"]) == ("21.0", "3")
    assert float(line["psnr spread"]) == pytest.approx(math.sqrt(3.0))
    assert line["published gfid/nano/2"] == "36.83" and line["published source"].startswith("Table 2, f16 d64")
    # ours is never filled from the paper
    assert next(r for r in rows if (r["d"], r["teacher"]) == ("2", DINO))["gfid/nano/2 mean"] == ""


def test_published_numbers() -> None:
    """The paper's printed numbers, and nothing in their place for what it has not."""
    assert paper.TABLE2[64, "none"].values == {
        "rfid": 0.17, "psnr": 31.03, "lpips": 0.055, "ssim": 0.88, "gfid/B": 36.83, "gfid/L": 20.73, "gfid/XL": 17.24,
    }  # fmt: skip
    assert paper.TABLE2[32, "dinov2"].values["gfid/XL"] == 8.22
    assert [row.values["gfid"] for row in paper.TABLE1.values()] == [
        19.50, 17.20, 16.59, 16.61, 13.99, 12.52, 10.10, 9.25, 7.13, 4.29,
    ]  # fmt: skip
    assert [row.values["gfid"] for row in paper.TABLE5.values()] == [22.62, 15.82, 21.87, 17.74, 17.77]
    assert paper.TABLE6[64, "dinov2"].values == {"cv": 0.251, "gini": 0.141, "entropy": 0.996}
    names = ("none", "dinov2-small-focus@112", "mobile-sam", "sam-large", "mae-large", "clip-large14", "resnet50")
    assert [paper.family(name) for name in names] == ["none", "dinov2", "sam", "sam", "mae", "clip", ""]
    assert [paper.counterpart(d, (4, 16, 64)) for d in (4, 16, 64)] == [16, 32, 64]
    assert [paper.counterpart(d, (16, 32)) for d in (16, 32)] == [16, 32]  # the same, not the same rank
    assert paper.counterpart(4, (4,)) is None
    assert paper.size_counterpart("XL/1", ("B/1", "XL/1")) == "XL"


def test_the_cells_of_several_tables_are_one(tmp_path: Path) -> None:
    grid = Grid(config(tmp_path), ("train", "test"))
    assert len(grid.tokenizers) == 5 and len(grid.generators) == 7
    asked = [*grid.table2(), *grid.table4(), *grid.table5(), *grid.convergence(), *(c for _, c in grid.ladder())]
    assert len(asked) == 4 + 2 + 3 + 2 + 3
    assert TokenizerCell.of(4, DINO, "none", 0) == TokenizerCell.of(4, "none", "full", 0)
    order = {unit.result: place for place, unit in enumerate(grid.units)}
    by_name = {unit.name: unit for unit in grid.units if unit.kind in ("tokenizer", "generator")}
    assert all(order[by_name[unit.needs].result] < order[unit.result] for unit in grid.units if unit.needs)


@pytest.mark.parametrize(
    ("overrides", "tokenizers", "generators", "measured_again"),
    [
        (("--device", "cuda"), 0, 0, 0),
        (("--data.workers", "7", "--generator.compile", "true"), 0, 0, 0),
        (("--measure.samples", "30"), 0, 0, 7),
        (("--generator.sampling.steps", "9"), 0, 0, 9),
        (("--generator.images", "128"), 0, 7, 9),
        (("--tokenizer.objective.alignment.weight", "0.2"), 3, 4, 5),
        (("--tokenizer.images", "48"), 5, 7, 9),
        (("--measure.tsne_seeds", "2"), 0, 0, 0),
    ],
)
def test_a_change_concerns_what_depends_on_it(
    overrides: tuple[str, ...], tokenizers: int, generators: int, measured_again: int, tmp_path: Path
) -> None:
    old, new = (Grid(config(tmp_path, *extra), ("train", "test")) for extra in ((), overrides))

    def names(grid: Grid, kind: str) -> set[str]:
        return {unit.name for unit in grid.units if unit.kind == kind}

    assert len(names(new, "tokenizer") - names(old, "tokenizer")) == tokenizers
    assert len(names(new, "generator") - names(old, "generator")) == generators
    results = [{u.result for u in grid.units if u.kind in ("generator", "curve")} for grid in (old, new)]
    assert len(results[1] - results[0]) == measured_again
    other = Grid(config(tmp_path), ("other images", "test"))
    assert not names(other, "tokenizer") & names(old, "tokenizer")


def test_the_place_of_a_folder_is_no_part_of_a_name(tmp_path: Path) -> None:
    a, b = (Grid(config(tmp_path / name), ("train", "test")) for name in ("a", "b"))
    assert [unit.result for unit in a.units] == [unit.result for unit in b.units]


def test_the_ladder_changes_one_thing_at_a_time(tmp_path: Path) -> None:
    grid = Grid(config(tmp_path), ("train", "test"))
    full = grid.generator(next(grid.table2()))
    assert down_to(full, "rope") == full
    dit, flow = down_to(full, "dit"), down_to(full, "rectified-flow")
    assert (dit.flow.path, dit.flow.prediction) == ("vp", "noise")
    assert replace(dit, flow=flow.flow) == flow
    batch = down_to(full, "batch")
    assert (flow.training.batch_size, batch.training.batch_size) == (4, 16)
    assert batch.optimizer.learning_rate == 2 * flow.optimizer.learning_rate
    assert flow.training.images == batch.training.images
    assert (batch.optimizer.betas[1], down_to(full, "beta2").optimizer.betas[1]) == (0.999, 0.95)
    assert (down_to(full, "beta2").flow.times.kind, down_to(full, "lognorm").flow.times.kind) == (
        "uniform",
        "logit_normal",
    )
    assert [down_to(full, row).flow.direction_weight for row in ("lognorm", "direction")] == [0.0, 1.0]
    shapes = [down_to(full, row).transformer for row in ("direction", "swiglu", "rmsnorm", "rope")]
    assert [(s.swiglu, s.rmsnorm, s.rope) for s in shapes] == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ]


def test_a_loss_of_one_term_has_half_the_weight(tmp_path: Path) -> None:
    grid = Grid(config(tmp_path), ("train", "test"))
    terms = {
        loss: grid.tokenizer(TokenizerCell.of(4, DINO, loss, 0)).objective.alignment
        for loss in ("full", "no-mcos", "no-mdms", "no-margin", "none")
    }
    assert [(t.enabled, t.weight, t.cos_weight, t.distance_weight) for t in terms.values()] == [
        (True, 0.1, 1.0, 1.0), (True, 0.05, 0.0, 1.0), (True, 0.05, 1.0, 0.0), (True, 0.1, 1.0, 1.0),
        (False, 0.1, 1.0, 1.0),
    ]  # fmt: skip
    assert (terms["full"].cos_margin, terms["no-margin"].cos_margin, terms["no-margin"].distance_margin) == (0.5, 0, 0)


def test_teachers_see_what_gives_the_grid_of_the_latents(tmp_path: Path) -> None:
    grid = Grid(config(tmp_path), ("train", "test"))  # 8 × 8 latents
    sizes = [grid.teacher(name).input_size for name in ("dinov2-small-focus", "resnet50", "mobile-sam", "sam-base")]
    assert sizes == [112, 256, 128, None]
    assert grid.teacher(DINO).input_size == 28
    with pytest.raises(UserError, match="dinov9"):
        grid.teacher("dinov9")


def test_speed_up_at_equal_distance() -> None:
    plain = [(100, 80.0), (200, 40.0)]
    aligned = [(50, 160.0), (100, 20.0), (200, 10.0)]
    # log 160 → log 20 is three halvings over 50 images; 40 is reached after two of them, at 50 + 2/3 · 50.
    assert speed_up(plain, aligned) == pytest.approx(200 / (50 + 100 / 3))
    assert speed_up(plain, plain) == pytest.approx(1.0)
    assert speed_up(plain, [(100, 90.0), (200, 50.0)]) is None
    assert speed_up(plain, [(100, 30.0)]) == 2.0
    assert speed_up([], aligned) is None and speed_up(plain, []) is None


def test_verdicts_follow_the_rule() -> None:
    low, high, wide = Stat((10.0, 11.0, 12.0), 3), Stat((20.0, 21.0, 22.0), 3), Stat((5.0, 12.0, 25.0), 3)
    assert judge([(low, high)], True) == "reproduced"
    assert judge([(high, low)], True) == "not"
    assert judge([(low, high), (high, low)], True) == "partly (1 of 2)"
    assert judge([(low, wide)], True) == "open: no difference to speak of"
    assert judge([(Stat((10.0,), 1), Stat((10.2,), 1))], True) == "open: no difference to speak of, one seed"
    assert judge([(Stat((10.0,), 1), Stat((10.5,), 1))], True) == "reproduced, one seed"
    assert judge([(low, high)], False) == "direction as in the paper; too little for a verdict"
    assert judge([(low, Stat((), 3))], True) == judge([], True) == "not yet measured"


def test_nothing_measured_is_said_so(tmp_path: Path) -> None:
    for claim in claims(measured(tmp_path, {})):
        assert (claim.ours, claim.verdict) == ("not yet measured", "not yet measured"), claim.claim
        assert claim.published


def test_claims_of_a_grid_that_behaves_as_in_the_paper(tmp_path: Path) -> None:
    values: dict[Any, Any] = {}
    for d, teacher, rfid, gfid, cv in (
        (2, "none", 9, 30, 0.2),
        (4, "none", 4, 50, 0.3),
        (2, DINO, 9.5, 28, 0.19),
        (4, DINO, 4.2, 29, 0.21),
    ):
        loss = "none" if teacher == "none" else "full"
        values["tokenizer", d, teacher, loss, 0] = {"rFID": float(rfid)}
        values["generator", d, teacher, loss, 0] = {"FID": float(gfid)}
        values["uniformity", d, teacher, loss, 0] = {"uniformity: density cv": cv}
    values["generator", 4, DINO, "no-mcos", 0] = {"FID": 40.0}
    values["generator", 4, "none", "none", 0, "dit"] = {"FID": 90.0}
    found = measured(
        tmp_path, values, "--measure.network", "inception", "--measure.samples", "5000",
        "--measure.reconstructions", "1000",
    )  # fmt: skip
    verdicts = [claim.verdict for claim in claims(found)]
    assert verdicts[:4] == ["reproduced, one seed"] * 4
    assert verdicts[4] == "not yet measured"  # no curves
    assert verdicts[5] == verdicts[6] == "reproduced, one seed"
    assert "d 2: 30.00; d 4: 50.00" in claims(found)[1].ours
    assert [row.ours["gfid"].mean for row in table5(found).rows] == [50.0, 29.0, 40.0]
    assert [row.ours["gfid"].mean for row in table1(found).rows] == [90.0, 50.0, 29.0]
    rows = [(row.ours["cv"].mean, row.ours["gfid"].mean) for row in table6(found).rows]
    known = np.array([pair for pair in rows if None not in pair], dtype=float)
    over_all = next(c for c in correlations(found, table6(found)) if c.group == "all tokenizers")
    assert over_all.count == len(known) == 4
    assert over_all.pearson == pytest.approx(np.corrcoef(known.T)[0, 1])
    assert over_all.spearman == pytest.approx(0.8)  # ranks 1, 3, 2, 4 beside 1, 2, 3, 4
