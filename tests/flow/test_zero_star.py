"""CFG-Zero* against its guider in diffusers, and by its definition."""

import pytest
import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.flow import Guidance, LinearPath, Prediction, sample


def test_guided_prediction_is_that_of_diffusers() -> None:
    guiders = pytest.importorskip("diffusers.guiders")
    torch.manual_seed(0)
    conditional, poorer = torch.randn(2, 3, 4, 5, 5).unbind(0)
    # There the scale of the original formulation is ours.
    guider = guiders.ClassifierFreeZeroStarGuidance(guidance_scale=3.5, zero_init_steps=0)
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(500))
    expected = guider.forward(conditional, poorer).pred
    guided = Guidance(3.5, 0.0, kind="zero_star").combine(conditional, poorer)
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-6)


def test_factor_is_the_best_for_each_sample() -> None:
    poorer = torch.randn(4, 3, 2, 2)
    factors = torch.tensor([-1.0, 0.5, 1.0, 2.0]).view(4, 1, 1, 1)
    # A conditional prediction that is a multiple of the poorer one is met exactly, so any scale leaves it.
    guided = Guidance(7.0, 0.0, kind="zero_star").combine(factors * poorer, poorer)
    torch.testing.assert_close(guided, factors * poorer, rtol=1e-5, atol=1e-6)


class Drift(nn.Module):
    """Velocity 1 with a label, 0.5 without."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y == 1, 0.5, 1.0).view(-1, 1, 1, 1).expand_as(x).clone()


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_factor_belongs_to_velocities(prediction: Prediction) -> None:
    """Networks that predict the same flow in other forms draw the same samples."""

    def velocity(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y.view(-1, 1, 1, 1) == 1, 0.3, 1.0) * torch.cos(3 * x) + t.view(-1, 1, 1, 1)

    def other(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return LinearPath().convert(velocity(x, t, y), x, t, "velocity", prediction)

    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    settings = {"steps": 11, "shift": 1.0, "null_label": 1, "guidance": Guidance(2.0, 0.0, kind="zero_star")}
    drawn = sample(other, noise, torch.zeros(2, dtype=torch.int64), prediction=prediction, **settings)
    expected = sample(velocity, noise, torch.zeros(2, dtype=torch.int64), **settings)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.01)  # those stop just before 0 and 1


@pytest.mark.parametrize(("still", "moved"), [(0, 1.0), (1, 0.9), (4, 0.6)])
def test_first_steps_stand_still(still: int, moved: float) -> None:
    """The factor is 2 here, so the guided velocity is the conditional one and the way is the moving steps' time."""
    guidance = Guidance(3.0, 0.0, kind="zero_star", zero_init_steps=still)
    noise = torch.zeros(1, 1, 2, 2)
    drawn = sample(Drift(), noise, torch.tensor([0]), steps=11, shift=1.0, guidance=guidance, null_label=1)
    torch.testing.assert_close(drawn, torch.full_like(noise, moved))


@pytest.mark.parametrize("solver", ["heun", "midpoint", "rk4", "dopri5"])
def test_first_step_of_every_solver_stands_still(solver: str) -> None:
    guidance, noise = Guidance(3.0, 0.0, kind="zero_star"), torch.zeros(1, 1, 2, 2)
    options = {"solver": solver, "steps": 11, "shift": 1.0, "guidance": guidance, "null_label": 1}
    drawn = sample(Drift(), noise, torch.tensor([0]), **options)
    torch.testing.assert_close(drawn, torch.full_like(noise, 0.9))


def test_steps_that_stand_still_leave_one() -> None:
    guidance, noise = Guidance(3.0, 0.0, kind="zero_star", zero_init_steps=10), torch.zeros(1, 1, 2, 2)
    with pytest.raises(UserError, match="zero_init_steps must be at most 9 with 11 steps, got 10"):
        sample(Drift(), noise, torch.tensor([0]), steps=11, guidance=guidance, null_label=1)


def test_standing_still_has_its_exact_error() -> None:
    """Data N(m, s²): x_t = t·m + sqrt(t²s² + (1 − t)²)·z, so from x at time t the flow ends at m + s·z."""
    mean, std, t = 0.7, 0.4, 0.2

    def velocity(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        variance = t**2 * std**2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    noise = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    guidance = Guidance(2.0, 0.0, kind="zero_star", zero_init_steps=20)  # with and without label are the same here
    labels = torch.zeros(3, dtype=torch.int64)
    drawn = sample(velocity, noise, labels, solver="heun", steps=101, shift=1.0, guidance=guidance, null_label=1)
    expected = mean + std * (noise - t * mean) / (t**2 * std**2 + (1 - t) ** 2) ** 0.5
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)


def test_no_guidance_does_not_stand_still() -> None:
    noise = torch.zeros(1, 1, 2, 2)
    guidance = Guidance(1.0, kind="zero_star", zero_init_steps=4)
    drawn = sample(Drift(), noise, torch.tensor([0]), steps=11, shift=1.0, guidance=guidance, null_label=1)
    torch.testing.assert_close(drawn, torch.ones_like(noise))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="kind must be one of cfg, zero_star, internal, path_drop, got 'other'"):
        Guidance(2.0, kind="other")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="zero_init_steps must be at least 0, got -1"):
        Guidance(2.0, kind="zero_star", zero_init_steps=-1)
