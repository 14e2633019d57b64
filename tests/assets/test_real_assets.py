"""The real assets, in the shared cache: hashes, and numbers that others report."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from vavae import assets
from vavae.assets import ASSETS


@pytest.mark.parametrize("name", [asset.name for asset in ASSETS])
def test_asset_is_fetched_and_verified(name: str) -> None:
    path = assets.path(name)
    assert path.exists()
    assets.verify(name)
    assert assets.status(name).cached


@pytest.mark.parametrize(
    ("name", "channels", "head_sums"),
    [
        # Sums of the heads of the package lpips 0.1.4, weights/v0.1.
        ("lpips-vgg16", (64, 128, 256, 512, 512), (6.926, 8.858, 17.515, 51.521, 47.035)),
        ("lpips-alexnet", (64, 192, 384, 256, 256), (2.350, 16.143, 39.268, 27.197, 20.317)),
    ],
)
def test_lpips_heads_equal_version_0_1(name: str, channels: tuple, head_sums: tuple) -> None:
    weights = assets.load(name)
    for k, (width, total) in enumerate(zip(channels, head_sums, strict=True)):
        head = weights[f"heads.{k}.weight"]
        assert head.shape == (1, width, 1, 1)
        assert (head >= 0).all()
        assert head.double().sum().item() == pytest.approx(total, abs=1e-3)


def test_lpips_convolutions_equal_imagenet_vgg16() -> None:
    weights = assets.load("lpips-vgg16")
    widths = [weights[f"features.{i}.weight"].shape[0] for i in range(13)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert len(weights) == 13 * 2 + 5
    # The values of torchvision's model, in the order R, G, B.
    torch.testing.assert_close(
        weights["features.0.weight"][0, :, 0, 0], torch.tensor([-0.5537, 0.1755, 0.3130]), atol=1e-4, rtol=0
    )


def test_inception_has_94_convolutions() -> None:
    weights = assets.load("fid-inception")
    assert len(weights) == 94 * 4
    assert sum(tensor.numel() for tensor in weights.values()) == 21_802_784
    # Read from the archive by torch.jit.load.
    expected = torch.tensor([0.01260555, -0.00162022, 0.09091024])
    torch.testing.assert_close(weights["layers.conv.weight"][0, 0, 0], expected, atol=1e-7, rtol=0)


def test_cifar10_is_complete() -> None:
    folder = assets.path("cifar10")
    assert Counter(json.loads((folder / "train_lables.json").read_text())) == dict.fromkeys(range(10), 5000)
    assert Counter(json.loads((folder / "test_lables.json").read_text())) == dict.fromkeys(range(10), 1000)
    with Image.open(folder / "test_batch.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)
    assert len(pixels) == 10_000
    # The first test image is the cat in front of a brown wall.
    assert pixels[0, 0, 0].tolist() == [158, 112, 49]
