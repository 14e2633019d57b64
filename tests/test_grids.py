import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vavae.errors import UserError
from vavae.grids import resample_grid

_SIDES = st.integers(1, 12)


def _random(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * 100 + width))


@settings(max_examples=40, deadline=None)
@given(height=_SIDES, width=_SIDES, to_height=_SIDES, to_width=_SIDES)
def test_stays_in_range_and_keeps_constants(height: int, width: int, to_height: int, to_width: int) -> None:
    grid = _random(height, width)
    resampled = resample_grid(grid, (to_height, to_width))
    assert resampled.shape == (2, 3, to_height, to_width)
    assert resampled.max() <= grid.max() + 1e-5
    assert resampled.min() >= grid.min() - 1e-5
    constant = resample_grid(torch.full_like(grid, 2.5), (to_height, to_width))
    torch.testing.assert_close(constant, torch.full_like(constant, 2.5))


@settings(max_examples=20, deadline=None)
@given(height=_SIDES, width=_SIDES, to_height=_SIDES, to_width=_SIDES)
def test_commutes_with_mirroring(height: int, width: int, to_height: int, to_width: int) -> None:
    grid = _random(height, width)
    size = (to_height, to_width)
    torch.testing.assert_close(resample_grid(grid.flip(-1), size), resample_grid(grid, size).flip(-1))


def test_the_same_size_is_the_same_grid() -> None:
    grid = _random(4, 5)
    assert resample_grid(grid, (4, 5)) is grid


def test_whole_factors_are_means_of_cells() -> None:
    grid = _random(8, 12)
    cells = grid.reshape(2, 3, 4, 2, 4, 3).mean((3, 5))
    torch.testing.assert_close(resample_grid(grid, (4, 4)), cells)


def test_up_is_bilinear_between_centers() -> None:
    grid = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    resampled = resample_grid(grid, (1, 4)).flatten()
    assert resampled.tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])


def test_down_by_other_factors_uses_every_input() -> None:
    grid = _random(16, 16).requires_grad_()
    resample_grid(grid, (6, 6)).sum().backward()
    assert grid.grad is not None
    assert (grid.grad > 0).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"^features must have shape \(B, D, h, w\), got"):
        resample_grid(torch.zeros(3, 4, 4), (2, 2))
    with pytest.raises(UserError, match="size must be at least 1 x 1, got 0 x 4"):
        resample_grid(torch.zeros(1, 3, 4, 4), (0, 4))
