"""Sampling and guidance: formulas, when and how often networks are called, independence of the batch."""

import math

import pytest
import torch
from closed_forms import GaussianMixture, Oracle
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.flow import (
    CosinePath,
    Guidance,
    LinearPath,
    ProbabilityPath,
    VariancePreservingPath,
    counter_noise,
    sample,
    shifted_times,
)
from vavae.flow.guidance import guided_prediction
from vavae.flow.solvers import Dopri5, EulerMaruyama
from vavae.transformer import LightningDiT

MIXTURE = GaussianMixture(torch.tensor([[1.0, -1.0, 0.5, 0.0], [-1.0, 0.3, 0.2, 2.0]]).double(), std=0.4)


def noise(batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 1, 2, 2, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def network() -> LightningDiT:
    torch.manual_seed(0)
    model = LightningDiT(latent_size=4, latent_channels=5, width=32, depth=2, heads=2, num_classes=6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def latents(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 5, 4, 4, generator=torch.Generator().manual_seed(seed))


class Constant(nn.Module):
    """Predict `factor` times (label + 1); record the number of samples of each call."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls.append(len(x))
        assert t.shape == (len(x),)
        return self.factor * (y[:, None, None, None] + 1) * torch.ones_like(x)


# Guidance


@pytest.mark.slow
@given(scale=st.floats(0, 10), channels=st.one_of(st.none(), st.integers(1, 5)))
def test_combination(scale: float, channels: int | None) -> None:
    conditional, poorer = latents(2, 0).double(), latents(2, 1).double()
    guided = Guidance(scale, channels=channels).combine(conditional, poorer)
    count = 5 if channels is None else channels
    expected = (1 - scale) * poorer + scale * conditional
    torch.testing.assert_close(guided[:, :count], expected[:, :count])
    assert torch.equal(guided[:, count:], conditional[:, count:])


@given(t=st.floats(0, 1), channels=st.one_of(st.none(), st.integers(1, 4)))
def test_scale_one_is_the_conditional_prediction(t: float, channels: int | None) -> None:
    model = Constant()
    labels = torch.tensor([2, 3])
    predict = guided_prediction(model, labels, Guidance(1.0, start=0.0, channels=channels), null_label=0)
    assert torch.equal(predict(noise(2), t), (labels + 1).double()[:, None, None, None].expand(2, 1, 2, 2))
    assert model.calls == [2]


@pytest.mark.parametrize(
    ("t", "calls"), [(0.0, [2]), (0.1249, [2]), (0.125, [4]), (0.5, [4]), (0.8, [4]), (0.801, [2])]
)
def test_interval_includes_its_ends(t: float, calls: list[int]) -> None:
    model = Constant()
    predict = guided_prediction(model, torch.tensor([2, 3]), Guidance(3.0, start=0.125, stop=0.8), null_label=0)
    value = predict(noise(2), t)
    assert model.calls == calls
    labels = torch.tensor([3.0, 4.0]).double()
    expected = labels if calls == [2] else 1 + 3 * (labels - 1)
    torch.testing.assert_close(value[:, 0, 0, 0], expected)


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.7, 0.9, 0.11])
def test_interval_includes_bounds_on_the_grid(bound: float) -> None:
    """Grids are float32, which rounds such a bound up or down; the published code compares in float32 too."""
    on_grid = torch.tensor(bound, dtype=torch.float32).item()
    assert Guidance(2.0, start=bound).acts_at(on_grid)
    assert Guidance(2.0, start=0.0, stop=bound).acts_at(on_grid)
    assert not Guidance(2.0, start=bound).acts_at(on_grid - 1e-6)
    assert not Guidance(2.0, start=0.0, stop=bound).acts_at(on_grid + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_network_gets_times_in_float32(dtype: torch.dtype) -> None:
    """As published; in bfloat16, neighboring grid points would be the same time."""
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(t)
        return x

    for prediction in ("velocity", "noise"):
        end = sample(model, noise(1, dtype=dtype), torch.tensor([0]), steps=250, prediction=prediction)  # type: ignore[arg-type]
        assert end.dtype == dtype
    assert {t.dtype for t in seen} == {torch.float32}
    assert len({t.item() for t in seen[:249]}) == 249


def test_autoguidance_gives_the_weak_network_the_label() -> None:
    strong, weak = Constant(1.0), Constant(0.5)
    predict = guided_prediction(strong, torch.tensor([1]), Guidance(2.0), weak_model=weak)
    assert predict(noise(1), 0.5)[0, 0, 0, 0] == 1.0 + 2 * (2.0 - 1.0)
    assert (strong.calls, weak.calls) == ([1], [1])
    predict(noise(1), 0.1)
    assert (strong.calls, weak.calls) == ([1, 1], [1])


def test_guidance_combines_in_the_dtype_of_the_state() -> None:
    outputs = latents(2).bfloat16()

    def low_precision(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return outputs

    state = latents(1, seed=1)
    guided = guided_prediction(low_precision, torch.tensor([1]), Guidance(7.3), null_label=0)(state, 0.5)
    exact = outputs[1:].double() + 7.3 * (outputs[:1].double() - outputs[1:].double())
    assert guided.dtype == torch.float32
    torch.testing.assert_close(guided.double(), exact, rtol=1e-5, atol=1e-5)


def test_bad_guidance() -> None:
    with pytest.raises(UserError, match=r"^scale must"):
        Guidance(-1.0)
    with pytest.raises(UserError, match=r"^channels must"):
        Guidance(2.0, channels=0)
    with pytest.raises(UserError, match=r"^channels must be at most 5, got 6"):
        Guidance(2.0, channels=6).combine(latents(2, 0), latents(2, 1))
    for start, stop in ((0.9, 0.2), (7.0, 8.0), (-0.1, 1.0), (0.0, 1.1), (0.0, math.nan)):
        with pytest.raises(UserError, match=r"^start and stop must"):
            Guidance(2.0, start, stop)
    for scale in (math.nan, math.inf):
        with pytest.raises(UserError, match=r"^scale must"):
            Guidance(scale)
    with pytest.raises(UserError, match=r"^null_label or weak_model must"):
        guided_prediction(Constant(), torch.tensor([1]), Guidance(2.0))


# Sampling


def test_evaluations_inside_and_outside_the_interval() -> None:
    model = Constant()
    times = shifted_times(250, 0.3)
    sample(model, noise(3), torch.tensor([0, 1, 2]), guidance=Guidance(4.0), null_label=9)
    inside = int((times[:-1] >= 0.125).sum())
    assert len(model.calls) == 249
    assert model.calls.count(6) == inside
    assert model.calls.count(3) == 81  # as many grid points as the published sampler has below 0.125
    assert inside == 249 - 81


@pytest.mark.parametrize("prediction", ["velocity", "noise", "data", "score"])
@pytest.mark.parametrize("path", [LinearPath(), CosinePath(), VariancePreservingPath()])
def test_every_prediction_and_path_reaches_the_data(path: ProbabilityPath, prediction: str) -> None:
    """With exact networks for a mixture, samples have the means and spreads of its components."""
    labels = torch.zeros(400, dtype=torch.long)
    oracle = Oracle(MIXTURE, path, prediction)
    data = sample(oracle, noise(400), labels, solver="heun", steps=80, shift=0, path=path, prediction=prediction)
    points = data.flatten(1)
    distances = (points[:, None] - MIXTURE.means).square().sum(dim=2)
    nearest = distances.argmin(dim=1)
    assert 120 < nearest.sum() < 280
    for k in range(2):
        component = points[nearest == k]
        torch.testing.assert_close(component.mean(dim=0), MIXTURE.means[k], rtol=0, atol=0.12)
        torch.testing.assert_close(component.std(dim=0), torch.full((4,), 0.4).double(), rtol=0.2, atol=0)


def test_predictions_give_the_same_samples() -> None:
    labels = torch.arange(5)
    results = [
        sample(
            Oracle(MIXTURE, LinearPath(), kind, shift=0.5),
            noise(5),
            labels,
            solver="rk4",
            steps=60,
            prediction=kind,
            guidance=Guidance(2.0),
            null_label=0,
        )
        for kind in ("velocity", "noise", "data", "score")
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-2)  # it starts and ends 1e-3 earlier


def test_guidance_moves_towards_the_label() -> None:
    oracle = Oracle(MIXTURE, LinearPath(), shift=0.5)
    labels = torch.full((64,), 2)
    plain = sample(oracle, noise(64), labels, steps=50, null_label=0)
    guided = sample(oracle, noise(64), labels, steps=50, guidance=Guidance(2.0), null_label=0)
    assert guided.mean() > plain.mean() + 0.3
    same = sample(oracle, noise(64), labels, steps=50, guidance=Guidance(1.0), null_label=0)
    assert torch.equal(same, plain)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "rk4"])
@pytest.mark.parametrize("guidance", [None, Guidance(3.0, channels=3)])
def test_sample_does_not_depend_on_its_batch(solver: str, guidance: Guidance | None) -> None:
    model, labels = network(), torch.tensor([0, 5, 2])
    options = {"solver": solver, "steps": 6, "guidance": guidance}
    whole = sample(model, latents(3), labels, **options)
    for i in range(3):
        alone = sample(model, latents(3)[i : i + 1], labels[i : i + 1], **options)
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-4)


def test_stochastic_sample_does_not_depend_on_its_batch() -> None:
    model, labels = network(), torch.tensor([0, 5, 2])
    options = {"solver": "euler_maruyama", "steps": 6}
    whole = sample(model, latents(3), labels, step_noise=counter_noise(0, [4, 5, 6]), **options)
    alone = sample(model, latents(3)[2:], labels[2:], step_noise=counter_noise(0, [6]), **options)
    torch.testing.assert_close(alone[0], whole[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()])
def test_stochastic_solver_uses_the_given_path(path: ProbabilityPath) -> None:
    oracle, labels = Oracle(MIXTURE, path), torch.zeros(3, dtype=torch.long)
    fresh = counter_noise(1, [0, 1, 2])
    options = {"steps": 20, "path": path}
    named = sample(oracle, noise(3), labels, solver="euler_maruyama", step_noise=fresh, **options)
    built = sample(oracle, noise(3), labels, solver=EulerMaruyama(path=path, noise=fresh), **options)
    assert torch.equal(named, built)


def test_adaptive_agrees_with_many_small_steps() -> None:
    oracle, labels = Oracle(MIXTURE, LinearPath()), torch.zeros(8, dtype=torch.long)
    fine = sample(oracle, noise(8), labels, solver="rk4", steps=300, shift=0)
    adaptive = sample(oracle, noise(8), labels, solver=Dopri5(atol=1e-7, rtol=1e-7))
    torch.testing.assert_close(adaptive, fine, rtol=0, atol=1e-5)
    adaptive = sample(oracle, noise(8), labels, solver="dopri5")
    torch.testing.assert_close(adaptive, fine, rtol=0, atol=3e-2)


def test_callback_gets_the_expected_result() -> None:
    oracle, labels = Oracle(MIXTURE, LinearPath()), torch.zeros(6, dtype=torch.long)
    seen: list[tuple[int, float, Tensor, Tensor]] = []
    data = sample(oracle, noise(6), labels, steps=30, callback=lambda *step: seen.append(step))
    assert [step for step, *_ in seen] == list(range(29))
    assert torch.equal(seen[0][2], noise(6))
    # Euler's last step follows the last expectation to its end.
    torch.testing.assert_close(seen[-1][3], data)
    mean = MIXTURE.means.mean(dim=0).view(1, 2, 2).expand(6, 1, 2, 2)
    torch.testing.assert_close(seen[0][3], mean)  # from pure noise, the mean of the data is expected


def test_modes_gradients_and_dtype() -> None:
    model = network()
    model.train()
    result = sample(model, latents(2), torch.tensor([1, 6]), steps=3)
    assert model.training
    assert all(module.training for module in model.modules())
    assert result.dtype == torch.float32
    weight = torch.ones(5, requires_grad=True)
    (result * weight[:, None, None]).sum().backward()  # not an inference tensor
    assert weight.grad is not None
    evaluated = sample(model.eval(), latents(2), torch.tensor([1, 6]), steps=3)
    assert torch.equal(result, evaluated)
    assert not model.training
    with torch.autocast("cpu", torch.bfloat16):
        assert sample(model, latents(2), torch.tensor([1, 6]), steps=3).dtype == torch.float32


def test_mode_is_restored_after_an_error() -> None:
    model = network().train()
    with pytest.raises(UserError, match=r"^x must have shape"):
        sample(model, torch.zeros(1, 3, 4, 4), torch.tensor([1]), steps=3)
    assert model.training


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1]), "one per sample"),
        (torch.tensor([[1], [2]]), "one per sample"),
        (1, "one per sample"),
        ([1, 7], r"\[0, 6\], got \[7\]"),
        (torch.tensor([1.0, 2.0]), "integers"),
        (torch.tensor([True, False]), "integers"),
        (torch.tensor([1, 7]), r"\[0, 6\]"),
        (torch.tensor([-1, 0]), r"\[0, 6\]"),
    ],
)
def test_bad_labels(labels: object, message: str) -> None:
    with pytest.raises(UserError, match=f"^labels must .*{message}"):
        sample(network(), latents(2), labels, steps=2)


class _Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.norm(self.linear(x))


def test_sampling_uses_eval_mode_and_restores_every_mode() -> None:
    model, noise, labels = _Normed(), torch.randn(4, 2, 3, 3), torch.zeros(4, dtype=torch.long)
    model.norm.eval()  # frozen while the rest is trained
    sample(model, noise, labels, steps=3)
    assert model.training and model.linear.training and not model.norm.training
    model.eval()
    model.norm.train()
    before = model.norm.running_mean.clone()
    sample(model, noise, labels, steps=3)
    assert model.norm.training and not model.training
    assert torch.equal(model.norm.running_mean, before)


@pytest.mark.parametrize("shift", [math.nan, math.inf, -1.0])
def test_wrong_shift_is_named(shift: float) -> None:
    with pytest.raises(UserError, match=r"shift must be at least 0 and finite"):
        sample(_Normed(), torch.randn(1, 2, 3, 3), torch.zeros(1, dtype=torch.long), shift=shift)
