"""Latent statistics: exact for every split of the data; normalization and its inverse."""

import itertools
from pathlib import Path

import pytest
import torch
from golden_next import assert_close, load
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vavae.errors import UserError
from vavae.tokenizer import LatentStatistics, RunningStatistics


def _latents(count: int, seed: int = 0) -> torch.Tensor:
    scale = torch.tensor([0.1, 1.0, 30.0]).view(1, 3, 1, 1)
    offset = torch.tensor([1000.0, 0.0, -2.0]).view(1, 3, 1, 1)
    return torch.randn(count, 3, 2, 4, generator=torch.Generator().manual_seed(seed)) * scale + offset


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=6), processes=st.integers(1, 4), seed=st.integers(0, 1000))
def test_statistics_do_not_depend_on_batches_and_processes(cuts: list[int], processes: int, seed: int) -> None:
    latents = _latents(40, seed)
    parts = [RunningStatistics(3) for _ in range(processes)]
    edges = [0, *sorted(cuts), 40]
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        parts[i % processes].update(latents[start:stop])
    for other in parts[1:]:
        parts[0].merge(other)
    statistics = parts[0].finalize()
    flat = latents.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(parts[0].mean, flat.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics.std.double(), flat.std(1), rtol=1e-6, atol=0)
    assert statistics.count == 40


def test_large_offset_keeps_precision() -> None:
    latents = 1e6 + torch.randn(1000, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    running = RunningStatistics(1)
    for batch in latents.split(7):
        running.update(batch)
    torch.testing.assert_close(running.finalize().std.double(), latents.std().view(1), rtol=1e-6, atol=0)


def test_normalize_and_denormalize() -> None:
    latents = _latents(64)
    running = RunningStatistics(3)
    running.update(latents)
    statistics = running.finalize()
    normalized = statistics.normalize(latents)
    flat = normalized.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(1), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(statistics.denormalize(normalized), latents)


def test_normalization_keeps_the_dtype() -> None:
    statistics = LatentStatistics(torch.zeros(3), torch.ones(3))
    for dtype in (torch.bfloat16, torch.float64):
        assert statistics.normalize(torch.zeros(1, 3, 2, 2, dtype=dtype)).dtype == dtype


def test_statistics_round_trip_through_a_file(tmp_path: Path) -> None:
    running = RunningStatistics(3)
    running.update(_latents(10))
    save_file(running.to_dict(), tmp_path / "running.safetensors")
    restored = RunningStatistics.from_dict(load_file(tmp_path / "running.safetensors"))
    for part in (running, restored):  # a stopped and resumed computation equals an uninterrupted one
        part.update(_latents(5, seed=1))
    save_file(running.finalize().to_dict(), tmp_path / "statistics.safetensors")
    statistics = LatentStatistics.from_dict(load_file(tmp_path / "statistics.safetensors"))
    assert torch.equal(statistics.mean, restored.finalize().mean)
    assert torch.equal(statistics.std, restored.finalize().std)
    assert statistics.count == 15


def test_published_form_of_statistics_is_read() -> None:
    statistics = LatentStatistics.from_dict({"mean": torch.ones(1, 4, 1, 1), "std": torch.full((1, 4, 1, 1), 2.0)})
    assert statistics.channels == 4
    assert statistics.normalize(torch.full((1, 4, 1, 1), 5.0)).flatten().tolist() == [2.0] * 4


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="std"):
        LatentStatistics.from_dict({"mean": torch.zeros(2)})
    with pytest.raises(UserError, match="positive"):
        LatentStatistics(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(UserError, match="finite"):
        LatentStatistics(torch.tensor([0.0, torch.nan]), torch.ones(2))
    with pytest.raises(UserError, match=r"of one shape, .* got \(2,\) and \(3,\)"):
        LatentStatistics(torch.zeros(2), torch.ones(3))
    with pytest.raises(UserError, match="shape"):
        LatentStatistics(torch.zeros(2), torch.ones(2)).normalize(torch.zeros(1, 3, 2, 2))
    with pytest.raises(UserError, match="at least 2 values per channel, got 0"):
        RunningStatistics(2).finalize()
    with pytest.raises(UserError, match=r"must have the shape \(2,\) to be merged, got \(3,\)"):
        RunningStatistics(2).merge(RunningStatistics(3))


def test_statistics_per_position_are_those_of_each_position() -> None:
    latents = _latents(50)
    parts = [RunningStatistics(3, (2, 4)) for _ in range(2)]
    parts[0].update(latents[:13])
    parts[1].update(latents[13:])
    parts[0].merge(RunningStatistics.from_dict(parts[1].to_dict()))
    statistics = parts[0].finalize()
    assert statistics.grid == (2, 4) and statistics.channels == 3 and statistics.count == 50
    torch.testing.assert_close(statistics.mean.double(), latents.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(statistics.std.double(), latents.double().std(0), rtol=1e-6, atol=0)
    normalized = statistics.normalize(latents)
    torch.testing.assert_close(normalized.std(0), torch.ones(3, 2, 4), rtol=1e-3, atol=0)
    torch.testing.assert_close(statistics.denormalize(normalized), latents)
    again = LatentStatistics.from_dict(statistics.to_dict())
    assert again.equals(statistics) and again.grid == (2, 4)


def test_statistics_per_position_refuse_another_resolution() -> None:
    statistics = LatentStatistics(torch.zeros(3, 2, 4), torch.ones(3, 2, 4))
    for apply in (statistics.normalize, statistics.denormalize, RunningStatistics(3, (2, 4)).update):
        with pytest.raises(UserError, match="latents must be 2 x 4, as their statistics are per position, got 4 x 2"):
            apply(torch.zeros(1, 3, 4, 2))
    with pytest.raises(UserError, match=r"shape \(3,\) to be merged, got \(3, 2, 4\)"):
        RunningStatistics(3).merge(RunningStatistics(3, (2, 4)))


def test_published_forms_give_the_same_statistics() -> None:
    mean, variance = torch.randn(3, 2, 4), torch.rand(3, 2, 4) + 0.5
    flat, flat_variance = mean[:, 0, 0], variance[:, 0, 0]
    forms = [
        ({"mean": mean, "var": variance}, mean, (variance + 1e-5).sqrt()),
        ({"running_mean": flat, "running_var": flat_variance}, flat, (flat_variance + 1e-4).sqrt()),
        (
            {"latents_bias": flat.view(1, 3, 1, 1), "latents_scale": 1 / flat_variance.sqrt().view(1, 3, 1, 1)},
            flat,
            flat_variance.sqrt(),
        ),
        ({"mean": flat.view(1, 3, 1, 1), "std": flat_variance.view(1, 3, 1, 1)}, flat, flat_variance),
    ]
    for tensors, expected_mean, expected_std in forms:
        read = LatentStatistics.from_dict(tensors)
        assert torch.equal(read.mean, expected_mean)
        torch.testing.assert_close(read.std, expected_std, rtol=1e-6, atol=0)
    with pytest.raises(UserError, match="latents_bias and latents_scale, or running_mean and running_var, got mean"):
        LatentStatistics.from_dict({"mean": flat})


def test_latents_are_normalized_as_published_by_rae() -> None:
    tensors, config, _ = load("rae_encoder_dinov2")
    assert config["eps"] == 1e-5
    statistics = LatentStatistics.from_dict({"mean": tensors["stat_mean"], "var": tensors["stat_var"]})
    assert_close(statistics.normalize(tensors["latents"]), tensors["latents_normalised"], 1e-6)
