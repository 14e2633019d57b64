"""Images and numbers of the page equal the ones of the models; errors."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vavae.data import center_crop, demo_pixels, to_tensor, to_uint8
from vavae.errors import UserError
from vavae.models import Generator, SamplingConfig
from vavae.serve.studio import Studio, spherical
from vavae.transformer import LightningDiT

FEW = SamplingConfig(steps=4, guidance_scale=2.0)


def picture(number: int) -> Image.Image:
    return Image.fromarray(demo_pixels("test")[number])


def test_samples_equal_the_generators(studio: Studio, generator: Generator) -> None:
    ticks: list[int] = []
    images = studio.sample([3, 7], 5, FEW, lambda: ticks.append(1))
    np.testing.assert_array_equal(images, generator.with_sampling(FEW)([3, 7], 5, output_type="np"))
    assert len(ticks) == 4  # three steps and one batch that is decoded


def test_reconstruction_and_its_numbers(studio: Studio) -> None:
    made = studio.reconstruct(picture(4), 32)
    np.testing.assert_array_equal(made.original, demo_pixels("test")[4])
    expected = studio.tokenizer.reconstruct(to_tensor(made.original[None]))
    np.testing.assert_array_equal(made.image, to_uint8(expected).numpy()[0])
    error = (expected[0].permute(1, 2, 0).numpy().astype(np.float64) - (made.original / 127.5 - 1)) ** 2
    assert made.psnr == pytest.approx(10 * math.log10(4 / error.mean()), abs=1e-4)
    assert 0 < made.ssim < 1
    difference = np.abs(made.image.astype(int) - made.original.astype(int))
    np.testing.assert_array_equal(made.difference, np.minimum(4 * difference, 255))
    channels, side = studio.tokenizer.latent_channels, 32 // studio.tokenizer.factor
    assert made.latent_shape == (channels, side, side) and made.latent.shape == (side, side, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_any_mode_and_size_are_cropped(studio: Studio, mode: str) -> None:
    made = studio.reconstruct(picture(0).resize((75, 50)).convert(mode), 40)
    assert made.image.shape == (40, 40, 3)


def test_image_smaller_than_the_window_of_ssim(studio: Studio) -> None:
    assert studio.reconstruct(picture(0), 8).ssim is None


def test_interpolation_between_images(studio: Studio) -> None:
    frames = studio.between_images(picture(0), picture(1), 32, 5)
    ends = [studio.reconstruct(picture(number), 32).image for number in (0, 1)]
    for frame, end in ((frames[0], ends[0]), (frames[-1], ends[1])):
        assert np.abs(frame.astype(int) - end.astype(int)).max() <= 1  # batches round differently
    assert not np.array_equal(frames[2], frames[0]) and not np.array_equal(frames[2], frames[4])


def test_interpolation_between_seeds(studio: Studio) -> None:
    frames = studio.between_seeds(3, 10, 11, 3, FEW)
    for frame, seed in ((frames[0], 10), (frames[-1], 11)):
        end = studio.sample([3], seed, FEW)[0]
        assert np.abs(frame.astype(int) - end.astype(int)).max() <= 1
    for seed in range(100):  # a fifth have a cosine with themselves that rounds to less than 1
        same = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(spherical(same, same, 2), torch.stack([same, same])), seed
    with pytest.raises(UserError, match="solver must be one of euler, heun"):
        studio.between_seeds(3, 10, 11, 3, replace(FEW, solver="euler_maruyama"))


def test_many_frames_are_decoded_in_chunks(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = studio.between_images(picture(0), picture(1), 32, 7)
    monkeypatch.setattr("vavae.serve.studio._DECODED_PIXELS", 3 * 32 * 32)
    ticks: list[int] = []
    parts = studio.between_images(picture(0), picture(1), 32, 7, lambda: ticks.append(1))
    assert len(ticks) == 3
    assert np.abs(whole.astype(int) - parts.astype(int)).max() <= 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 9), scale=st.floats(0.1, 10))
def test_great_circle_keeps_the_norm(seed: int, count: int, scale: float) -> None:
    a, b = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    b = b * a.norm() / b.norm()
    points = spherical(scale * a, scale * b, count)
    assert points.shape == (count, 3, 4, 4)
    torch.testing.assert_close(points[0], scale * a)
    torch.testing.assert_close(points[-1], scale * b)
    torch.testing.assert_close(points.flatten(1).norm(dim=1), (scale * a.norm()).expand(count))
    # Neighbors are at equal angles.
    steps = (points[1:] * points[:-1]).flatten(1).sum(1)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_tokenizer_alone_only_reconstructs(studio: Studio) -> None:
    alone = Studio(studio.tokenizer)
    assert alone.side == 256
    assert alone.reconstruct(picture(0), 32).image.shape == (32, 32, 3)
    for act in (lambda: alone.sample([0]), lambda: alone.between_seeds(0, 0, 1)):
        with pytest.raises(UserError, match="a tokenizer alone cannot draw samples"):
            act()


def test_rectangular_generator(studio: Studio) -> None:
    tokenizer = studio.tokenizer
    channels, factor = tokenizer.latent_channels, tokenizer.factor
    network = LightningDiT(latent_size=(2, 4), latent_channels=channels, width=32, depth=1, heads=2, num_classes=3)
    wide = Studio(tokenizer, Generator(network, tokenizer, sampling=SamplingConfig(steps=2)))
    assert wide.side == 4 * factor
    assert wide.sample([0, 1]).shape == (2, 2 * factor, 4 * factor, 3)
    assert wide.between_images(picture(0), picture(1), wide.side, 3).shape == (3, 2 * factor, 4 * factor, 3)
    photo = picture(0).resize((90, 60))
    for side, short in ((4 * factor, 2 * factor), (6 * factor, 3 * factor), (factor, factor)):
        made = wide.reconstruct(photo, side)
        assert made.original.shape == made.image.shape == (short, side, 3)
        assert np.array_equal(made.original, np.asarray(center_crop(photo, (short, side))))
        assert (made.ssim is None) == (short < 11)


@pytest.mark.parametrize("side", [0, 33, 1028, -4])
def test_invalid_sides_are_refused(studio: Studio, side: int) -> None:
    with pytest.raises(UserError, match=f"side must be a multiple of 4 from 4 to 1024, got {side}"):
        studio.reconstruct(picture(0), side)
    with pytest.raises(UserError, match="side"):
        studio.between_images(picture(0), picture(1), side)


def test_invalid_counts_and_labels_are_refused(studio: Studio) -> None:
    for labels in ([], [0] * 65):
        with pytest.raises(UserError, match=f"images must be from 1 to 64, got {len(labels)}"):
            studio.sample(labels)
    for count in (1, 65):
        with pytest.raises(UserError, match=f"images must be from 2 to 64, got {count}"):
            studio.between_seeds(0, 0, 1, count)
    with pytest.raises(UserError, match="labels must be from 0 to 10, got 11"):
        studio.sample([11], sampling=replace(FEW, steps=2))
