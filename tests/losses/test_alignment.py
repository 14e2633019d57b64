"""The VF loss: definition by loops, invariances, margins, projection, adaptive weight."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import resample_grid
from vavae.losses import (
    AlignmentConfig,
    AlignmentLoss,
    adaptive_weight,
    cosine_alignment,
    distance_matrix_alignment,
)

SEEDS = st.integers(0, 2**31)


def _pair(seed: int, z_channels: int = 5, f_channels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, z_channels, 3, 2, generator=generator, dtype=torch.float64)
    f = torch.randn(2, f_channels, 3, 2, generator=generator, dtype=torch.float64)
    return z, f


def _rotation(seed: int, channels: int) -> Tensor:
    matrix = torch.randn(channels, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix).Q


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_definitions_by_loops(margin: float) -> None:
    z, f = _pair(0)
    cosines, distances = [], []
    for b in range(2):
        a, c = z[b].flatten(1).T, f[b].flatten(1).T  # (positions, channels)
        for i in range(6):
            cosines.append(max(0.0, 1 - margin - float(a[i] @ c[i] / (a[i].norm() * c[i].norm()))))
        for i, j in itertools.product(range(6), repeat=2):
            first = a[i] @ a[j] / (a[i].norm() * a[j].norm())
            second = c[i] @ c[j] / (c[i].norm() * c[j].norm())
            distances.append(max(0.0, float((first - second).abs()) - margin))
    assert cosine_alignment(z, f, margin).item() == pytest.approx(sum(cosines) / 12, rel=1e-12)
    assert distance_matrix_alignment(z, f, margin).item() == pytest.approx(sum(distances) / 72, rel=1e-12)


@settings(deadline=None)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_losses_do_not_depend_on_scale(seed: int, scale: float) -> None:
    z, f = _pair(seed)
    per_position = torch.rand(2, 1, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    for loss in (cosine_alignment, distance_matrix_alignment):
        expected = loss(z, f, 0.1)
        torch.testing.assert_close(loss(scale * per_position * z, f, 0.1), expected, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(loss(z, scale * per_position * f, 0.1), expected, rtol=1e-5, atol=1e-8)


@settings(deadline=None)
@given(seed=SEEDS)
def test_rotation_changes_the_cosine_loss_only(seed: int) -> None:
    z, f = _pair(seed)
    rotated = torch.einsum("cd,bdhw->bchw", _rotation(seed, 5), z)
    torch.testing.assert_close(distance_matrix_alignment(rotated, f, 0.1), distance_matrix_alignment(z, f, 0.1))
    assert distance_matrix_alignment(rotated, z).item() == pytest.approx(0.0, abs=1e-12)
    assert cosine_alignment(rotated, z).item() > 1e-3


@settings(deadline=None)
@given(seed=SEEDS, margins=st.lists(st.floats(0.0, 2.0), min_size=2, max_size=2).map(sorted))
def test_larger_margin_never_costs_more(seed: int, margins: list[float]) -> None:
    z, f = _pair(seed)
    for loss in (cosine_alignment, distance_matrix_alignment):
        assert loss(z, f, margins[1]) <= loss(z, f, margins[0])
        assert 0 <= loss(z, f, margins[0]) <= 2
        assert loss(z, f, 2.0) == pytest.approx(0.0, abs=1e-12)


@settings(deadline=None)
@given(seed=SEEDS)
def test_perfect_alignment_has_zero_loss(seed: int) -> None:
    z, _ = _pair(seed)
    assert cosine_alignment(z, z).item() == pytest.approx(0.0, abs=1e-7)
    assert distance_matrix_alignment(z, z).item() == 0.0
    assert cosine_alignment(-z, z).item() == pytest.approx(2.0, rel=1e-7)


def test_losses_do_not_depend_on_order_of_positions() -> None:
    z, f = _pair(1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for loss in (cosine_alignment, distance_matrix_alignment):
        permuted = [x.flatten(2)[..., order].view(x.shape) for x in (z, f)]
        torch.testing.assert_close(loss(*permuted, 0.1), loss(z, f, 0.1))


def test_images_do_not_pair_with_each_other() -> None:
    z, f = _pair(2)
    single = [distance_matrix_alignment(z[i : i + 1], f[i : i + 1], 0.1) for i in range(2)]
    torch.testing.assert_close(distance_matrix_alignment(z, f, 0.1), torch.stack(single).mean())


def test_empty_vectors_give_finite_gradients() -> None:
    z = torch.zeros(1, 4, 2, 2, requires_grad=True)
    f = torch.randn(1, 4, 2, 2)
    (cosine_alignment(z, f) + distance_matrix_alignment(z, f)).backward()
    assert z.grad.isfinite().all()


def test_gradients_equal_finite_differences() -> None:
    z, f = _pair(3)
    z.requires_grad_()
    for loss in (cosine_alignment, distance_matrix_alignment):
        torch.autograd.gradcheck(lambda x, loss=loss: loss(x, f, 0.1), (z,), eps=1e-7)


def test_wrong_shapes_are_refused() -> None:
    z, f = _pair(0, 5, 4)
    with pytest.raises(UserError, match=r"^latents and features must have the same shape"):
        cosine_alignment(z, f)
    assert distance_matrix_alignment(z, f) > 0  # widths may differ here
    with pytest.raises(UserError, match=r"^latents and features must have the same batch and grid"):
        distance_matrix_alignment(z[..., :1], f)
    loss = AlignmentLoss(AlignmentConfig(), latent_channels=5, teacher_channels=4)
    for latents in (z[:, :3], z[0]):
        with pytest.raises(UserError, match=r"^latents must have shape \(B, 5, h, w\)"):
            loss(latents, f)


def test_resampling_keeps_equal_grids_and_averages_smaller_ones() -> None:
    features = torch.randn(2, 3, 8, 8)
    assert resample_grid(features, (8, 8)) is features
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16)
    small = resample_grid(ramp, (8, 8))
    torch.testing.assert_close(small[0, 0, 4, 1:-1], 0.5 + 2 * torch.arange(1.0, 7.0))
    checkerboard = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float().view(1, 1, 16, 16)
    assert resample_grid(checkerboard, (4, 4)).sub(0.5).abs().max() < 0.02  # no aliasing
    assert resample_grid(features, (5, 11)).shape == (2, 3, 5, 11)
    torch.testing.assert_close(resample_grid(torch.full((1, 1, 3, 3), 2.0), (7, 5)), torch.full((1, 1, 7, 5), 2.0))


def test_projection_of_latents_has_no_bias() -> None:
    loss = AlignmentLoss(AlignmentConfig(), 4, 6)
    assert {name: value.shape for name, value in loss.state_dict().items()} == {"linear_proj.weight": (6, 4, 1, 1)}
    latents, features = torch.randn(2, 4, 3, 3), torch.randn(2, 6, 3, 3)
    z, f = loss.project(latents, features)
    torch.testing.assert_close(z, torch.einsum("dc,bchw->bdhw", loss.linear_proj.weight[..., 0, 0], latents))
    assert f is features


def test_projection_of_features_has_a_bias() -> None:
    loss = AlignmentLoss(AlignmentConfig(projection="teacher_to_latent"), 4, 6)
    shapes = {name: tuple(value.shape) for name, value in loss.state_dict().items()}
    assert shapes == {"linear_proj.weight": (4, 6, 1, 1), "linear_proj.bias": (4,)}
    latents = torch.randn(2, 4, 3, 3)
    z, f = loss.project(latents, torch.randn(2, 6, 3, 3))
    assert z is latents
    assert f.shape == latents.shape


def test_terms_are_weighted_and_float32_under_autocast() -> None:
    config = AlignmentConfig(cos_weight=3.0, distance_weight=0.5, cos_margin=0.1, distance_margin=0.05)
    loss = AlignmentLoss(config, 4, 6)
    latents, features = torch.randn(2, 4, 3, 3), torch.randn(2, 6, 3, 3)
    terms = loss(latents, features)
    torch.testing.assert_close(terms["alignment"], 0.5 * terms["distance_matrix"] + 3.0 * terms["cosine"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            loss(latents, features.bfloat16().float())["cosine"], loss(latents, features.bfloat16())["cosine"]
        )
        assert torch.equal(loss(latents, features)["alignment"], terms["alignment"])


def test_frozen_projection_has_no_gradient() -> None:
    loss = AlignmentLoss(AlignmentConfig(train_projection=False, cos_margin=0.0), 4, 6)
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss(latents, torch.randn(2, 6, 3, 3))["alignment"].backward()
    assert loss.linear_proj.weight.grad is None
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["cos_margin", "distance_margin"])
def test_margins_without_any_cost_are_refused(name: str) -> None:
    z, f = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([-1.0, 0.0]).view(1, 2, 1, 1)
    assert cosine_alignment(z, f, 2.0) == 0 < cosine_alignment(z, f, 1.99)
    with pytest.raises(UserError, match=rf"alignment\.{name} must be below 2, .*, got 2.0"):
        AlignmentConfig(**{name: 2.0})


@pytest.mark.parametrize(
    "name", ["weight", "cos_margin", "distance_margin", "cos_weight", "distance_weight", "maximum"]
)
def test_negative_settings_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"alignment.{name} must be at least 0, got"):
        AlignmentConfig(**{name: -0.1})
    with pytest.raises(UserError, match=f"alignment.{name} must be at least 0, got nan"):
        AlignmentConfig(**{name: float("nan")})


def test_unknown_projection_is_refused() -> None:
    with pytest.raises(UserError, match="sideways"):
        AlignmentConfig(projection="sideways")  # type: ignore[arg-type]


@settings(deadline=None)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_adaptive_weight_balances_gradients(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    gradient = scale * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    weight = adaptive_weight(reference, gradient, 1e8)
    assert weight.item() == pytest.approx(reference.norm().item() / (gradient.norm().item() + 1e-4), rel=1e-12)
    assert adaptive_weight(reference, gradient, 1e-3).item() == min(weight.item(), 1e-3)
    if scale > 1:
        assert (weight * gradient).norm().item() == pytest.approx(reference.norm().item(), rel=1e-3)


def test_adaptive_weight_of_zero_gradients() -> None:
    gradient = torch.zeros(3, requires_grad=True)
    weight = adaptive_weight(torch.ones(3), gradient, 1e4)
    assert not weight.requires_grad
    assert weight == 1e4
    assert adaptive_weight(torch.zeros(3), torch.ones(3), 1e4) == 0


@pytest.mark.parametrize("adaptive", [True, False])
def test_balanced_equals_finite_differences(adaptive: bool) -> None:
    torch.manual_seed(0)
    images, features = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 5, 2, 2).double()
    body, last, decoder = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 2, 1), nn.ConvTranspose2d(2, 3, 2, 2)
    loss = AlignmentLoss(AlignmentConfig(weight=0.3, adaptive=adaptive, cos_margin=0.1, distance_margin=0.05), 2, 5)
    for module in (body, last, decoder, loss):
        module.double()

    def losses() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        latents = last(body(images).tanh())
        reconstruction = (decoder(latents) - images).square().sum()
        return (
            reconstruction,
            loss(latents, features)["alignment"],
            loss.balanced(reconstruction, latents, features, last.weight),
        )

    reconstruction, alignment, terms = losses()
    terms["total"].backward()
    assert last.weight.grad is not None

    slopes = []  # of both losses at each number of the last layer
    numbers = last.weight.data.view(-1)
    for i in range(len(numbers)):
        ends = []
        for step in (1e-6, -2e-6):
            numbers[i] += step
            ends.append(torch.stack(losses()[:2]).detach())
        numbers[i] += 1e-6
        slopes.append((ends[0] - ends[1]) / 2e-6)
    of_reconstruction, of_alignment = torch.stack(slopes, dim=1)
    weight = 0.3 * (of_reconstruction.norm() / (of_alignment.norm() + 1e-4) if adaptive else 1)
    assert terms["alignment_weight"].item() == pytest.approx(float(weight), rel=1e-6)
    assert terms["total"].item() == pytest.approx((reconstruction + weight * alignment).item(), rel=1e-6)
    expected = of_reconstruction + weight * of_alignment  # the weight itself is constant
    torch.testing.assert_close(last.weight.grad.view(-1), expected, rtol=1e-6, atol=1e-6)


def test_projection_resamples_features_by_averaging() -> None:
    features = torch.randn(1, 8, 16, 16)
    _, own = AlignmentLoss(AlignmentConfig(), 4, 8).project(torch.randn(1, 4, 8, 8), features)
    assert torch.equal(own, torch.nn.functional.avg_pool2d(features, 2))
