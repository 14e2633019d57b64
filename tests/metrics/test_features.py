"""Feature networks by name, with weights made by a rule."""

import pytest
import torch

from vavae import assets
from vavae.data import DemoImages, load_pixels, to_tensor
from vavae.errors import UserError
from vavae.metrics import (
    FeatureNetwork,
    FIDInception,
    RunningMoments,
    feature_moments,
    load_feature_network,
    moments_of,
)
from vavae.teachers import TeacherFeatures

PIXELS = load_pixels(DemoImages("test"), range(10), 32)


@pytest.fixture(scope="module")
def inception(rule_weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assets, "load", {"fid-inception": rule_weights}.__getitem__)
        return load_feature_network("inception")


class ColorTeacher:
    """A stand-in teacher. Its pooled feature is the mean color, its grid the mean colors of four quarters."""

    def __init__(self, pools: bool) -> None:
        self.pools = pools
        self.backbone = torch.nn.Identity()

    def fingerprint(self) -> str:
        return "colors"

    def to(self, device: torch.device) -> "ColorTeacher":
        return self

    def __call__(self, images: torch.Tensor) -> TeacherFeatures:
        grid = torch.nn.functional.adaptive_avg_pool2d(images, 2)
        return TeacherFeatures(grid, images.mean(dim=(2, 3)) * 10 if self.pools else None)


@pytest.mark.slow
def test_features_keep_order_and_ignore_batching(inception):
    whole = inception(PIXELS[:2])
    split = torch.cat([inception(part) for part in PIXELS[:2].split(1)])
    assert whole.shape == (2, 2048) and whole.dtype == torch.float32
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-5)


def test_moments_of_features():
    network = FeatureNetwork("a", "fixed", torch.device("cpu"), lambda pixels: pixels.float().mean((1, 2)))
    expected = RunningMoments(3)
    expected.update(network(PIXELS))
    found = feature_moments(network, PIXELS.split(4))
    assert found.count == 10
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=0, atol=1e-9)


def test_fingerprint_depends_on_weights(inception, rule_weights, monkeypatch):
    assert len(inception.fingerprint) == 64
    weights = {name: weight.clone() for name, weight in rule_weights.items()}
    monkeypatch.setattr(assets, "load", lambda name: weights)
    assert load_feature_network("inception").fingerprint == inception.fingerprint
    weights["layers.conv.weight"][0, 0, 0, 0] += 1e-3
    assert load_feature_network("inception").fingerprint != inception.fingerprint


@pytest.mark.parametrize("pools", [True, False])
def test_teachers_return_pooled_features(monkeypatch, pools):
    asked = []

    def load(name: str, *, input_size: int | None = None) -> ColorTeacher:
        asked.append((name, input_size))
        return ColorTeacher(pools)

    monkeypatch.setattr("vavae.teachers.load_teacher", load)
    network = load_feature_network("teacher:colors")
    expected = to_tensor(PIXELS).mean(dim=(2, 3)) * (10 if pools else 1)
    torch.testing.assert_close(torch.cat([network(part) for part in PIXELS.split(3)]), expected)
    assert network.fingerprint == "colors" and network.name == "teacher:colors"
    assert load_feature_network("teacher:colors@112").name == "teacher:colors@112"
    load_feature_network("teacher:owner/name@main")
    assert asked == [("colors", None), ("colors", 112), ("owner/name@main", None)]


def test_unknown_network_and_empty_set_are_refused():
    with pytest.raises(UserError, match="unknown feature network"):
        load_feature_network("vgg")
    with pytest.raises(UserError, match="at least one image is needed"):
        moments_of([])


def test_inception_is_frozen(rule_weights):
    network = FIDInception.from_weights(rule_weights)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
