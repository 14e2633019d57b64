"""Metrics of images and of latents: pure functions of tensors, and records with the protocol of each number."""

from vavae.metrics.alignment import cknna, distance_matrix_similarity, mapped_cosine
from vavae.metrics.bootstrap import bootstrap_interval, bootstrap_mean
from vavae.metrics.distribution import kernel_distance, precision_recall
from vavae.metrics.features import FeatureNetwork, feature_moments, load_feature_network, moments_of
from vavae.metrics.frechet import RunningMoments, frechet_distance
from vavae.metrics.images import Convention, fidelity, psnr, published_psnr, ssim
from vavae.metrics.inception import FIDInception
from vavae.metrics.inception_score import inception_score
from vavae.metrics.latent_shape import interpolate_neighbors, latent_spectrum, neighbor_uniformity, sphere_uniformity
from vavae.metrics.probe import knn_accuracy, linear_probe
from vavae.metrics.records import MeasurementProtocol, MetricRecord
from vavae.metrics.uniformity import Uniformity, latent_uniformity, mean_uniformity, one_position_each, tsne_points

__all__ = [
    "Convention",
    "FIDInception",
    "FeatureNetwork",
    "MeasurementProtocol",
    "MetricRecord",
    "RunningMoments",
    "Uniformity",
    "bootstrap_interval",
    "bootstrap_mean",
    "cknna",
    "distance_matrix_similarity",
    "feature_moments",
    "fidelity",
    "frechet_distance",
    "inception_score",
    "interpolate_neighbors",
    "kernel_distance",
    "knn_accuracy",
    "latent_spectrum",
    "latent_uniformity",
    "linear_probe",
    "load_feature_network",
    "mapped_cosine",
    "mean_uniformity",
    "moments_of",
    "neighbor_uniformity",
    "one_position_each",
    "precision_recall",
    "psnr",
    "published_psnr",
    "sphere_uniformity",
    "ssim",
    "tsne_points",
]
