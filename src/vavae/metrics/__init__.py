"""Numbers about images and about latents."""

import importlib
from typing import Any

_HOMES = {
    "FeatureNetwork": "features",
    "FIDInception": "inception",
    "MetricRecord": "records",
    "Protocol": "records",
    "RunningMoments": "frechet",
    "Uniformity": "uniformity",
    "cknna": "alignment",
    "distance_matrix_similarity": "alignment",
    "extract_features": "features",
    "feature_moments": "features",
    "frechet_distance": "frechet",
    "PrecisionRecall": "distribution",
    "kernel_distance": "distribution",
    "knn_accuracy": "probe",
    "latent_uniformity": "uniformity",
    "linear_probe": "probe",
    "load_feature_network": "features",
    "mapped_cosine": "alignment",
    "precision_recall": "distribution",
    "psnr": "images",
    "published_psnr": "images",
    "ssim": "images",
    "tsne_points": "uniformity",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
