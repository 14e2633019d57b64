"""FID Inception against the original TorchScript archive; see make_golden.py."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from vavae.data import DemoImages, load_pixels
from vavae.errors import UserError
from vavae.metrics import FIDInception
from vavae.metrics.inception_resize import resize_as_tensorflow

GOLDEN = load_file(Path(__file__).with_name("golden.safetensors"))
TEST = DemoImages("test")
PIXELS = {"small": load_pixels(TEST, range(2), 32), "large": load_pixels(TEST, range(2, 4), 320)}


@pytest.fixture(scope="module")
def rule_network(rule_weights) -> FIDInception:
    return FIDInception.from_weights(rule_weights)


@pytest.mark.parametrize("size", ["small", "large"])
def test_rule_weights_give_archive_features(rule_network, size):
    """The archive computed them with the same weights, which a rule makes."""
    features = rule_network(PIXELS[size])
    assert features.shape == (2, 2048) and features.dtype == torch.float32
    torch.testing.assert_close(features, GOLDEN[f"rule.{size}"], rtol=0, atol=2e-5)
    assert (GOLDEN["rule.small"] - GOLDEN["rule.large"]).abs().mean() > 0.005  # the features depend on the input


def test_autocast_does_not_matter(rule_network):
    usual = torch.backends.cudnn.conv.fp32_precision
    with torch.autocast("cpu", torch.bfloat16):
        features = rule_network(PIXELS["small"][:1])
    assert torch.equal(features, rule_network(PIXELS["small"][:1]))
    assert torch.backends.cudnn.conv.fp32_precision == usual


@pytest.mark.slow
def test_real_weights_give_archive_features(real_network):
    for size, pixels in PIXELS.items():
        torch.testing.assert_close(real_network(pixels), GOLDEN[f"inception.{size}"], rtol=0, atol=1e-4)


def test_weights_are_loaded_strictly(rule_weights):
    assert len(rule_weights) == 376
    lacking = {name: tensor for name, tensor in rule_weights.items() if name != "layers.mixed_3.tower.conv_2.beta"}
    with pytest.raises(UserError, match=r"mixed_3\.tower\.conv_2\.beta is missing"):
        FIDInception.from_weights(lacking)
    with pytest.raises(UserError, match="other is unknown"):
        FIDInception.from_weights(rule_weights | {"other": torch.zeros(1)})
    with pytest.raises(UserError, match=r"layers.conv\.weight|conv\.weight has shape"):
        FIDInception.from_weights(rule_weights | {"layers.conv.weight": torch.zeros(32, 3, 1, 1)})


@pytest.mark.parametrize("side", [32, 64, 299, 320, 512])
def test_resize_positions_of_the_original_graph(side):
    """Pixel i of 299 reads position i * side / 299, borders repeated, as through this sampling grid."""
    images = torch.rand(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(side)) * 255
    theta = torch.eye(2, 3, dtype=torch.float64)[None]
    theta[:, :, 2] += 1 / side - 1 / 299
    grid = F.affine_grid(theta, [1, 3, 299, 299], align_corners=False)
    expected = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    torch.testing.assert_close(resize_as_tensorflow(images, 299), expected, rtol=0, atol=1e-8)


def test_images_need_not_be_square(rule_network):
    pixels = load_pixels(TEST, [5], 32)
    ramp = torch.arange(40.0).view(1, 1, 1, 40).expand(1, 3, 20, 40)
    resized = resize_as_tensorflow(ramp, 299)
    assert resized.shape == (1, 3, 299, 299)
    torch.testing.assert_close(resized[0, 0, 7], (torch.arange(299.0) * 40 / 299).clamp(max=39))
    assert rule_network(pixels[:, :20]).shape == (1, 2048)
    with pytest.raises(ValueError, match="uint8"):
        rule_network(torch.zeros(1, 3, 32, 32))
