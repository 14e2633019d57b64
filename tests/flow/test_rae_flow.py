"""Times, guidance and samples of RAE against the published implementation (bytetriper/RAE at a4d18c4)."""

from typing import Any

import pytest
import torch
from golden_next import assert_close, ditdh, load

from vavae.errors import UserError
from vavae.flow import Guidance, TimeDistribution, sample, shift_for_dimension, shifted_times
from vavae.flow.guidance import guided_prediction


def guidance_of(config: dict[str, Any], kind: str) -> Guidance:
    first, last = config[f"{kind}_interval"]  # in the published time
    return Guidance(config[f"{kind}_scale"], 1 - last, 1 - first)


def test_dimension_shift_of_published_latents() -> None:
    assert shift_for_dimension(768, 16, 16) == pytest.approx(0.14433757)
    assert shift_for_dimension(768, 32, 32) == pytest.approx(1 / 13.8564065)
    assert shift_for_dimension(32, 16, 16) == pytest.approx(0.5**0.5)
    assert shift_for_dimension(16, 16, 16) == 1
    with pytest.raises(UserError, match="'dimension' needs at least 4,096 numbers, got 1,024"):
        shift_for_dimension(16, 8, 8)


@pytest.mark.parametrize("steps", [12, 50])
def test_grids_stop_short_of_data(steps: int) -> None:
    tensors, config, _ = load("rae_dit_samples")
    grid = shifted_times(steps, 1 / config["time_shift"], end=0.999)
    assert_close(1 - grid, tensors[f"times_{steps}"], 1e-6)
    assert grid[-1].item() == pytest.approx(0.99311, abs=1e-5)
    with pytest.raises(UserError, match=r"end must be above 0 and at most 1, got 1\.5"):
        shifted_times(3, 1.0, end=1.5)


def test_training_times_are_shifted_and_truncated() -> None:
    tensors, config, _ = load("rae_dit_samples")
    times = TimeDistribution(shift=1 / config["time_shift"])
    ours = 1 - times.from_uniform(1 - tensors["time_u"].double()).float()
    assert tensors["time_u"][0] == 0  # there the normal is infinite, and ours stays half a random bit away
    assert_close(ours[1:], tensors["time_shifted"][1:], 1e-6)


def test_guidance_and_autoguidance() -> None:
    tensors, config, weights = load("rae_dit")
    model, weak = (ditdh(config[name], weights[name]) for name in ("model", "weak"))
    for i, t in enumerate(tensors["guided_t"].tolist()):  # outside, at and inside the interval
        x, y = tensors["guided_x"][i : i + 1], tensors["guided_y"][i : i + 1]
        cfg = guided_prediction(model, y, guidance_of(config, "cfg"), null_label=config["null_label"])
        auto = guided_prediction(model, y, guidance_of(config, "autoguidance"), weak_model=weak)
        with torch.no_grad():
            assert_close(-cfg(x, round(1 - t, 6)), tensors["cfg"][i : i + 1], 2e-5)
            assert_close(-auto(x, round(1 - t, 6)), tensors["autoguidance"][i : i + 1], 2e-5)


@pytest.mark.parametrize("kind", ["unguided", "cfg", "autoguidance"])
def test_samples(kind: str) -> None:
    tensors, config, weights = load("rae_dit_samples")
    options: dict[str, Any] = {} if kind == "unguided" else {"guidance": guidance_of(config, kind)}
    if kind == "autoguidance":
        options["weak_model"] = ditdh(config["weak"], weights["weak"])
    drawn = sample(
        ditdh(config["model"], weights["model"]),
        tensors["noise"],
        torch.tensor(config["labels"]),
        steps=config["num_steps"],
        shift=1 / config["time_shift"],
        end=0.999,
        **options,
    )
    assert_close(drawn, tensors[kind], 1e-4)
