"""Data predictions trained in velocity space (JiT, JLT, RiT): the loss has its closed form, sampling the same floor."""

import pytest
import torch
from torch import Tensor

from vavae.errors import UserError
from vavae.flow import LinearPath, flow_matching_loss, path_by_name, sample

FLOOR = 0.05


class Constant(torch.nn.Module):
    """Predict the same data everywhere."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.value.expand_as(x)


def test_loss_is_the_data_error_over_the_floored_sigma() -> None:
    torch.manual_seed(0)
    data, noise = torch.randn(2, 4, 3, 2, 2).unbind(0)
    guess = torch.randn(1, 3, 2, 2)
    t = torch.tensor([0.0, 0.5, 0.94, 0.99])
    given = {"noise": noise, "t": t, "prediction": "data", "path": LinearPath(FLOOR)}
    terms = flow_matching_loss(Constant(guess), data, torch.zeros(4, dtype=torch.int64), space="velocity", **given)
    expected = (guess - data).square().flatten(1).mean(1) / (1 - t).clamp(min=FLOOR) ** 2
    torch.testing.assert_close(terms["mse"], expected, rtol=1e-5, atol=1e-6)
    plain = flow_matching_loss(Constant(guess), data, torch.zeros(4, dtype=torch.int64), **given)
    torch.testing.assert_close(plain["mse"], (guess - data).square().flatten(1).mean(1))


def test_velocity_prediction_is_the_same_in_both_spaces() -> None:
    data, noise = torch.randn(2, 2, 3, 2, 2).unbind(0)
    given = {"noise": noise, "t": torch.tensor([0.3, 0.7])}
    labels = torch.zeros(2, dtype=torch.int64)
    first, second = (
        flow_matching_loss(Constant(data[:1]), data, labels, space=space, **given)["total"]
        for space in ("target", "velocity")
    )
    assert torch.equal(first, second)


def test_sampling_ends_where_the_floored_velocity_leads() -> None:
    """Near data the floor makes steps shorter, so that the state moves to the prediction without reaching it."""
    data, noise = torch.tensor([[[[2.0]]]]), torch.tensor([[[[-1.0]]]])
    steps = 101
    drawn = sample(
        Constant(data), noise, torch.tensor([0]), steps=steps, shift=1.0, path=LinearPath(FLOOR), prediction="data"
    )
    state, step = -1.0, 1 / (steps - 1)
    for k in range(steps - 1):
        state += step * (2.0 - state) / max(1 - k * step, FLOOR)
    assert drawn.item() == pytest.approx(state, rel=1e-4)
    assert 1.9 < drawn.item() < 2.0


def test_unknown_space_and_floor_are_refused() -> None:
    with pytest.raises(UserError, match="velocity_floor must be from 0 to 1, got -1"):
        path_by_name("linear", -1)
    data = torch.zeros(1, 1, 1, 1)
    with pytest.raises(UserError, match="space must be one of target, velocity, got 'noise'"):
        flow_matching_loss(Constant(data), data, torch.tensor([0]), space="noise")  # type: ignore[arg-type]
