"""Numbers on a device without float64 and non-blocking copies, such as Apple GPUs.

Fake tensors have a device but no values, so no such device is needed. They also refuse to mix devices. torch's unused
device type `lazy` represents the GPU: fake tensors of type `mps` need a build with Apple support.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vavae import rng
from vavae.device import device_lock, float64_device, to_device, to_float64
from vavae.flow import LinearPath, TimeDistribution, flow_matching_loss
from vavae.flow.solvers import solver_by_name
from vavae.metrics.frechet import RunningMoments
from vavae.metrics.images import psnr, ssim
from vavae.metrics.inception_resize import resize_as_tensorflow
from vavae.tokenizer.statistics import RunningStatistics
from vavae.transformer import LightningDiT

GPU = torch.device("lazy")


class Refuse(TorchDispatchMode):
    """Refuse float64 tensors on the device, and non-blocking copies to and from it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        there = [
            leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor) and leaf.device.type == "lazy"
        ]
        options = dict(zip([argument.name for argument in function._schema.arguments], args, strict=False)) | kwargs
        if there and torch.float64 in (options.get("dtype"), *(tensor.dtype for tensor in there)):
            raise TypeError(f"{function}: no float64")
        if there and options.get("non_blocking"):
            raise TypeError(f"{function}: no non-blocking copies")
        return result


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True), Refuse():
        yield


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x.double(),
        lambda x: torch.zeros(2, dtype=torch.float64, device=GPU),
        lambda x: x.to("cpu", torch.float64),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.ones(3).to(GPU, non_blocking=True),
        lambda x: x + torch.ones(3),
    ],
)
def test_unsupported_operations_are_refused(refused: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises((TypeError, RuntimeError)):
        refused(torch.ones(3, device=GPU))


def test_device_functions() -> None:
    assert float64_device(GPU).type == to_float64(torch.ones(3, device=GPU)).device.type == "cpu"
    assert to_device(torch.ones(3), GPU).device.type == "lazy"
    assert device_lock(GPU) is device_lock(torch.device("mps")) is not device_lock(torch.device("cpu"))


def test_random_numbers() -> None:
    for numbers in (rng.normal(0, "x", range(4), (3,), GPU), rng.uniform(0, "x", range(4), (), GPU)):
        assert numbers.device.type == "lazy" and numbers.dtype == torch.float32
    assert rng.integers(0, "x", range(4), 7, GPU).device.type == "lazy"


def test_metrics_and_statistics() -> None:
    images, features = torch.ones(2, 3, 16, 16, device=GPU), torch.ones(12, 5, device=GPU)
    assert psnr(images, images).dtype == ssim(images, images).dtype == torch.float64
    assert resize_as_tensorflow(images, 8).device.type == "lazy"
    RunningMoments(5, GPU).update(features)
    RunningStatistics(3).update(images)


@pytest.mark.slow
def test_training_step_and_sampling() -> None:
    with GPU:
        model = LightningDiT(latent_size=4, latent_channels=3, width=32, depth=1, heads=2, num_classes=5)
    latents, labels = torch.ones(2, 3, 4, 4, device=GPU), torch.zeros(2, dtype=torch.int64, device=GPU)
    t = TimeDistribution("logit_normal").from_uniform(rng.uniform(0, "t", range(2), (), GPU)).to(GPU)
    noise = rng.normal(0, "noise", range(2), (3, 4, 4), GPU)
    terms = flow_matching_loss(model, latents, labels, noise=noise, t=t, path=LinearPath())
    terms["total"].mean().backward()
    assert all(p.grad is not None and p.grad.device.type == "lazy" for p in model.parameters())
    sample = solver_by_name("euler")(lambda x, t: model(x, torch.full((2,), t, device=GPU), labels), noise, [0.0, 1.0])
    assert sample.device.type == "lazy"
