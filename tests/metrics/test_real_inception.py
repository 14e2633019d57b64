"""Real Inception features of embedded images give the stored distance; see make_real_inception.py."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vavae.data import DemoImages, load_pixels
from vavae.metrics import RunningMoments

FILE = Path(__file__).with_name("real_inception.safetensors")
SHA256 = "b56a4b57ef60520488e5a89cc6977e1d7804c35d7c8420dbb7d8b60215805a38"
ARCHIVE = load_file(Path(__file__).with_name("golden.safetensors"))["inception.small"]


def distance(train: torch.Tensor, test: torch.Tensor) -> float:
    moments = []
    for features in (train, test):
        moments.append(RunningMoments(features.shape[1]))
        for part in features.split(5):
            moments[-1].update(part)
    return moments[0].distance(moments[1])


@pytest.mark.slow
def test_distance_of_stored_features():
    """The stored distance of twelve images each, in 2048 dimensions, comes from singular values without covariances."""
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256
    stored = load_file(FILE)
    assert distance(stored["train"], stored["test"]) == pytest.approx(float(stored["distance"]), rel=1e-6)
    # The original archive computed the features of the first two test images.
    torch.testing.assert_close(stored["test"][:2], ARCHIVE, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_network_gives_stored_features(real_network):
    stored = load_file(FILE)
    fresh = {
        split: torch.cat([real_network(load_pixels(DemoImages(split), [i], 32)) for i in range(2)])
        for split in ("train", "test")
    }
    for split, features in fresh.items():
        torch.testing.assert_close(features, stored[split][:2], rtol=0, atol=1e-4)
    # Of every fourth feature, since 2048 dimensions take seconds.
    expected = distance(stored["train"][:2, ::4], stored["test"][:2, ::4])
    assert distance(fresh["train"][:, ::4], fresh["test"][:, ::4]) == pytest.approx(expected, rel=1e-5)
