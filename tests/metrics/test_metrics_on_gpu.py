"""Metrics have the same values on a GPU and on the CPU."""

import pytest
import torch

from vavae.data import DemoImages, load_images, load_pixels
from vavae.metrics import (
    FIDInception,
    RunningMoments,
    cknna,
    distance_matrix_similarity,
    kernel_distance,
    knn_accuracy,
    linear_probe,
    mapped_cosine,
    precision_recall,
    psnr,
    ssim,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEST = DemoImages("test")


def test_inception(rule_weights):
    network = FIDInception.from_weights(rule_weights)
    pixels = load_pixels(TEST, range(4), 32)
    expected = network(pixels)
    torch.testing.assert_close(network.cuda()(pixels.cuda()).cpu(), expected, rtol=0, atol=1e-4)


def test_moments_and_distances():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(200, 16, generator=generator), torch.randn(200, 16, generator=generator) * 1.2
    found, expected = [], []
    for device, values in (("cpu", expected), ("cuda", found)):
        first, second = RunningMoments(16, device), RunningMoments(16, device)
        first.update(a.to(device))
        second.update(b.to(device))
        values += [first.distance(second), kernel_distance(a.to(device), b.to(device))]
        values += precision_recall(a.to(device), b.to(device)).__dict__.values()
        values += [cknna(a.to(device), b.to(device))]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_images_and_grids():
    images = load_images(TEST, range(8), 32)
    other = images * 0.8
    torch.testing.assert_close(ssim(other.cuda(), images.cuda()).cpu(), ssim(other, images))
    torch.testing.assert_close(psnr(other.cuda(), images.cuda()).cpu(), psnr(other, images))
    grids = distance_matrix_similarity(images[:, :, ::8, ::8].cuda(), other[:, :, 1::8, ::8].cuda())
    expected = distance_matrix_similarity(images[:, :, ::8, ::8], other[:, :, 1::8, ::8])
    torch.testing.assert_close(grids.cpu(), expected)
    assert mapped_cosine(images.cuda(), other.cuda()) == pytest.approx(mapped_cosine(images, other), rel=1e-6)


def test_probes():
    pixels, labels = load_images(TEST, range(300), 32)[:, :, ::4, ::4], torch.tensor(TEST.labels[:300])
    sets = pixels[:200], labels[:200], pixels[200:], labels[200:]
    on_gpu = [part.cuda() for part in sets]
    assert linear_probe(*on_gpu) == linear_probe(*sets)
    assert knn_accuracy(*on_gpu) == knn_accuracy(*sets)
