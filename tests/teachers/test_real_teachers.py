"""Real weights: each teacher against the output of another implementation, and on real images."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from make_teacher_golden import wave_images
from safetensors.torch import load_file
from torch import Tensor

from vavae.data.pixels import to_tensor
from vavae.data.sources import DemoImages, Split
from vavae.teachers import Teacher, load_teacher

_GOLDEN = load_file(Path(__file__).with_name("golden.safetensors"))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dinov2() -> Teacher:
    return load_teacher("dinov2-small-focus")


def test_dinov2_equals_the_onnx_runtime(dinov2: Teacher) -> None:
    features = dinov2(wave_images(224))
    assert features.pooled is not None
    torch.testing.assert_close(features.grid[0, :, ::5, ::5], _GOLDEN["dinov2.grid"], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(features.pooled[0], _GOLDEN["dinov2.pooled"], atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_mobile_sam_equals_its_own_network() -> None:
    teacher = load_teacher("mobile-sam")
    assert teacher.input_size == (1024, 1024)
    grid = teacher(wave_images(1024)).grid
    assert grid.shape == (1, 256, 64, 64)
    torch.testing.assert_close(grid[0, :, ::16, ::16], _GOLDEN["mobile_sam.grid"], atol=2e-5, rtol=1e-4)


def test_mobile_sam_takes_other_sizes() -> None:
    assert load_teacher("mobile-sam", input_size=(96, 160))(wave_images(64)).grid.shape == (1, 256, 6, 10)


def test_resnet50_equals_the_keras_graph() -> None:
    features = load_teacher("resnet50")(wave_images(224))
    assert features.pooled is not None
    torch.testing.assert_close(features.grid[0, ::8, ::3, ::3], _GOLDEN["resnet50.grid"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.pooled[0], _GOLDEN["resnet50.pooled"], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_small_input_matches_resampled_large_input(dinov2: Teacher) -> None:
    images = _real_images("test", 2)[0]
    small = load_teacher("dinov2-small-focus", input_size=112)(images).grid
    assert small.shape == (2, 384, 8, 8)
    agreement = F.cosine_similarity(small, dinov2.features_at(images, (8, 8)), dim=1)
    assert agreement.mean() > 0.7


def _real_images(split: Split, count: int) -> tuple[Tensor, Tensor]:
    """Return the first `count` embedded images, (count, 3, 32, 32), and their labels."""
    source = DemoImages(split)
    return to_tensor(source.pixels[:count]), torch.tensor(source.labels[:count])


def _four_classes(split: Split, count: int) -> tuple[Tensor, Tensor]:
    """Return the airplanes, cats, dogs and ships among the first `count` images, and labels from 0 to 3."""
    images, labels = _real_images(split, count)
    classes = torch.tensor([0, 3, 5, 8])
    chosen = torch.isin(labels, classes)
    return images[chosen], torch.searchsorted(classes, labels[chosen])


def _nearest_class_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Return the accuracy of the nearest mean direction of the training classes."""
    center = train.mean(0)
    train, test = F.normalize(train - center, dim=1), F.normalize(test - center, dim=1)
    means = torch.stack([train[train_labels == label].mean(0) for label in range(4)])
    return (F.normalize(means, dim=1) @ test.T).argmax(0).eq(test_labels).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "least"), [("dinov2-small-focus", 84, 0.55), ("resnet50", 64, 0.65)])
def test_features_separate_real_classes(name: str, size: int, least: float) -> None:
    train, train_labels = _four_classes("train", 200)
    test, test_labels = _four_classes("test", 100)
    teacher = load_teacher(name, input_size=size)
    features = [teacher(images).grid.mean((2, 3)) for images in (train, test)]
    accuracy = _nearest_class_accuracy(features[0], train_labels, features[1], test_labels)
    pixels = _nearest_class_accuracy(train.flatten(1), train_labels, test.flatten(1), test_labels)
    assert accuracy > least
    assert accuracy > pixels + 0.15
