"""Numbers about images and about latents."""

from vavae.metrics.alignment import cknna, distance_matrix_similarity, mapped_cosine
from vavae.metrics.distribution import PrecisionRecall, kernel_distance, precision_recall
from vavae.metrics.features import FeatureNetwork, extract_features, feature_moments, load_feature_network
from vavae.metrics.frechet import RunningMoments, frechet_distance
from vavae.metrics.images import psnr, published_psnr, ssim
from vavae.metrics.inception import FIDInception
from vavae.metrics.probe import knn_accuracy, linear_probe
from vavae.metrics.records import MetricRecord, Protocol
from vavae.metrics.uniformity import Uniformity, latent_uniformity, tsne_points

__all__ = [
    "FIDInception",
    "FeatureNetwork",
    "MetricRecord",
    "PrecisionRecall",
    "Protocol",
    "RunningMoments",
    "Uniformity",
    "cknna",
    "distance_matrix_similarity",
    "extract_features",
    "feature_moments",
    "frechet_distance",
    "kernel_distance",
    "knn_accuracy",
    "latent_uniformity",
    "linear_probe",
    "load_feature_network",
    "mapped_cosine",
    "precision_recall",
    "psnr",
    "published_psnr",
    "ssim",
    "tsne_points",
]
