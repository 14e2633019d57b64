"""The class token that is denoised along with the latents."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from vavae.errors import UserError
from vavae.flow import SOLVERS, FlowConfig, Guidance, counter_noise, sample, sample_with_class_token
from vavae.transformer import LightningDiT, TransformerOutput
from vavae.transformer.routing import RoutingConfig

SEED = 4


class Given(NamedTuple):
    noise: Tensor
    class_noise: Tensor
    labels: Tensor


def draw(model: LightningDiT, given: Given, **options: Any) -> Tensor:
    return sample_with_class_token(model, given.noise, given.labels, class_noise=given.class_noise, **options)


@pytest.fixture(scope="module")
def model() -> LightningDiT:
    """A network whose velocities depend on both inputs."""
    torch.manual_seed(0)
    made = LightningDiT(latent_size=2, latent_channels=3, width=16, depth=1, heads=2, num_classes=3, class_token=5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture(scope="module")
def given() -> Given:
    torch.manual_seed(1)
    return Given(torch.randn(4, 3, 2, 2), torch.randn(4, 5), torch.tensor([0, 1, 2, 1]))


def part(given: Given, rows: list[int]) -> Given:
    return Given(*(values[rows] for values in given))


def options(solver: str, rows: list[int]) -> dict[str, Any]:
    return {"solver": solver, "steps": 6, "step_noise": counter_noise(SEED, rows), "guidance": Guidance(2.0)}


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_do_not_depend_on_their_batch(solver: str, model: LightningDiT, given: Given) -> None:
    together = draw(model, given, **options(solver, [0, 1, 2, 3]))
    alone = draw(model, part(given, [2]), **options(solver, [2]))
    tolerance = 1e-2 if solver == "dopri5" else 1e-5  # it chooses its steps for the batch
    torch.testing.assert_close(together[2:3], alone, rtol=tolerance, atol=tolerance)


def test_both_are_integrated_on_one_clock(model: LightningDiT, given: Given) -> None:
    """Euler by hand: each step takes the velocities of both at the point of both."""
    times = torch.linspace(0, 1, 6).tolist()
    x, token = given.noise, given.class_noise
    for start, end in pairwise(times):
        with torch.no_grad():
            output = model(x, torch.full((4,), start), given.labels, class_token=token)
        x, token = x + (end - start) * output.prediction, token + (end - start) * output.class_token
    drawn = draw(model, given, steps=6, shift=0)
    torch.testing.assert_close(drawn, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [None, 1])
def test_guidance_takes_the_whole_token_and_some_channels(
    channels: int | None, model: LightningDiT, given: Given
) -> None:
    """Two steps by hand, since the guided token acts on the latents in the second one."""
    guidance = Guidance(3.0, start=0.0, channels=channels)
    x, token = given.noise, given.class_noise
    for start, end in ((0.0, 0.5), (0.5, 1.0)):
        t, none = torch.full((4,), start), torch.full((4,), 3)
        with torch.no_grad():
            with_label = model(x, t, given.labels, class_token=token)
            without = model(x, t, none, class_token=token)
        velocity = without.prediction + 3 * (with_label.prediction - without.prediction)
        if channels is not None:
            velocity[:, channels:] = with_label.prediction[:, channels:]
        x = x + (end - start) * velocity
        token = token + (end - start) * (without.class_token + 3 * (with_label.class_token - without.class_token))
    drawn = draw(model, given, steps=3, shift=0, guidance=guidance)
    torch.testing.assert_close(drawn, x, rtol=1e-4, atol=1e-4)


def test_path_drop_guides_both(given: Given) -> None:
    """One step of a network with SPRINT's routing by hand."""
    torch.manual_seed(0)
    shape = {"latent_size": 2, "latent_channels": 3, "width": 16, "depth": 3, "heads": 2, "num_classes": 3}
    model = LightningDiT(**shape, class_token=5, routing=RoutingConfig("sprint", start=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        t, none = torch.zeros(4), torch.full((4,), 3)
        strong = model(given.noise, t, given.labels, class_token=given.class_noise)
        weak = model(given.noise, t, none, class_token=given.class_noise, path_drop=True)
    expected = given.noise + weak.prediction + 2 * (strong.prediction - weak.prediction)
    drawn = draw(model, given, steps=2, shift=0, guidance=Guidance(2.0, start=0.0, kind="path_drop"))
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_settings(model: LightningDiT, given: Given) -> None:
    with pytest.raises(UserError, match="channels must be at most 3, got 4"):
        draw(model, given, guidance=Guidance(2.0, channels=4))
    shapes = []
    draw(model, given, steps=3, callback=lambda *values: shapes.append(values[2:]))
    assert [tuple(one.shape) for one in shapes[1]] == [(4, 3, 2, 2)] * 2
    weak = draw(model, given, steps=6, weak_model=model, guidance=Guidance(3.0))
    torch.testing.assert_close(weak, draw(model, given, steps=6), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="class_token must be a tensor"):
        sample(model, given.noise, given.labels, steps=3)


def test_loss_has_the_error_of_the_class_token(given: Given) -> None:
    """A network that returns its inputs: the token's own noise, at the time of the latents."""
    flow, data, token = FlowConfig(), torch.randn(4, 3, 2, 2), torch.randn(4, 5)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])

    def network(x: Tensor, times: Tensor, labels: Tensor, *, class_token: Tensor, label_drop: Tensor) -> Any:
        assert torch.equal(times, t)
        return TransformerOutput(x, class_token=class_token)

    drop = torch.zeros(4, dtype=torch.bool)
    terms = flow.loss(network, data, given.labels, given.noise, t, drop, (token, given.class_noise))
    point = t[:, None] * token + (1 - t[:, None]) * given.class_noise
    error = (point - (token - given.class_noise)).square().mean(1)
    torch.testing.assert_close(terms["class_token"], error)
    plain = flow.loss(lambda x, t, y, label_drop: x, data, given.labels, given.noise, t, drop)
    torch.testing.assert_close(terms["mse"], plain["mse"], rtol=0, atol=0)
    torch.testing.assert_close(terms["total"], plain["total"] + 0.03 * error)
    with pytest.raises(UserError, match="class_token_weight must be at least 0"):
        replace(flow, class_token_weight=-1.0)
