"""Checkpoints of REPA and iREPA: projectors, direction of time, names of the first release."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_next import STATE_DICTS, assert_close, load, new_sit, published_shapes
from standin_hub import StandInHub
from torch import Tensor

from vavae.cli import run
from vavae.errors import UserError
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics

SD_VAE = AutoencoderConfig(4, 32, (1, 2), 1, ())


def state_of(name: str) -> dict[str, Tensor]:
    tensors, _, weights = load(name)
    return {**weights["model"], "pos_embed": tensors["pos_embed"]}


def save(path: Path, state: dict[str, Tensor], path_type: str = "linear") -> Path:
    """Write a checkpoint as the published training does: its averages are the network here."""
    args = argparse.Namespace(path_type=path_type, prediction="v", model="SiT-XL/2", enc_type="dinov2-vit-b")
    model = {key: value + 1 for key, value in state.items()}
    torch.save({"model": model, "ema": state, "opt": {"state": {}}, "args": args, "steps": 7}, path)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(AutoencoderKL(SD_VAE), LatentStatistics(torch.zeros(4), torch.full((4,), 1 / 0.18215), 1))


def generator(path: Path, tokenizer: Tokenizer) -> Generator:
    return Generator.from_pretrained(path, tokenizer=tokenizer, heads=2)


def check_velocity(model: Any, name: str) -> None:
    """velocity(x, t) = −network(x, 1 − t)."""
    tensors, _, _ = load(name)
    with torch.no_grad():
        velocity = model(tensors["x"], 1 - tensors["t"], tensors["y"])
    assert_close(-velocity, tensors["velocity"], 1e-5)


@pytest.mark.parametrize("name", ["repa", "irepa"])
def test_golden_velocity_of_a_checkpoint(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    loaded = generator(save(tmp_path / "0001000.pt", state_of(name)), tokenizer)
    check_velocity(loaded.transformer, name)
    assert (loaded.path, loaded.prediction) == ("linear", "velocity")
    assert loaded.sampling == SamplingConfig("euler_maruyama", 250, 0.0)
    report = " ".join(str(loaded.report).split())
    assert "left out projectors.*" in report and "used in training only" in report
    assert "its time runs from data to noise" in report and "mode SDE" in report
    # Our folder and the published form keep the converted network.
    loaded.save_pretrained(tmp_path / "folder")
    check_velocity(Generator.from_pretrained(tmp_path / "folder").transformer, name)


def test_short_name_of_a_sit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REPA-E's, on its tuned tokenizer, whose statistics are in a file next to it."""
    monkeypatch.chdir(tmp_path)
    repositories = StandInHub(tmp_path, monkeypatch).repositories / "REPA-E"
    (repositories / "sit-ldm-e2e-vavae/checkpoints").mkdir(parents=True)
    save(repositories / "sit-ldm-e2e-vavae/checkpoints/4000000.pt", state_of("repa"))
    (repositories / "e2e-vavae").mkdir()
    torch.save(AutoencoderKL(SD_VAE).state_dict(), repositories / "e2e-vavae/e2e-vavae-400k.pt")
    statistics = {"latents_scale": torch.full((1, 4, 1, 1), 0.5), "latents_bias": torch.zeros(1, 4, 1, 1)}
    torch.save(statistics, repositories / "e2e-vavae/e2e-vavae-400k-latents-stats.pt")
    loaded = Generator.from_pretrained("sit-ldm-e2e-vavae", heads=2)
    check_velocity(loaded.transformer, "repa")
    assert loaded.sampling == SamplingConfig("euler_maruyama", 250, 0.0, 2.4, 0.27)
    assert loaded.tokenizer.statistics.std.tolist() == [2.0] * 4


def test_cosine_path_of_the_options(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert generator(save(tmp_path / "a.pt", state_of("repa"), "cosine"), tokenizer).path == "cosine"


def test_first_release_numbers_later_blocks_from_0(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Its file is the bare state dict: the names alone show what it is."""
    legacy = {key.replace("blocks.2.", "decoder_blocks.0."): value for key, value in state_of("repa").items()}
    assert any(key.startswith("decoder_blocks.0.") for key in legacy)
    torch.save({key: value for key, value in legacy.items() if "projectors" not in key}, tmp_path / "last.pt")
    loaded = generator(tmp_path / "last.pt", tokenizer)
    check_velocity(loaded.transformer, "repa")
    assert "decoder_blocks are blocks 2 and more" in str(loaded.report)


def test_a_trained_position_table_shows_its_grid(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """REPA-E trains it."""
    state, changed = state_of("repa"), torch.Generator().manual_seed(0)
    state["pos_embed"] = state["pos_embed"] + 0.5 * torch.randn(state["pos_embed"].shape, generator=changed)
    loaded = generator(save(tmp_path / "a.pt", state), tokenizer)
    assert loaded.config.latent_size == 8
    assert torch.equal(loaded.transformer.pos_embed, state["pos_embed"])
    state["pos_embed"] = torch.zeros_like(state["pos_embed"])
    with pytest.raises(UserError, match="pos_embed must be the embedding of a grid of rows and columns"):
        generator(save(tmp_path / "a.pt", state), tokenizer)


def test_convert_writes_a_generator(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer.save_pretrained(tmp_path / "sd-vae")
    save(tmp_path / "0001000.pt", state_of("repa"))
    given = ["convert", str(tmp_path / "0001000.pt"), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "sd-vae")]
    assert run([*given, "--scaling_factor", "0.18215", "--heads", "2"]) == 0
    assert "projectors.*" in capsys.readouterr().out
    check_velocity(Generator.from_pretrained(tmp_path / "out").transformer, "repa")
    assert float(Generator.from_pretrained(tmp_path / "out").tokenizer.statistics.std[0]) == pytest.approx(1 / 0.18215)


def test_a_missing_time_layer_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    state = state_of("repa")
    del state["t_embedder.mlp.0.weight"]
    with pytest.raises(UserError, match=r"t_embedder\.mlp\.0\.weight"):
        generator(save(tmp_path / "a.pt", state), tokenizer)


@pytest.mark.parametrize("model", ["REPA SiT-B/2", "REPA SiT-L/2", "REPA SiT-XL/2"])
def test_names_and_shapes_of_published_models(model: str) -> None:
    expected, shapes = STATE_DICTS[model], published_shapes(model)
    own = {key: shape for key, shape in shapes.items() if not key.startswith("projectors.")}
    widths = {"hidden_size": own["pos_embed"][2], "patch_size": own["x_embedder.proj.weight"][2]}
    with torch.device("meta"):
        state = new_sit({**expected["arguments"], **widths}).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == own
    numbers = sum(value.numel() for value in state.values())
    assert numbers + expected["projectors"] == expected["parameters"]
