"""Aligned latents against a teacher's own, with LightningDiT and DiT^DH: cells, recipes, a tiny run, the table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from frontier_grid import ONLY, grid_config, here_from

from vavae.errors import UserError
from vavae.frontier.config import LatentsConfig, SizeConfig
from vavae.frontier.grid import Grid
from vavae.transformer import DiTDHConfig

LATENTS = [
    *[*ONLY, "--experiments.table2.seeds=[]", "--experiments.latents.dimension=2", "--experiments.latents.seeds=[0]"],
    *["--experiments.latents.teacher=dinov2-small-focus@56", "--experiments.latents.sizes=[nano/2,wide/2]"],
    "--sizes.wide={width: 32, depth: 1, heads: 2, head_width: 64, head_depth: 1, head_heads: 2}",
    "--representation={size: B, patch_size: 8, width: 32, depth: 1, heads: 2, mlp_width: 32}",
]


def test_cells_and_their_recipes(tmp_path: Path) -> None:
    grid = Grid(grid_config(tmp_path, *LATENTS), ("train", "test"))
    assert [cell.label for cell in grid.generators] == [
        f"{size} on d {latent}, seed 0"
        for latent in ("2, dinov2-small-focus@56", "384, dinov2-small-focus@56's own")
        for size in ("nano/2", "wide/2")
    ]
    aligned, own = grid.tokenizers
    assert (grid.side(aligned), grid.side(own)) == (8, 4)
    recipe = grid.tokenizer(own)
    assert recipe.representation == grid.config.representation and not recipe.objective.alignment.enabled
    assert recipe.training == grid.tokenizer(aligned).training and recipe.optimizer == grid.tokenizer(aligned).optimizer
    assert grid.tokenizer(aligned).representation is None and grid.tokenizer(aligned).objective.alignment.enabled
    shapes = [grid.generator(c).transformer.resolve(c.tokenizer.dimension, 4, 10) for c in grid.generators]
    assert [isinstance(shape, DiTDHConfig) for shape in shapes] == [False, True, False, True]
    assert {shape.patch_size for shape in shapes} == {2}
    shifts = [(grid.generator(c).flow.times.shift, grid.generator(c).sampling.shift) for c in grid.generators]
    assert shifts == [(1.0, 0.3)] * 2 + [("dimension", "dimension")] * 2


def test_published_sizes_of_both_transformers(tmp_path: Path) -> None:
    config = grid_config(tmp_path)
    assert config.transformer("DiTDH-S/2", "key").patch == 2 and config.transformer("DiTDH-S/2", "key").has_head
    assert config.transformer("S/2", "key").patch == 2 and not config.transformer("S/2", "key").has_head


def test_mistakes_are_refused(tmp_path: Path) -> None:
    config = grid_config(tmp_path)
    with pytest.raises(UserError, match=r"sizes\.wide must have head_width, head_depth and head_heads, or none"):
        replace(config, sizes={"wide": SizeConfig(32, 1, 2, head_width=64)})
    latents = LatentsConfig(teacher="some/model", seeds=(0,))
    wrong = replace(config, experiments=replace(config.experiments, latents=latents))
    with pytest.raises(UserError, match=r"experiments\.latents\.teacher must be one of .*, got some/model"):
        Grid(wrong, ("train", "test"))


@pytest.mark.slow
@pytest.mark.usefixtures("small_dinov2")
def test_run_writes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(grid_config(tmp_path, *LATENTS), kinds=("tokenizer", "generator"))
    latents = replace(config.experiments.latents, sizes=("wide/2",))
    measure = replace(config.measure, teacher=None)
    config = replace(config, experiments=replace(config.experiments, latents=latents), measure=measure)
    code, output, error = here_from(config, monkeypatch)
    assert code == 0, output + error
    rows = json.loads((tmp_path / "tables.json").read_text())["tables"]["latents"]["rows"]
    assert [tuple(row["labels"].values()) for row in rows] == [
        ("aligned, d 2", "wide/2, DiT^DH"),
        ("own, d 384", "wide/2, DiT^DH"),
    ]
    assert all(row["ours"][key]["mean"] is not None for row in rows for key in ("rfid", "psnr", "probe", "gfid"))
    assert "Latents: aligned with" in (tmp_path / "frontier.html").read_text()
    assert (tmp_path / "latents.csv").is_file()
