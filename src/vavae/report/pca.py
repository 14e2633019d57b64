"""Show feature grids as colors: three principal components become red, green and blue."""

import numpy as np
from numpy.typing import NDArray

_COMPONENTS = 3
_GRAY = 128
# Components with less than this share of the largest variance are rounding errors.
_NEGLIGIBLE = 1e-10
_PERCENTILES = (1.0, 99.0)


def pca_maps(features: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Map feature grids to colors, in which similar colors mean similar features.

    One PCA is computed over all tokens of all images. The first three components become red, green and blue, each
    scaled so that its 1st and 99th percentiles become 0 and 255. The sign of a component makes the sum of its cubed
    scores positive, so that the maps do not change if the features are rotated, mirrored, shifted or scaled. Missing
    components (fewer than three dimensions, constant features) and tokens that are not finite are gray.

    Args:
        features: (N, h, w, D) floats.

    Returns:
        (N, h, w, 3) uint8.
    """
    if features.ndim != 4:
        raise ValueError(f"features must be (N, h, w, D), got {features.shape}")
    maps = np.full((*features.shape[:3], _COMPONENTS), _GRAY, dtype=np.uint8)
    tokens = features.reshape(-1, features.shape[-1]).astype(np.float64)
    finite = np.isfinite(tokens).all(axis=1)
    if not finite.any():
        return maps
    scores = _scores(tokens[finite])
    low, high = np.percentile(scores, _PERCENTILES, axis=0)
    span = high - low
    scaled = np.divide(scores - low, span, out=np.zeros_like(scores), where=span > 0)
    colors = np.rint(scaled.clip(0, 1) * 255)
    colors[:, span <= 0] = _GRAY
    flat = maps.reshape(-1, _COMPONENTS)
    flat[np.flatnonzero(finite)[:, None], np.arange(colors.shape[1])] = colors.astype(np.uint8)
    return maps


def _scores(tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return coordinates of (T, D) tokens along their first components, (T, at most 3), with fixed signs."""
    # Scale first: squares of tiny or huge features would leave the range of float64.
    centered = tokens / (np.abs(tokens).max() or 1.0)
    centered -= centered.mean(axis=0)
    variances, axes = np.linalg.eigh(centered.T @ centered)
    kept = np.argsort(variances)[::-1][:_COMPONENTS]
    kept = kept[variances[kept] > max(_NEGLIGIBLE * variances[-1], 1e-24 * len(tokens))]
    scores = centered @ axes[:, kept]
    return scores * np.where((scores**3).sum(axis=0) < 0, -1.0, 1.0)
