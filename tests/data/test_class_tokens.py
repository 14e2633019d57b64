"""Class tokens next to the latents, of images and of mirrored images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vavae import rng
from vavae.data import LatentDataset, LatentSettings, LatentWriter, Shard, write_published_layout

SETTINGS = LatentSettings(image_size=32, dtype="bfloat16", class_names=("ant", "bee", "cat"), class_token="teacher")


def tokens(indices: Tensor, stream: str) -> Tensor:
    return rng.normal(0, stream, indices, (5,))


def batches(shard: Shard, flips: bool = True):
    for indices in shard.batches(7):
        latents = rng.normal(0, "latents", indices, (4, 2, 2))
        mirrored = tokens(indices, "mirrored") if flips else None
        yield latents, latents.flip(3) if flips else None, indices % 3, tokens(indices, "plain"), mirrored


def write(folder: Path, settings: LatentSettings = SETTINGS) -> LatentDataset:
    writer = LatentWriter(folder, 30, settings, 12)
    for shard in writer.missing():
        writer.write(shard, batches(shard, settings.flips))
    writer.finish()
    return LatentDataset(folder)


def test_round_trip(tmp_path: Path) -> None:
    dataset = write(tmp_path)
    dataset.verify()
    indices, mask = torch.tensor([29, 0, 11, 12]), torch.tensor([True, False, False, True])
    expected = torch.where(mask[:, None], tokens(indices, "mirrored"), tokens(indices, "plain"))
    assert dataset.class_channels == 5 and dataset.settings == SETTINGS
    resident = dataset.to_device("cpu")
    for reader in (dataset, resident):
        assert torch.equal(reader.class_tokens(indices, mask), expected)
        assert torch.equal(reader.class_tokens(indices), tokens(indices, "plain"))
        assert torch.equal(reader.get(indices, mask)[1], indices % 3)
    assert dataset.nbytes == 30 * 2 * (4 * 2 * 2 * 2 + 5 * 4)


def test_tokens_without_mirrored_images(tmp_path: Path) -> None:
    dataset = write(tmp_path, replace(SETTINGS, flips=False))
    assert torch.equal(dataset.class_tokens(torch.arange(30)), tokens(torch.arange(30), "plain"))


def test_batches_must_have_what_the_settings_say(tmp_path: Path) -> None:
    writer = LatentWriter(tmp_path, 7, SETTINGS)
    with pytest.raises(ValueError, match="class_token_flip by their settings"):
        writer.write(writer.shards[0], batches(writer.shards[0], flips=False))
    plain = LatentWriter(tmp_path, 7, replace(SETTINGS, class_token=None))
    with pytest.raises(ValueError, match=r"class_token_flip$"):
        plain.write(plain.shards[0], batches(plain.shards[0]))


def test_the_published_layout_has_none(tmp_path: Path) -> None:
    write_published_layout(write(tmp_path / "ours"), tmp_path / "published")
    assert LatentDataset(tmp_path / "published").class_channels is None
