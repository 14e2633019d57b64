"""Measurements during training: Fréchet distances and the validation loss."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import free_port
from measured_runs import color_moments, colors, measured_tokenizer_recipe, measured_transformer_recipe, tiny_network
from tiny_runs import tokenizer_recipe, transformer_recipe, use_tiny_teacher, write_latents
from torch import Tensor

from vavae import rng
from vavae.data import LatentDataset, load_pixels, to_tensor, to_uint8
from vavae.data.images import ImagesConfig, evenly_spaced
from vavae.errors import UserError
from vavae.evaluation import validation
from vavae.evaluation.validation import FrechetConfig, ReconstructionDistance, ReconstructionFrechetConfig
from vavae.metrics import FeatureNetwork
from vavae.models import Generator, Tokenizer
from vavae.stages import train_dit, train_tokenizer
from vavae.training.parallel import World
from vavae.training.run_log import read_metrics

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer, Generator]:
    """Train a tokenizer and a transformer, and return the folder of both runs and the models."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "_REFERENCE_IMAGES", 100)
        patch.setattr(validation, "load_feature_network", tiny_network)
        use_tiny_teacher(patch.setattr)
        tokenizer = train_tokenizer.run(measured_tokenizer_recipe(folder / "tokenizer"))
        recipe = measured_transformer_recipe(folder / "transformer", data)
        generator = train_dit.run(replace(recipe, validation_latents=str(data / "latents")))
    return folder, tokenizer, generator


def distances(run: Path) -> dict[int, float]:
    """Return the measured distances of a run by number of images."""
    return {line["images"]: line["val/frechet"] for line in read_metrics(run) if "val/frechet" in line}


@pytest.mark.slow
def test_distance_of_samples(runs: tuple[Path, Tokenizer, Generator]) -> None:
    """It equals the distance of samples of the final, averaged model, all drawn at once."""
    folder, _, generator = runs
    found = distances(folder / "transformer")
    assert list(found) == [16, 32]
    labels = rng.integers(0, "label", range(20), 3).tolist()
    drawn = generator(labels, 0, output_type="np", steps=5, guidance_scale=1.0)
    source = ImagesConfig("demo", 8, limit=100).open("train")
    real = color_moments(load_pixels(source, range(len(source)), 8))
    assert found[32] == pytest.approx(color_moments(torch.from_numpy(drawn)).distance(real), rel=1e-3)


def test_distance_of_reconstructions(runs: tuple[Path, Tokenizer, Generator]) -> None:
    """It equals the distance of reconstructions by the final, averaged tokenizer, all made at once."""
    folder, tokenizer, _ = runs
    found = distances(folder / "tokenizer")
    assert list(found) == [16, 32] and found[16] != found[32]
    test = measured_tokenizer_recipe(folder).data.open("test")
    pixels = load_pixels(test, evenly_spaced(20, len(test)), 16)
    with torch.inference_mode():
        rebuilt = to_uint8(tokenizer.autoencoder(to_tensor(pixels)))
    assert found[32] == pytest.approx(color_moments(rebuilt).distance(color_moments(pixels)), rel=1e-3)


@pytest.mark.slow
def test_two_processes_measure_the_same(
    runs: tuple[Path, Tokenizer, Generator], data: Path, tmp_path: Path, launch: Callable[..., None]
) -> None:
    launch(2, "measured_stages", tmp_path, data, free_port())
    for stage in ("tokenizer", "transformer"):
        expected = distances(runs[0] / stage)[32]
        assert distances(tmp_path / stage)[32] == pytest.approx(expected, rel=0.02)


def test_out_of_memory_halves_the_batches(
    runs: tuple[Path, Tokenizer, Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The distances stay the same, for samples, reference and reconstructions."""
    room, sizes = 100, []

    def small(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        if len(pixels) > room:
            raise torch.OutOfMemoryError("no room")
        return colors(pixels)

    def network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
        return FeatureNetwork(name, "none", torch.device(device), small)

    monkeypatch.setattr(validation, "load_feature_network", network)
    monkeypatch.setattr(validation, "_REFERENCE_IMAGES", 100)
    folder, tokenizer, generator = runs
    source = measured_tokenizer_recipe(folder).data.open("test")
    frechet = FrechetConfig(20, "tiny", "demo", steps=3, batch_size=16)
    reconstructions = ReconstructionFrechetConfig(20, "tiny", batch_size=16)

    def measured() -> list[float]:
        sizes.clear()
        rebuilt = ReconstructionDistance(reconstructions, source, 16, CPU, World())(tokenizer.autoencoder)
        drawn = validation.SampleDistance(frechet, 8, CPU, "fp32", World())(generator, 0)
        return [float(rebuilt), float(drawn)]

    whole = measured()
    assert max(sizes) == 16
    room = 5
    assert measured() == pytest.approx(whole, rel=1e-4)
    assert sorted(set(sizes)) == [4, 8, 16]


def test_reference_of_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "load_feature_network", tiny_network)
    path = tmp_path / "wrong.npz"
    frechet = FrechetConfig(4, "tiny", str(path), steps=3)
    for arrays, message in (
        ({"network": "inception"}, r"frechet\.reference must be statistics .* of the network tiny, got .*wrong\.npz"),
        ({"network": "tiny"}, r"wrong\.npz: mu has 5 numbers, the features of tiny 6"),
    ):
        np.savez(path, mu=np.zeros(5), sigma=np.eye(5), **arrays)
        with pytest.raises(UserError, match=message):
            validation.SampleDistance(frechet, 8, CPU, "fp32", World())


def test_demo_images_are_no_reference_for_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "load_feature_network", tiny_network)
    with pytest.raises(UserError, match=r"frechet\.reference must be images for training at 256, got demo"):
        validation.SampleDistance(FrechetConfig(4, "tiny"), 256, CPU, "fp32", World())
    with pytest.raises(UserError, match=r"^frechet\.reference: "):
        validation.SampleDistance(FrechetConfig(4, "tiny", str(tmp_path / "none")), 256, CPU, "fp32", World())


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    for config in (FrechetConfig, ReconstructionFrechetConfig):
        with pytest.raises(UserError, match=r"frechet.samples must be 0 \(off\) or at least 2, got 1"):
            config(1)
    recipe = measured_tokenizer_recipe(tmp_path)
    with pytest.raises(
        UserError, match=r"frechet.samples: at least 30 test images are needed \(30 processes\), got 20"
    ):
        ReconstructionDistance(recipe.frechet, recipe.data.open("test"), 16, CPU, World(size=30))


def test_distance_without_an_interval_is_refused(data: Path, tmp_path: Path) -> None:
    for recipe, frechet in (
        (tokenizer_recipe(tmp_path), ReconstructionFrechetConfig(20)),
        (transformer_recipe(tmp_path, data), FrechetConfig(20)),
    ):
        with pytest.raises(UserError, match="validation_images"):
            replace(recipe, frechet=frechet)


def test_validation_loss_is_logged(runs: tuple[Path, Tokenizer, Generator]) -> None:
    found = [line for line in read_metrics(runs[0] / "transformer") if "val/loss" in line]
    assert [line["images"] for line in found] == [16, 32]
    assert found[1]["val/loss"] != found[0]["val/loss"]
    assert found[1]["val/loss"] == pytest.approx(found[1]["total"], rel=0.3)


def test_validation_loss_sees_every_class(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents are stored in the order of their classes, so the first of them have one class."""
    monkeypatch.setattr(train_dit, "_VALIDATION_LATENTS", 4)
    seen: list[int] = []
    original = LatentDataset.get

    def get(self: LatentDataset, positions: Tensor, *arguments: Any, **options: Any) -> Any:
        if not arguments:  # training passes a second argument, which latents are mirrored
            seen.extend(positions.tolist())
        return original(self, positions, *arguments, **options)

    monkeypatch.setattr(LatentDataset, "get", get)
    count = len(LatentDataset(data / "latents"))
    recipe = transformer_recipe(tmp_path, data, images=16, validation_images=16)
    train_dit.run(replace(recipe, validation_latents=str(data / "latents")))
    assert seen == [0, round((count - 1) / 3), round((count - 1) * 2 / 3), count - 1]
    assert evenly_spaced(5, 5).tolist() == [0, 1, 2, 3, 4] and evenly_spaced(1, 9).tolist() == [0]
