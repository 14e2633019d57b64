"""torch's DataLoader takes image sources and latents, in worker processes too."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import write_latents
from torch.utils.data import DataLoader, Dataset

from vavae.data import CroppedImages, DemoImages, LatentDataset, center_crop, load_images, open_images, to_tensor


def loaded(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all items, shuffled by a seed and read by two processes, in the order of the data set."""
    torch.manual_seed(3)
    order = torch.randperm(len(dataset))  # type: ignore[arg-type]
    batches = list(DataLoader(dataset, batch_size=7, sampler=order.tolist(), num_workers=2))
    back = order.argsort()
    return torch.cat([values for values, _ in batches])[back], torch.cat([labels for _, labels in batches])[back]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(10):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20 + i, 30), 80).convert("RGB").save(path)
    return tmp_path / "images"


def test_images_of_a_folder(folder: Path) -> None:
    source = open_images(str(folder))
    images = CroppedImages(source, 16)
    found, labels = loaded(images)
    assert found.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal(found, load_images(source, range(10), 16))
    assert labels.tolist() == source.labels.tolist() == [0] * 5 + [1] * 5
    assert torch.equal(source[4][0], to_tensor(source.image(4)))  # of its native size
    assert images.class_names == source.class_names and images.fingerprint() != source.fingerprint()
    assert len(list(DataLoader(images, batch_size=4, shuffle=True))) == 3
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy[9][0], to_tensor(center_crop(source.image(9), 16)))


def test_images_in_memory() -> None:
    images, label = next(iter(DataLoader(DemoImages("test"), batch_size=5)))
    assert images.shape == (5, 3, 32, 32) and label.tolist() == DemoImages("test").labels[:5].tolist()
    assert float(images.min()) >= -1 and float(images.max()) <= 1


def test_latents(tmp_path: Path) -> None:
    dataset = LatentDataset(write_latents(tmp_path) / "latents")
    found, labels = loaded(dataset)
    expected, classes = dataset.get(torch.arange(len(dataset)))
    assert torch.equal(found, expected) and torch.equal(labels, classes)
    assert len(list(dataset)) == len(dataset)
    stored = pickle.dumps(dataset)
    assert len(stored) < 1000  # its folder, not its latents
    assert torch.equal(pickle.loads(stored)[np.int64(3)][0], expected[3])
