"""Routing in `train-dit`: kept tokens by position, phases, counted operations, folders, starting weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import live_states, transformer_recipe, write_latents

from vavae.commands.estimate import Config, estimate
from vavae.config import to_yaml
from vavae.data import LatentDataset
from vavae.errors import UserError
from vavae.flow import FlowConfig
from vavae.models import Generator, Tokenizer
from vavae.stages import train_dit
from vavae.stages.costs import TransformerCosts
from vavae.stages.initial import load_initial_transformer
from vavae.stages.train_dit import TransformerTask
from vavae.transformer import DiTDHConfig, LightningDiTConfig, build_transformer
from vavae.transformer.routing import RoutingConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def recipe(folder: Path, data: Path, kind: str = "sprint", **options: Any) -> train_dit.Config:
    given = transformer_recipe(folder, data)
    routing = RoutingConfig(kind, **{"start": 1, **options})  # type: ignore[arg-type]
    return replace(given, transformer=replace(given.transformer, depth=3, routing=routing))


def task_of(config: train_dit.Config) -> TransformerTask:
    return TransformerTask(config, LatentDataset(config.latents), Tokenizer.from_pretrained(config.tokenizer))


def test_kept_tokens_are_functions_of_the_position(data: Path, tmp_path: Path) -> None:
    task = task_of(recipe(tmp_path, data, full_after_images=1000))
    positions = torch.arange(4000)
    whole, part = task._routed(positions, 0), task._routed(positions[7:9], 999)
    assert all(torch.equal(whole[name][7:9], part[name]) for name in ("kept", "path_drop"))
    assert whole["kept"].shape == (4000, 4) and bool((whole["kept"].diff() > 0).all())
    shares = torch.bincount(whole["kept"].flatten(), minlength=16) / 4000
    assert float((shares - 0.25).abs().max()) < 0.03 and 0.08 < float(whole["path_drop"].float().mean()) < 0.12
    assert task._routed(positions, 1000).keys() == {"path_drop"}
    assert task_of(recipe(tmp_path, data, "tread"))._routed(positions, 0).keys() == {"kept"}
    assert not task_of(transformer_recipe(tmp_path, data))._routed(positions, 0)


def test_switch_to_all_tokens_is_a_phase(data: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, data, full_after_images=32)
    task = task_of(replace(config, flow=replace(config.flow, uniform_after_images=64)))
    assert [task.phase(seen) for seen in (0, 31, 32, 64)] == [0, 0, 1, 2]


def test_validation_keeps_all_tokens_and_has_no_contrastive_term(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(tmp_path, data)
    flow, training = replace(config.flow, contrastive=0.05), replace(config.training, validation_images=48)
    config = replace(config, flow=flow, training=training, validation_latents=str(data / "latents"))
    task, calls = task_of(config), []
    original = type(task.transformer).forward

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(task.transformer), "forward", forward)
    assert "contrastive" in task.step(next(iter(task.batches(0, 0))), 0, 1.0)
    assert calls[0].keys() == {"label_drop", "kept", "path_drop"}
    assert task.validate(live_states(task), 1).keys() == {"mse", "direction", "total"}
    assert calls[-1].keys() == {"label_drop"}


@pytest.mark.parametrize("kind", ["sprint", "tread"])
@pytest.mark.slow
def test_operations_fall_by_the_dropped_tokens(kind: str) -> None:
    """Of 6 blocks 4 see a quarter of 256 tokens; SPRINT's fusion costs a little."""
    flow, plain = FlowConfig(), LightningDiTConfig(width=64, depth=6, heads=4)
    routed = replace(plain, routing=RoutingConfig(kind, start=1, full_after_images=800))  # type: ignore[arg-type]
    whole = TransformerCosts(plain, flow, "fp32", "none").work(1000)
    costs = TransformerCosts(routed, flow, "fp32", "none")
    first, last, mean = costs.work(1000, 0), costs.work(1000, 800), costs.work(1000)
    assert whole.flops and first.flops and last.flops and mean.flops
    assert 2 < whole.flops / first.flops < 2.4 and 1 <= last.flops / whole.flops < 1.02
    assert mean.flops == pytest.approx(0.8 * first.flops + 0.2 * last.flops)
    tokens = 256 * (2 + 4 / 4) / 6
    assert (first.tokens, last.tokens, whole.tokens) == (round(tokens), 256, 256)
    assert mean.tokens == round(0.8 * tokens + 0.2 * 256)
    shapes = [replace(plain, depth=3, routing=replace(routed.routing, full_after_images=end)) for end in (None, 800)]
    never, later = (TransformerCosts(shape, flow, "fp32", "none").step_bytes(4) for shape in shapes)
    assert never < 0.85 * later


def test_blocks_of_a_head_see_all_tokens() -> None:
    shape = DiTDHConfig(latent_channels=8, widths=(16, 24), depths=(4, 2), heads=(2, 2), num_classes=3)
    routed = replace(shape, routing=RoutingConfig("sprint", start=1))
    assert TransformerCosts(routed, FlowConfig(), "fp32", "none").work(1).tokens == round(256 * (4 + 2 / 4) / 6)


def test_estimate_names_the_tokens(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformerCosts, "step_bytes", lambda self, images: images)  # the memory is not looked at
    (tmp_path / "mine.yaml").write_text(to_yaml(recipe(tmp_path, data)))
    found = estimate(Config(recipe=str(tmp_path / "mine.yaml")))
    assert "routing sprint: a block sees 12 of 16 tokens, mean over blocks and run" in found.notes


def test_generator_loads_again(data: Path, tmp_path: Path) -> None:
    task = task_of(recipe(tmp_path, data))
    generator = task.model(live_states(task), {}, 8, False)
    generator.save_pretrained(tmp_path / "generator")
    loaded = Generator.from_pretrained(tmp_path / "generator")
    assert loaded.config == generator.config and loaded.config.routing.kind == "sprint"
    assert torch.equal(loaded.latents([0, 2], steps=3), generator.latents([0, 2], steps=3))


def test_initial_must_have_the_same_fusion(data: Path, tmp_path: Path) -> None:
    task = task_of(recipe(tmp_path, data))
    task.model(live_states(task), {}, 8, False).save_pretrained(tmp_path / "generator")

    def load(**options: Any) -> str:
        shape = replace(task.transformer.config, routing=RoutingConfig(**{"kind": "sprint", "start": 1, **options}))
        fresh = build_transformer(shape)
        return load_initial_transformer(str(tmp_path / "generator"), fresh, task.flow, task.statistics)

    assert "; new" not in load(drop=0.0)
    with pytest.raises(UserError, match=r'transformer.routing.kind must be "sprint", as in .*, got "tread"'):
        load(kind="tread")
    with pytest.raises(UserError, match=r"transformer.routing.stop must be 2, as in .*, got 3"):
        load(stop=3)
