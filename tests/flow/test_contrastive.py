"""Contrastive flow matching: the loss by its formula, its gradient, and which sample is the other one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.flow import FlowConfig, flow_matching_loss


class Scale(nn.Module):
    """Predict a learned multiple of the point."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, t: Tensor, y: Tensor, **_: Any) -> Tensor:
        return self.factor * x


def terms(count: int = 4, **options: Any) -> tuple[dict[str, Tensor], Tensor, Tensor, Scale]:
    """Return the loss, the points and targets of a straight path, and the network."""
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, count, 3, 2, 2, generator=generator)
    t, model = torch.rand(count, generator=generator), Scale()
    found = flow_matching_loss(model, data, torch.zeros(count, dtype=torch.int64), noise=noise, t=t, **options)
    at = t.view(-1, 1, 1, 1)
    return found, at * data + (1 - at) * noise, data - noise, model


def test_loss_and_gradient_are_those_of_the_formula() -> None:
    found, x, target, model = terms(contrastive=0.05, direction_weight=0.0)
    other = target[[1, 0, 3, 2]]
    expected = (0.7 * x - target).square().mean((1, 2, 3)) - 0.05 * (0.7 * x - other).square().mean((1, 2, 3))
    torch.testing.assert_close(found["total"], expected)
    found["total"].mean().backward()
    gradient = 2 * (x * (0.7 * x - target) - 0.05 * x * (0.7 * x - other)).mean()
    torch.testing.assert_close(model.factor.grad, gradient)


def test_weight_zero_is_the_plain_loss() -> None:
    plain, zero, some = terms()[0], terms(contrastive=0.0)[0], terms(contrastive=0.05)[0]
    assert zero.keys() == plain.keys() and all(torch.equal(zero[name], plain[name]) for name in plain)
    torch.testing.assert_close(some["total"], plain["total"] - 0.05 * some["contrastive"])


def test_parts_of_an_even_number_have_the_same_partners() -> None:
    """So a loss does not depend on micro-batches and processes; in an odd part, the last one takes its neighbor."""
    whole = terms(6, contrastive=0.05)[0]["contrastive"]
    _, x, target, _ = terms(6)
    part = (0.7 * x[2:4] - target[[3, 2]]).square().mean((1, 2, 3))
    torch.testing.assert_close(whole[2:4], part)
    odd, x, target, _ = terms(3, contrastive=0.05)
    torch.testing.assert_close(odd["contrastive"][2], (0.7 * x[2] - target[1]).square().mean())


def test_targets_are_compared_in_the_space_of_the_loss() -> None:
    found, x, _, _ = terms(2, contrastive=0.05, prediction="data", space="velocity")
    assert found["contrastive"].isfinite().all()
    same, *_ = terms(2, contrastive=0.05, prediction="data")
    assert not torch.equal(found["contrastive"], same["contrastive"]) and len(x) == 2


def test_one_sample_and_large_weights_are_refused() -> None:
    with pytest.raises(UserError, match="contrastive must be 0 for one sample at once"):
        terms(1, contrastive=0.05)
    with pytest.raises(UserError, match=r"flow\.contrastive must be at least 0 and below 1, got 1\.0"):
        FlowConfig(contrastive=1.0)
