"""Weights of exponential and power-function averages."""

import numpy as np
import pytest
from torch import nn

from vavae.training.ema import MovingAverage, exponential, power, power_exponent


@pytest.mark.parametrize("warmup", [True, False])
def test_decay_warmup(warmup: bool) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, exponential(0.9, warmup))
    nn.init.ones_(model.weight)
    expected = 0.0
    for step in range(200):
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        expected = decay * expected + 1 - decay
        assert float(average.values["weight"]) == pytest.approx(expected, abs=1e-12)
        if not warmup:
            assert expected == pytest.approx(1 - 0.9 ** (step + 1), abs=1e-12)


def test_power_average_weights_steps_by_a_power() -> None:
    """Step τ of t has the weight (τ^(γ+1) - (τ-1)^(γ+1)) / t^(γ+1); the relative standard deviation is the width."""
    width, steps = 0.1, 4000
    factors, rate = np.zeros(steps), power(width)
    for n in range(steps):
        r = rate(n)
        factors[:n] *= 1 - r
        factors[n] = r
    tau = np.arange(1, steps + 1, dtype=np.float64)
    gamma = power_exponent(width)
    expected = np.diff(np.concatenate([[0.0], (tau / steps) ** (gamma + 1)]))
    np.testing.assert_allclose(factors, expected, rtol=1e-6, atol=1e-12)
    mean = (factors * tau).sum()
    assert np.sqrt((factors * (tau - mean) ** 2).sum()) / steps == pytest.approx(width, rel=1e-3)
