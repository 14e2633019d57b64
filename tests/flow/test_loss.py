"""The training loss against float64 formulas; drawn noise and times; wrong arguments."""

import math

import pytest
import torch
from torch import Tensor

from vavae.errors import UserError
from vavae.flow import (
    CosinePath,
    LinearPath,
    Prediction,
    ProbabilityPath,
    TimeDistribution,
    VariancePreservingPath,
    flow_matching_loss,
    sample,
)
from vavae.flow.loss import velocity_loss
from vavae.transformer import LightningDiT


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_terms_against_a_loop_in_float64() -> None:
    velocity, target = numbers(0, 3, 5, 2, 4), numbers(1, 3, 5, 2, 4)
    terms = velocity_loss(velocity, target, direction_weight=0.3)
    for i in range(3):
        mse = sum(
            (a - b) ** 2 for a, b in zip(velocity[i].flatten().tolist(), target[i].flatten().tolist(), strict=True)
        )
        cosines = []
        for row in range(2):
            for column in range(4):
                v, u = velocity[i, :, row, column].tolist(), target[i, :, row, column].tolist()
                dot = sum(a * b for a, b in zip(v, u, strict=True))
                cosines.append(dot / (math.hypot(*v) * math.hypot(*u)))
        direction = 1 - sum(cosines) / len(cosines)
        assert terms["mse"][i].item() == pytest.approx(mse / 40, rel=1e-5)
        assert terms["direction"][i].item() == pytest.approx(direction, rel=1e-5)
        assert terms["total"][i].item() == pytest.approx(mse / 40 + 0.3 * direction, rel=1e-5)


@pytest.mark.parametrize(("factor", "direction"), [(1.0, 0.0), (3.0, 0.0), (-2.0, 2.0)])
def test_direction_ignores_length(factor: float, direction: float) -> None:
    target = numbers(0, 2, 8, 3, 3)
    terms = velocity_loss(factor * target, target)
    torch.testing.assert_close(terms["direction"], torch.full((2,), direction), atol=1e-6, rtol=0)
    torch.testing.assert_close(terms["mse"], (factor - 1) ** 2 * target.square().mean(dim=(1, 2, 3)))


def test_terms_of_bfloat16_predictions_are_float32() -> None:
    velocity, target = numbers(0, 2, 8, 3, 3).bfloat16(), numbers(1, 2, 8, 3, 3).bfloat16()
    terms = velocity_loss(velocity, target)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert torch.equal(terms["mse"], velocity_loss(velocity.float(), target.float())["mse"])


def test_first_gradient_has_ordinary_size() -> None:
    """It predicts exactly zero, where the gradient of a cosine is zero or huge."""
    torch.manual_seed(0)
    model = LightningDiT(latent_size=4, latent_channels=8, width=32, depth=1, heads=2, num_classes=3)
    terms = flow_matching_loss(
        model, numbers(0, 4, 8, 4, 4), torch.zeros(4, dtype=torch.long), noise=numbers(1, 4, 8, 4, 4), t=torch.rand(4)
    )
    terms["total"].mean().backward()
    gradient = model.final_layer.linear.weight.grad
    assert 0 < gradient.norm() < 1000


class Recorder:
    """A network that records its arguments and predicts zero."""

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, **options: Tensor) -> Tensor:
        self.x, self.t, self.labels, self.options = x, t, labels, options
        return torch.zeros_like(x)


@pytest.mark.parametrize("path", [LinearPath(), CosinePath()])
def test_network_gets_points_of_the_path(path: LinearPath | CosinePath) -> None:
    model, data, noise = Recorder(), numbers(0, 2, 3, 2, 2), numbers(1, 2, 3, 2, 2)
    t, labels = torch.tensor([0.2, 0.9]), torch.tensor([4, 5])
    terms = flow_matching_loss(model, data, labels, noise=noise, t=t, path=path)
    x, target = path.interpolate(t, noise, data)
    assert torch.equal(model.x, x)
    assert torch.equal(model.t, t)
    assert torch.equal(model.labels, labels)
    assert model.options == {}
    torch.testing.assert_close(terms["mse"], target.square().mean(dim=(1, 2, 3)))
    drop = torch.tensor([True, False])
    flow_matching_loss(model, data, labels, noise=noise, t=t, label_drop=drop)
    assert torch.equal(model.options["label_drop"], drop)


def test_noise_and_times_are_drawn_from_the_generator() -> None:
    data, labels = numbers(0, 64, 2, 2, 2), torch.zeros(64, dtype=torch.long)
    models = [Recorder(), Recorder()]
    for model in models:
        generator = torch.Generator().manual_seed(5)
        flow_matching_loss(model, data, labels, times=TimeDistribution("uniform", low=0.8), generator=generator)
    assert torch.equal(models[0].x, models[1].x)
    assert (models[0].t >= 0.8).all()
    assert models[0].t.std() > 0.03
    noise = (models[0].x - models[0].t[:, None, None, None] * data) / (1 - models[0].t)[:, None, None, None]
    assert noise.mean().item() == pytest.approx(0, abs=0.15)
    assert noise.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("path", [LinearPath(), CosinePath(), VariancePreservingPath()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("prediction", ["velocity", "noise", "data"])
def test_perfect_prediction_has_zero_loss_and_samples_the_data(path: ProbabilityPath, prediction: Prediction) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64)
    data = torch.full_like(noise, 0.5)  # one point, so that the flow to it is known in closed form
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)

    def perfect(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        c = path.coefficients(t.view(-1, 1, 1, 1))
        there = (x - c.alpha * data) / c.sigma
        if prediction == "velocity":
            return c.alpha_prime * data + c.sigma_prime * there
        return there if prediction == "noise" else data.clone()

    labels = torch.zeros(3, dtype=torch.long)
    terms = flow_matching_loss(perfect, data, labels, noise=noise, t=t, path=path, prediction=prediction)
    assert terms["mse"].max() < 1e-10
    wrong = flow_matching_loss(
        lambda x, t, y: perfect(x, t, y) + 1, data, labels, noise=noise, t=t, path=path, prediction=prediction
    )
    torch.testing.assert_close(wrong["mse"], torch.ones(3))
    samples = sample(perfect, noise, labels, steps=200, shift=1.0, path=path, prediction=prediction)
    torch.testing.assert_close(samples, data, atol=0.06, rtol=0)


def test_score_prediction_is_refused() -> None:
    with pytest.raises(UserError, match="prediction must not be score: the score is unbounded"):
        flow_matching_loss(
            lambda x, t, y: x, torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long), prediction="score"
        )


def test_wrong_prediction_and_labels_are_named() -> None:
    data = torch.randn(2, 4, 3, 3)
    with pytest.raises(UserError, match="prediction must be velocity, noise or data, got 'foo'"):
        flow_matching_loss(lambda x, t, y: x, data, torch.zeros(2, dtype=torch.long), prediction="foo")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"labels must have shape \(2,\), one per sample, got \(1,\)"):
        flow_matching_loss(lambda x, t, y: x, data, torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": torch.rand(1)}, r"^t must have shape \(2,\)"),
        ({"noise": torch.zeros(1, 4, 3, 3)}, "noise must have the shape of the data"),
        ({"labels": torch.zeros(2)}, "labels must be integers"),
        ({"labels": None}, "labels must"),
        ({"model": lambda x, t, y: x[:, :1]}, "the prediction must have the shape of the data"),
    ],
)
def test_shapes_that_torch_would_broadcast_are_refused(changes: dict, message: str) -> None:
    arguments = {"model": lambda x, t, y: x, "data": torch.randn(2, 4, 3, 3), "labels": [0, 1], **changes}
    with pytest.raises(UserError, match=message):
        flow_matching_loss(**arguments)
