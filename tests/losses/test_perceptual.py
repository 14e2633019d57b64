"""LPIPS with its published weights against an independent computation with numpy in float64."""

from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vavae.errors import UserError
from vavae.losses import LPIPS, PerceptualConfig
from vavae.losses.perceptual import smallest_side

Array = NDArray[np.float64]


@pytest.fixture(scope="module", params=["alexnet", "vgg16"])
def lpips(request: pytest.FixtureRequest) -> LPIPS:
    return LPIPS.pretrained(request.param)


def _photo_like(size: int, seed: int) -> Tensor:
    """Return smooth random colors, (1, 3, size, size) in [-1, 1]."""
    noise = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic").tanh()


def _convolve(x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Array:
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.maximum(np.tensordot(weight, windows, ([1, 2, 3], [0, 3, 4])) + bias[:, None, None], 0.0)


def _pool(x: Array, size: int) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(3, 4))


def _reference(network: str, weights: dict[str, Array], first: Array, second: Array) -> float:
    """LPIPS of two (3, H, W) images, from the papers' tables of layers."""
    if network == "alexnet":
        plan = ["11/4/2", "tap", "pool3", "5/1/2", "tap", "pool3", "3/1/1", "tap", "3/1/1", "tap", "3/1/1", "tap"]
    else:
        plan = ["3/1/1", "3/1/1", "tap", "pool2", "3/1/1", "3/1/1", "tap"] + 3 * ["pool2", *3 * ["3/1/1"], "tap"]
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    pair = [(image - shift[:, None, None]) / scale[:, None, None] for image in (first, second)]
    convolutions = heads = 0
    total = 0.0
    for step in plan:
        if step == "tap":
            a, b = (x / (np.sqrt((x**2).sum(0)) + 1e-10) for x in pair)
            total += float((weights[f"heads.{heads}.weight"].reshape(-1, 1, 1) * (a - b) ** 2).sum(0).mean())
            heads += 1
        elif step.startswith("pool"):
            pair = [_pool(x, int(step[4:])) for x in pair]
        else:
            kernel, stride, padding = map(int, step.split("/"))
            weight, bias = (weights[f"features.{convolutions}.{name}"] for name in ("weight", "bias"))
            assert weight.shape[2] == kernel
            pair = [_convolve(x, weight, bias, stride, padding) for x in pair]
            convolutions += 1
    assert (convolutions, heads) == ((5, 5) if network == "alexnet" else (13, 5))
    return total


def test_equals_an_independent_computation(lpips: LPIPS) -> None:
    network = "alexnet" if len(lpips.features) == 5 else "vgg16"
    size = 64 if network == "alexnet" else 16
    first, second = _photo_like(size, 0), _photo_like(size, 1)
    weights = {name: value.double().numpy() for name, value in lpips.state_dict().items()}
    expected = _reference(network, weights, first[0].double().numpy(), second[0].double().numpy())
    assert lpips(first, second).item() == pytest.approx(expected, rel=1e-5)


def test_published_heads_are_not_negative(lpips: LPIPS) -> None:
    for head in lpips.heads:
        assert (head.weight >= 0).all()
        assert head.weight.max() > 0


def test_lpips_is_a_distance(lpips: LPIPS) -> None:
    first, second = _photo_like(32, 2), _photo_like(32, 3)
    assert lpips(first, first).item() == 0
    torch.testing.assert_close(lpips(first, second), lpips(second, first))
    near = lpips(first, (first + 0.02 * torch.randn(first.shape, generator=torch.Generator().manual_seed(0))))
    assert 0 < near.item() < lpips(first, second).item()


def test_lpips_per_image_and_from_stored_features(lpips: LPIPS) -> None:
    first = torch.cat([_photo_like(32, i) for i in range(3)])
    second = first.roll(1, 0)
    together = lpips(first, second)
    assert together.shape == (3,)
    alone = torch.cat([lpips(first[i : i + 1], second[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        targets = lpips.extract(first)
    torch.testing.assert_close(lpips.distance(targets, lpips.extract(second)), together)


def test_bfloat16_convolutions_stay_close(lpips: LPIPS) -> None:
    first, second = _photo_like(32, 4), _photo_like(32, 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = lpips(first, second)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, lpips(first, second), rtol=0.02, atol=0)


def test_gradients_reach_the_image_only() -> None:
    model = LPIPS("alexnet")
    image = _photo_like(32, 6).requires_grad_()
    model.train()(image, _photo_like(32, 7)).sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_zero_features_have_finite_gradients() -> None:
    model = LPIPS("alexnet")
    for convolution in model.features:
        convolution.bias.fill_(-1e3)
    image = _photo_like(32, 8).requires_grad_()
    model(image, _photo_like(32, 9)).sum().backward()
    assert image.grad.isfinite().all()


def test_training_mode_changes_nothing() -> None:
    model = LPIPS("alexnet")
    first, second = _photo_like(64, 8), _photo_like(64, 9)
    assert torch.equal(model.train()(first, second), model.eval()(first, second))


def test_images_of_different_shapes_are_refused() -> None:
    model, images = LPIPS("alexnet"), torch.zeros(2, 3, 64, 64)
    for other in (images[:1], images[..., :32]):
        with pytest.raises(UserError, match=r"^images must have the same shape"):
            model(images, other)
    for wrong in (images[:, :1], images[0], images.byte()):
        with pytest.raises(UserError, match=r"^images must be floats of shape"):
            model.extract(wrong)


def test_unknown_network_is_refused() -> None:
    with pytest.raises(UserError, match="squeeze"):
        LPIPS("squeeze")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="squeeze"):
        PerceptualConfig(network="squeeze")  # type: ignore[arg-type]


@pytest.mark.parametrize("network, side", [("vgg16", 16), ("alexnet", 31)])
def test_images_too_small_for_the_network_are_refused(network: Literal["vgg16", "alexnet"], side: int) -> None:
    assert smallest_side(network) == side
    model = LPIPS(network)
    assert model(torch.zeros(1, 3, side, side), torch.zeros(1, 3, side, side)).shape == (1,)
    with pytest.raises(
        UserError,
        match=rf"^images must be at least {side} .* {network}, got {side} x {side - 1} \(in a recipe: data\.size\)$",
    ):
        model.extract(torch.zeros(1, 3, side, side - 1))


def test_recipe_with_too_small_images_is_refused() -> None:
    PerceptualConfig(network="alexnet").check_size((31, 64))
    PerceptualConfig(weight=0.0, network="alexnet").check_size((64, 30))
    with pytest.raises(
        UserError, match=r"^data\.size must be at least 31 .* objective\.perceptual with alexnet, got 64x30;"
    ):
        PerceptualConfig(network="alexnet").check_size((64, 30))
