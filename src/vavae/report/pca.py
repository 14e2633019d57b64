"""Feature grids as colours: three principal components become red, green and blue."""

import numpy as np
from numpy.typing import NDArray

_COMPONENTS = 3
_GREY = 128
# Variance below this share of the largest component's is rounding, not structure.
_NEGLIGIBLE = 1e-10
_PERCENTILES = (1.0, 99.0)


def pca_maps(features: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colour maps of feature grids, in which similar colours mean similar features.

    One PCA over all tokens of all images; the first three components are red, green and blue, each scaled so
    that its 1st and 99th percentiles become 0 and 255. A component's sign is the one that makes the sum of its
    cubed scores positive, so the maps do not change if the features are rotated, mirrored, shifted or scaled.
    Components that do not exist (fewer than three dimensions, constant features) are mid-grey, and so are
    tokens that are not finite.

    Args:
        features: (N, h, w, D) floats.

    Returns:
        (N, h, w, 3) uint8.
    """
    if features.ndim != 4:
        raise ValueError(f"features must be (N, h, w, D), not {features.shape}")
    maps = np.full((*features.shape[:3], _COMPONENTS), _GREY, dtype=np.uint8)
    tokens = features.reshape(-1, features.shape[-1]).astype(np.float64)
    finite = np.isfinite(tokens).all(axis=1)
    if not finite.any():
        return maps
    scores = _scores(tokens[finite])
    low, high = np.percentile(scores, _PERCENTILES, axis=0)
    span = high - low
    scaled = np.divide(scores - low, span, out=np.zeros_like(scores), where=span > 0)
    colours = np.rint(scaled.clip(0, 1) * 255)
    colours[:, span <= 0] = _GREY
    flat = maps.reshape(-1, _COMPONENTS)
    flat[np.flatnonzero(finite)[:, None], np.arange(colours.shape[1])] = colours.astype(np.uint8)
    return maps


def _scores(tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates of (T, D) tokens along their first components, (T, at most 3), with fixed signs."""
    # Scale first, so that neither tiny nor huge features leave the range of float64 when squared.
    centred = tokens / (np.abs(tokens).max() or 1.0)
    centred -= centred.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    kept = np.argsort(variances)[::-1][:_COMPONENTS]
    kept = kept[variances[kept] > max(_NEGLIGIBLE * variances[-1], 1e-24 * len(tokens))]
    scores = centred @ axes[:, kept]
    return scores * np.where((scores**3).sum(axis=0) < 0, -1.0, 1.0)
