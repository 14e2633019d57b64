import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from vavae.report.pca import pca_maps


def grids(seed: int, shape: tuple[int, ...] = (3, 5, 4, 16)) -> np.ndarray:
    """Features with well separated, skewed components."""
    rng = np.random.default_rng(seed)
    return rng.exponential(size=shape) * 0.6 ** np.arange(shape[-1])


def rotation(seed: int, size: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_maps_are_invariant_to_rotation_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    features = grids(seed)
    moved = (features @ rotation(seed + 1, 16)) * scale + shift
    difference = np.abs(pca_maps(features).astype(int) - pca_maps(moved))
    assert difference.max() <= 1


def test_mirrored_features_give_the_same_maps() -> None:
    assert np.abs(pca_maps(grids(0)).astype(int) - pca_maps(-grids(0))).max() <= 1


def test_colors_are_the_first_three_components() -> None:
    features = grids(3)
    scores = PCA(3, svd_solver="full").fit_transform(features.reshape(-1, 16))
    scores *= np.sign((scores**3).sum(axis=0))
    low, high = np.percentile(scores, [1, 99], axis=0)
    expected = np.rint(((scores - low) / (high - low)).clip(0, 1) * 255).reshape(3, 5, 4, 3)
    maps = pca_maps(features)
    assert maps.dtype == np.uint8
    assert np.abs(maps.astype(int) - expected).max() <= 1


def test_equal_features_have_equal_colors_in_all_images() -> None:
    features = grids(4)
    features[1, 2, 3] = features[0, 0, 0]
    maps = pca_maps(features)
    np.testing.assert_array_equal(maps[1, 2, 3], maps[0, 0, 0])


def test_one_outlier_does_not_gray_out_the_others() -> None:
    features = grids(5, (4, 8, 8, 8))
    features[0, 0, 0] = 1e3
    maps = pca_maps(features).reshape(-1, 3)
    assert maps[1:, 1:].std(axis=0).min() > 30


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_other_float_types(dtype: type) -> None:
    features = grids(6).astype(dtype)
    np.testing.assert_array_equal(pca_maps(features), pca_maps(features.astype(np.float64)))


@pytest.mark.parametrize("channels", [1, 2])
def test_missing_dimensions_are_gray(channels: int) -> None:
    maps = pca_maps(grids(7, (2, 4, 4, channels)))
    assert (maps[..., channels:] == 128).all()
    assert maps[..., 0].max() == 255
    assert maps[..., 0].min() == 0


def test_one_dimension_of_many_channels_is_one_component() -> None:
    features = np.random.default_rng(0).normal(size=(2, 4, 4, 1)) @ np.ones((1, 8))
    maps = pca_maps(features)
    assert maps[..., 0].std() > 30
    assert (maps[..., 1:] == 128).all()


@pytest.mark.parametrize("value", [0.0, 3.7, -1e30])
def test_constant_features_are_gray(value: float) -> None:
    assert (pca_maps(np.full((2, 3, 3, 5), value)) == 128).all()


def test_tokens_that_are_not_finite_are_gray() -> None:
    features = grids(8)
    features[0, 0, 0, 2] = np.nan
    features[0, 0, 1] = np.inf
    maps = pca_maps(features)
    assert (maps[0, 0, :2] == 128).all()
    tokens = features.reshape(1, 1, -1, 16)[:, :, 2:]
    np.testing.assert_array_equal(maps.reshape(-1, 3)[2:], pca_maps(tokens).reshape(-1, 3))
    assert (pca_maps(np.full((1, 2, 2, 3), np.nan)) == 128).all()


def test_huge_and_tiny_features() -> None:
    reference = pca_maps(grids(9))
    for factor in (1e-200, 1e150):
        assert np.abs(pca_maps(grids(9) * factor).astype(int) - reference).max() <= 1


def test_a_single_token_and_a_wrong_shape() -> None:
    assert (pca_maps(np.ones((1, 1, 1, 4))) == 128).all()
    with pytest.raises(ValueError, match="N, h, w, D"):
        pca_maps(np.ones((4, 4, 3)))
