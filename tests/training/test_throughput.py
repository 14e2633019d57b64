"""Throughput: operations of a product, and the estimate that a run prints before it begins."""

import re
from pathlib import Path

import pytest
import torch
from tiny_runs import transformer_recipe, write_latents

from vavae.stages import train_dit
from vavae.training import throughput
from vavae.training.throughput import count_flops, measured_tflops


@pytest.mark.slow
@pytest.mark.usefixtures("estimates")
def test_run_prints_an_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, memory of the state, disk, and time: operations over 40 % of what one matrix product reaches."""
    monkeypatch.setattr("vavae.training.throughput.measured_tflops", lambda *_: 1e-6)
    train_dit.run(transformer_recipe(tmp_path, write_latents(tmp_path / "data"), images=16))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("transformer: "))
    assert "2 steps of 8 images" in line and "of parameters, averages and optimizer" in line and "free)" in line
    assert re.search(r"; an estimated [1-9]\d* MB more for a step of 8 images at once; ", line)
    gflop = float(line.partition(" GFLOP per image")[0].rpartition("; ")[2])
    time = re.search(r"about ([\d.]+) (hours|minutes) on 1 x CPU", line)
    assert time is not None
    seconds = float(time[1]) * {"hours": 3600, "minutes": 60}[time[2]]
    assert seconds == pytest.approx(16 * gflop * 1e9 / (0.4 * 1e-6 * 1e12), rel=0.1)
    timing = (tmp_path / "timing.jsonl").read_text().splitlines()[-1]
    assert all(f'"{name}"' in timing for name in ("images_per_second", "tokens_per_second", "memory_gb", "tflops"))


def test_time_has_a_suitable_unit() -> None:
    times = [throughput.format_seconds(seconds) for seconds in (0.04, 59.0, 90.0, 5400.0, 3600 * 1234.0)]
    assert times == ["less than a minute"] * 2 + ["about 1.5 minutes", "about 1.5 hours", "about 1,200 hours"]


def test_flops_of_products() -> None:
    a = torch.ones(30, 40)
    assert count_flops(lambda: a @ a.T) == 2 * 30 * 40 * 30
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    with torch.inference_mode():
        assert count_flops(lambda: layer(torch.ones(2, 3, 8, 8))) == 2 * 2 * 5 * 64 * 27
        assert count_flops(lambda: torch.nn.functional.linear(a, a)) == 2 * 30 * 40 * 30
    assert 0 < measured_tflops(torch.device("cpu"), torch.float32) < 100
