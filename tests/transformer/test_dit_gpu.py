"""On a CUDA device: the same numbers as on the CPU, half precision, compiled kernels, other grids, sampling."""

import copy

import pytest
import torch
from torch import Tensor

from vavae.flow import Guidance, flow_matching_loss, sample
from vavae.transformer import LightningDiT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"


def network(**changes: object) -> LightningDiT:
    torch.manual_seed(0)
    shape = {"latent_size": 8, "latent_channels": 8, "width": 128, "depth": 3, "heads": 2, "num_classes": 5}
    model = LightningDiT(**{**shape, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def batch(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 8, height, width, generator=generator)
    return x, torch.rand(4, generator=generator), torch.tensor([0, 1, 4, 5])


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


@pytest.mark.parametrize("positions", ["recompute", "interpolate"])
@pytest.mark.parametrize("grid", [(8, 8), (12, 6)])
def test_same_velocity_as_on_the_cpu(grid: tuple[int, int], positions: str) -> None:
    model, arguments = network(positions=positions, qk_norm=True), batch(*grid)
    with torch.no_grad():
        expected = model(*arguments)
        actual = copy.deepcopy(model).to(DEVICE)(*on_device(*arguments))
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(8, 8), (12, 6)])
def test_compiled_training_step_in_bfloat16(grid: tuple[int, int]) -> None:
    torch._dynamo.reset()
    model = network(label_dropout=0.0).to(DEVICE).train()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    data, t, labels = on_device(*batch(*grid))
    noise = torch.randn_like(data)
    losses = []
    for each in (model, compiled):
        with torch.autocast("cuda", torch.bfloat16):
            loss = flow_matching_loss(each, data, labels, noise=noise, t=t)["total"].mean()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 0.05 * a.grad.norm() + 1e-6


def test_same_samples_as_on_the_cpu() -> None:
    model, (noise, _, labels) = network(), batch()
    options = {"steps": 12, "guidance": Guidance(2.0)}
    expected = sample(model, noise, labels, **options)
    actual = sample(model.to(DEVICE), noise.to(DEVICE), labels, **options)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=1e-3)
