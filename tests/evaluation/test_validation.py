"""What a run measures as it goes on, and what it says before it begins."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_runs import colours, measured_tokenizer_recipe, moments, tiny_network
from tiny_runs import TinyTeacher, tokenizer_recipe, transformer_recipe, write_latents
from torch import Tensor

from vavae import rng
from vavae.commands import bench
from vavae.data import LatentDataset, load_pixels, to_tensor, to_uint8
from vavae.data.images import ImagesConfig, evenly_spaced
from vavae.errors import UserError
from vavae.evaluation import validation
from vavae.evaluation.validation import FrechetConfig, ReconstructionDistance, ReconstructionFrechetConfig
from vavae.metrics import FeatureNetwork, RunningMoments
from vavae.models import Generator, SamplingConfig
from vavae.stages import train_dit, train_tokenizer
from vavae.training import throughput
from vavae.training.parallel import World
from vavae.training.run_log import read_metrics
from vavae.training.throughput import count_flops, measured_tflops

Launch = Callable[..., None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def test_the_distance_is_that_of_samples_of_the_average(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> None:
    """Against drawing all samples of the final, averaged model at once; and the same from two processes."""
    monkeypatch.setattr(validation, "load_feature_network", tiny_network)
    frechet = FrechetConfig(20, "tiny", "demo", steps=5, batch_size=6)
    recipe = replace(transformer_recipe(tmp_path / "one", data, validation_images=48), frechet=frechet)
    generator = train_dit.run(recipe)
    lines = read_metrics(tmp_path / "one")
    assert [line["images"] for line in lines if "validation/frechet" in line] == [48, 96]

    labels = rng.integers(recipe.training.seed, "label", range(20), 3).tolist()
    drawn = generator(labels, recipe.training.seed, sampling=SamplingConfig(steps=5))
    source = ImagesConfig("demo", 8).open("train")
    real = moments(load_pixels(source, range(len(source)), 8))
    assert lines[-1]["validation/frechet"] == pytest.approx(moments(to_uint8(drawn)).distance(real), rel=1e-3)
    assert isinstance(generator, Generator)

    launch(2, "measured_transformer", tmp_path / "two", data)
    other = read_metrics(tmp_path / "two")
    assert other[-1]["validation/frechet"] == pytest.approx(lines[-1]["validation/frechet"], rel=0.02)


def test_the_tokenizers_distance_is_that_of_reconstructions_of_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> None:
    """Against the final, averaged tokenizer on all images at once; and the same from two processes."""
    monkeypatch.setattr(validation, "load_feature_network", tiny_network)
    monkeypatch.setattr(train_tokenizer, "load_teacher", lambda *_, **__: TinyTeacher())
    recipe = measured_tokenizer_recipe(tmp_path / "one")
    tokenizer = train_tokenizer.run(recipe)
    lines = read_metrics(tmp_path / "one")
    found = [line["validation/frechet"] for line in lines if "validation/frechet" in line]
    assert [line["images"] for line in lines if "validation/frechet" in line] == [16, 32] and found[0] != found[1]

    test = recipe.data.open("test")
    pixels = load_pixels(test, evenly_spaced(20, len(test)), 16)
    with torch.inference_mode():
        rebuilt = to_uint8(tokenizer.autoencoder(to_tensor(pixels)))
    assert found[1] == pytest.approx(moments(rebuilt).distance(moments(pixels)), rel=1e-3)

    launch(2, "measured_tokenizer", tmp_path / "two")
    assert read_metrics(tmp_path / "two")[-1]["validation/frechet"] == pytest.approx(found[1], rel=0.02)

    with pytest.raises(UserError, match=r"frechet.samples must be 0 \(off\) or at least 2, got 1"):
        ReconstructionFrechetConfig(1)
    with pytest.raises(
        UserError, match=r"frechet.samples: at least 30 test images are needed \(30 processes\), got 20"
    ):
        ReconstructionDistance(recipe.frechet, recipe.data.open("test"), 16, torch.device("cpu"), World(size=30))


def test_a_distance_that_takes_too_much_memory_is_measured_in_smaller_parts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples, reference and reconstructions; and the distances are those of the larger parts."""
    room, sizes = 100, []

    def small(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        if len(pixels) > room:
            raise torch.OutOfMemoryError("no room")
        return colours(pixels)

    def network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
        return FeatureNetwork(name, "none", torch.device(device), small)

    monkeypatch.setattr(validation, "load_feature_network", network)
    monkeypatch.setattr(train_tokenizer, "load_teacher", lambda *_, **__: TinyTeacher())
    source = measured_tokenizer_recipe(tmp_path).data.open("test")
    tokenizer = train_tokenizer.run(measured_tokenizer_recipe(tmp_path / "tokenizer"))
    frechet = FrechetConfig(20, "tiny", "demo", steps=3, batch_size=16)
    recipe = replace(transformer_recipe(tmp_path / "generator", data, validation_images=96), frechet=frechet)
    generator = train_dit.run(recipe)
    reconstructions = ReconstructionFrechetConfig(20, "tiny", batch_size=16)
    arguments = (16, torch.device("cpu"), World())

    def measured() -> list[float]:
        sizes.clear()
        rebuilt = ReconstructionDistance(reconstructions, source, *arguments)(tokenizer.autoencoder)
        drawn = validation.SampleDistance(frechet, 8, torch.device("cpu"), "fp32", World())(generator, 0)
        return [float(rebuilt), float(drawn)]

    whole = measured()
    assert max(sizes) == 16
    room = 5
    assert measured() == pytest.approx(whole, rel=1e-4)
    assert sorted(set(sizes)) == [4, 8, 16]


def test_a_reference_of_another_network_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "load_feature_network", tiny_network)
    wrong = RunningMoments(5)
    wrong.update(torch.randn(9, 5))
    wrong.save(tmp_path / "wrong.npz")
    frechet = FrechetConfig(4, "tiny", str(tmp_path / "wrong.npz"), steps=3)
    with pytest.raises(UserError, match=r"statistics of 6 features, as tiny has, got 5 in .*wrong.npz"):
        train_dit.run(replace(transformer_recipe(tmp_path / "run", data, validation_images=16), frechet=frechet))
    with pytest.raises(UserError, match=r"must be 0 \(off\) or at least 2, got 1"):
        FrechetConfig(1)


def test_the_validation_loss_is_of_the_given_latents(data: Path, tmp_path: Path) -> None:
    recipe = transformer_recipe(tmp_path, data, validation_images=48)
    train_dit.run(replace(recipe, validation_latents=str(data / "latents")))
    found = [line for line in read_metrics(tmp_path) if "validation/total" in line]
    assert [line["images"] for line in found] == [48, 96]
    assert found[1]["validation/total"] != found[0]["validation/total"]
    assert found[1]["validation/total"] == pytest.approx(found[1]["total"], rel=0.3)


def test_the_validation_sees_some_of_every_class(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and latents lie in the order of their classes, so the first of them are of one class only."""
    monkeypatch.setattr(train_dit, "_VALIDATION_LATENTS", 4)
    seen: list[int] = []
    original = LatentDataset.get

    def get(self: LatentDataset, positions: Tensor, *arguments: Any, **options: Any) -> Any:
        if not arguments:  # training asks for mirrored ones as well
            seen.extend(positions.tolist())
        return original(self, positions, *arguments, **options)

    monkeypatch.setattr(LatentDataset, "get", get)
    count = len(LatentDataset(data / "latents"))
    recipe = transformer_recipe(tmp_path, data, validation_images=96)
    train_dit.run(replace(recipe, validation_latents=str(data / "latents")))
    assert seen == [0, round((count - 1) / 3), round((count - 1) * 2 / 3), count - 1]
    assert evenly_spaced(5, 5).tolist() == [0, 1, 2, 3, 4] and evenly_spaced(1, 9).tolist() == [0]


@pytest.mark.usefixtures("estimates")
def test_a_run_says_beforehand_what_it_needs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, memory of the state, disk, and time: operations over 40 % of what one matrix product reaches."""
    monkeypatch.setattr("vavae.training.throughput.measured_tflops", lambda *_: 1e-6)
    train_dit.run(transformer_recipe(tmp_path, data))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("transformer: "))
    assert "12 steps of 8 images" in line and "of parameters, averages and optimizer" in line and "free)" in line
    assert re.search(r"; an estimated [1-9]\d* MB more for a step of 8 images at once; ", line)
    gflop = float(line.partition(" GFLOP per image")[0].rpartition("; ")[2])
    time = re.search(r"about ([\d.]+) (hours|minutes) on 1 x CPU", line)
    assert time is not None
    seconds = float(time[1]) * {"hours": 3600, "minutes": 60}[time[2]]
    assert seconds == pytest.approx(96 * gflop * 1e9 / (0.4 * 1e-6 * 1e12), rel=0.1)
    timing = (tmp_path / "timing.jsonl").read_text().splitlines()[-1]
    assert all(f'"{name}"' in timing for name in ("images_per_second", "tokens_per_second", "memory_gb", "tflops"))


def test_the_time_a_run_takes_is_told_in_the_unit_that_suits_it() -> None:
    times = [throughput._time(seconds) for seconds in (0.04, 59.0, 90.0, 5400.0, 3600 * 1234.0)]
    assert times == ["less than a minute"] * 2 + ["about 1.5 minutes", "about 1.5 hours", "about 1,200 hours"]


def test_a_matrix_product_counts_its_operations() -> None:
    a = torch.ones(30, 40)
    assert count_flops(lambda: a @ a.T) == 2 * 30 * 40 * 30
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    with torch.inference_mode():
        assert count_flops(lambda: layer(torch.ones(2, 3, 8, 8))) == 2 * 2 * 5 * 64 * 27
        assert count_flops(lambda: torch.nn.functional.linear(a, a)) == 2 * 30 * 40 * 30
    assert 0 < measured_tflops(torch.device("cpu"), torch.float32) < 100


def test_bench_reports_every_stage_with_its_share_of_the_peak(tmp_path: Path) -> None:
    bench.run(bench.Config(batch_size=2, repeats=1, device="cpu", precision="fp32", output=str(tmp_path / "b.json")))
    record = json.loads((tmp_path / "b.json").read_text())
    stages = {result["stage"].partition(",")[0]: result for result in record["results"]}
    assert set(stages) == {"tokenizer step", "encode", "transformer step", "sampling", "latent reading"}
    for name, result in stages.items():
        assert result["images_per_second"] > 0 and result["peak_memory_gb"] > 0
        assert (result["tflops"] > 0) == (name != "latent reading") == (0 < result["mfu"] < 2)


@pytest.mark.parametrize(
    "name, content", [("photo.png", b"\x89PNG"), ("a.json", b'{"a": 1}'), ("b.json", b"[]"), ("c.json", b"")]
)
def test_bench_replaces_nothing_but_its_own_records(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", lambda config: [])
    (tmp_path / name).write_bytes(content)
    config = bench.Config(device="cpu", output=str(tmp_path / name))
    with pytest.raises(UserError, match=name):
        bench.run(config)
    assert (tmp_path / name).read_bytes() == content
    with pytest.raises(UserError, match=r"output must end in \.json, got .*new\.txt"):
        bench.run(replace(config, output=str(tmp_path / "new.txt")))
    own = tmp_path / "new.json"
    for repeats in (1, 2):
        bench.run(replace(config, repeats=repeats, output=str(own)))
        assert json.loads(own.read_text())["config"]["repeats"] == repeats


def test_a_distance_that_would_never_be_measured_is_refused(data: Path, tmp_path: Path) -> None:
    for recipe, frechet in (
        (tokenizer_recipe(tmp_path), ReconstructionFrechetConfig(20)),
        (transformer_recipe(tmp_path, data), FrechetConfig(20)),
    ):
        with pytest.raises(UserError, match="validation_images"):
            replace(recipe, frechet=frechet)
