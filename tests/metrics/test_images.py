"""PSNR and SSIM: closed forms, another implementation, published conventions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vavae.data import DemoImages, load_images, load_pixels, to_uint8
from vavae.metrics import fidelity, psnr, published_psnr, ssim

TEST = DemoImages("test")
GOLDEN = load_file(Path(__file__).with_name("golden.safetensors"))


@settings(max_examples=50, deadline=None)
@given(offset=st.floats(1e-3, 1.0), data_range=st.sampled_from([1.0, 2.0, 255.0]))
def test_psnr_of_a_constant_offset(offset, data_range):
    images = load_images(TEST, [0], 32).double()
    expected = 20 * math.log10(data_range / offset)
    assert float(psnr(images + offset, images, data_range)) == pytest.approx(expected, rel=1e-9)


def test_psnr_is_per_image():
    images = load_images(TEST, range(4), 32)
    noisy = images.clone()
    noisy[1] += 0.1
    noisy[3] -= 0.2
    values = psnr(noisy, images)
    assert values.shape == (4,) and values.dtype == torch.float64
    assert torch.isinf(values[[0, 2]]).all()
    torch.testing.assert_close(values[[1, 3]], torch.tensor([26.0206, 20.0]).double(), atol=1e-4, rtol=0)


def test_published_psnr_is_of_stored_pixels():
    images = load_images(TEST, range(8), 32)
    stored, reference = to_uint8(images * 0.9 + 0.01), load_pixels(TEST, range(8), 32)
    errors = stored.numpy().astype(np.float64) - reference.numpy().astype(np.float64)
    expected = [20 * np.log10(255 / np.sqrt(np.mean(error**2))) for error in errors]
    np.testing.assert_allclose(published_psnr(stored, reference).numpy(), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="pixels must be uint8"):
        published_psnr(images, images)


def plain_ssim(x: np.ndarray, y: np.ndarray, data_range: float, window: int = 11, sigma: float = 1.5) -> float:
    """Return SSIM of two images (C, H, W), window by window in float64, with two-dimensional weights."""
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    values = []
    for channel in range(x.shape[0]):
        for top in range(x.shape[1] - window + 1):
            for left in range(x.shape[2] - window + 1):
                a = x[channel, top : top + window, left : left + window]
                b = y[channel, top : top + window, left : left + window]
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                variance_a, variance_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
                covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
                c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
                values.append(
                    (2 * mean_a * mean_b + c1)
                    * (2 * covariance + c2)
                    / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
                )
    return float(np.mean(values))


def test_ssim_agrees_with_plain_loops():
    images = load_images(TEST, range(3), 32)
    other = torch.stack((images[0] * 0.7, images[1].flip(-1), images[2] + 0.3 * torch.sin(torch.arange(32.0))))
    for data_range in (1.0, 2.0):
        expected = [
            plain_ssim(x.double().numpy(), y.double().numpy(), data_range) for x, y in zip(images, other, strict=True)
        ]
        np.testing.assert_allclose(ssim(other, images, data_range).numpy(), expected, rtol=1e-9)


def test_ssim_agrees_with_torchmetrics():
    images = load_images(TEST, range(6), 32).double()
    noise = torch.sin(torch.arange(images.numel(), dtype=torch.float64)).view_as(images)
    strength = torch.tensor([0.0, 0.01, 0.05, 0.1, 0.3, 1.0], dtype=torch.float64).view(-1, 1, 1, 1)
    values = ssim((images + strength * noise).clamp(-1, 1), images, border="reflect")
    torch.testing.assert_close(values, GOLDEN["ssim"], rtol=1e-9, atol=1e-9)


def test_ssim_closed_forms():
    images = load_images(TEST, range(4), 32)
    assert torch.allclose(ssim(images, images), torch.ones(4).double())
    constant = torch.full((1, 3, 16, 16), 0.5)
    other = torch.full((1, 3, 16, 16), -0.25)
    c1 = (0.01 * 2) ** 2
    expected = (2 * 0.5 * -0.25 + c1) / (0.25 + 0.0625 + c1)
    assert float(ssim(constant, other)) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="smaller than the window"):
        ssim(images[:, :, :8], images[:, :, :8])
    with pytest.raises(ValueError, match="equal shape"):
        ssim(images[:2], images[:3])


def test_conventions_of_fidelity():
    """Strict uses stored pixels. Published rounds for PSNR, clamps and pads for SSIM, and does neither for LPIPS."""
    originals = load_images(TEST, range(3), 32)
    decoded = originals * 1.3 + 0.013 * torch.sin(torch.arange(32.0))
    seen = []

    def distance(a, b):
        seen.append((a, b))
        return (a - b).abs().mean((1, 2, 3))

    strict = fidelity(originals, decoded, "strict", {"lpips": distance})
    published = fidelity(originals, decoded, "published", {"lpips": distance})
    pixels = to_uint8(decoded)
    stored = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    expected_psnr = published_psnr(pixels, load_pixels(TEST, range(3), 32))
    torch.testing.assert_close(strict["psnr"], expected_psnr)
    torch.testing.assert_close(published["psnr"], expected_psnr)
    torch.testing.assert_close(strict["ssim"], ssim(stored, originals))
    torch.testing.assert_close(published["ssim"], ssim(decoded.clamp(-1, 1), originals, border="reflect"))
    torch.testing.assert_close(seen[0][0], stored)
    assert torch.equal(seen[1][0], decoded) and float(decoded.max()) > 1.2
    assert (strict["lpips"] - published["lpips"]).abs().min() > 1e-3
    assert strict["lpips"].dtype == torch.float64
    small = fidelity(originals[..., :8], decoded[..., :8], "strict", {})
    assert set(small) == {"psnr"}


@pytest.mark.parametrize("originals", [torch.full((1, 3, 16, 16), 255.0), torch.full((1, 3, 16, 16), float("nan"))])
def test_originals_of_another_range_are_refused(originals):
    """Stored as 8-bit pixels they would be clamped, and 255 would equal 100."""
    with pytest.raises(ValueError, match=r"originals: values must be in \[-1, 1\]"):
        fidelity(originals, torch.zeros(1, 3, 16, 16), "strict", {})


def test_misspelled_choices_are_refused():
    images = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="convention must be 'strict' or 'published', got 'stric'"):
        fidelity(images, images, "stric", {})
    with pytest.raises(ValueError, match="border must be 'valid' or 'reflect', got 'reflct'"):
        ssim(images, images, border="reflct")
