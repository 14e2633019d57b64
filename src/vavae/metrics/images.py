"""Fidelity of reconstructions, one value per image: PSNR, SSIM, and LPIPS in two conventions.

The caller takes means over all images at once, never over batches of unequal size.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.data.pixels import to_tensor, to_uint8
from vavae.device import to_float64

Convention = Literal["strict", "published"]
_WINDOW, _SIGMA = 11, 1.5  # side and standard deviation of SSIM's Gaussian window, in pixels, as published


def _check_pair(images: Tensor, references: Tensor) -> None:
    if images.shape != references.shape or images.ndim != 4:
        raise ValueError(f"two batches of equal shape are needed, got {tuple(images.shape)}, {tuple(references.shape)}")


def psnr(images: Tensor, references: Tensor, data_range: float = 2.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each image: 10 log10(data_range² / mean squared error), in dB.

    Args:
        images: (B, C, H, W) float, not clamped here.
        references: The same shape.
        data_range: Difference between the largest and the smallest possible value; 2 for [-1, 1].

    Returns:
        (B,) float64; infinite for equal images.
    """
    _check_pair(images, references)
    error = (to_float64(images) - to_float64(references)).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(data_range**2 / error)


def published_psnr(pixels: Tensor, references: Tensor) -> Tensor:
    """Return PSNR as in the published evaluation, between stored 8-bit images: 20 log10(255 / RMSE), in dB.

    Args:
        pixels: (B, H, W, 3) uint8, as `vavae.data.to_uint8` makes them.
        references: The same shape, uint8.

    Returns:
        (B,) float64; infinite for equal images.
    """
    if pixels.dtype != torch.uint8 or references.dtype != torch.uint8:
        raise ValueError(f"pixels must be uint8, got {pixels.dtype} and {references.dtype}")
    return psnr(pixels, references, data_range=255.0)


def ssim(
    images: Tensor, references: Tensor, data_range: float = 2.0, border: Literal["valid", "reflect"] = "valid"
) -> Tensor:
    """Return the structural similarity of each image (Wang et al. 2004), averaged over channels and positions.

    The window is Gaussian, of 11 pixels and sigma 1.5. Published numbers use images clamped to [-1, 1].

    Args:
        images: (B, C, H, W) float, H and W at least 11.
        references: The same shape.
        data_range: Difference between the largest and the smallest possible value; 2 for [-1, 1].
        border: "valid" uses windows that are wholly in the image, as the original, scikit-image, and torchmetrics
            before 1.5; "reflect" pads the image by reflection, as torchmetrics since 1.5. They differ by about a
            hundredth at 256 pixels and more for smaller images.

    Returns:
        (B,) float64, at most 1.
    """
    _check_pair(images, references)
    if border not in ("valid", "reflect"):
        raise ValueError(f"border must be 'valid' or 'reflect', got {border!r}")
    channels = images.shape[1]
    if min(images.shape[2:]) < _WINDOW:
        raise ValueError(f"images of {images.shape[2]} x {images.shape[3]} are smaller than the window {_WINDOW}")
    x, y = to_float64(images), to_float64(references)
    offsets = torch.arange(_WINDOW, dtype=torch.float64, device=x.device) - (_WINDOW - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).expand(channels, 1, _WINDOW)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, weights[..., None], groups=channels), weights[:, :, None], groups=channels)

    if border == "reflect":
        x, y = (F.pad(z, [_WINDOW // 2] * 4, mode="reflect") for z in (x, y))
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def fidelity(
    originals: Tensor,
    decoded: Tensor,
    convention: Convention,
    perceptual: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
) -> dict[str, Tensor]:
    """Compute PSNR, SSIM and LPIPS of reconstructions.

    "strict" measures stored images: both images as 8-bit pixels for every metric, and SSIM over windows that are wholly
    in the image. "published" follows the published evaluation: PSNR between 8-bit pixels, SSIM between clamped images
    that are not rounded, padded by reflection, and LPIPS of the decoder's output without clamping.

    Args:
        originals: (B, 3, H, W) in [-1, 1].
        decoded: (B, 3, H, W), not clamped.
        convention: "strict" or "published".
        perceptual: LPIPS networks by name: functions of two batches in [-1, 1] -> (B,).

    Returns:
        "psnr" in dB, "ssim" (not for images smaller than its window) and one entry for each of `perceptual`, (B,)
        float64 each.

    Raises:
        ValueError: Shapes differ, or originals are not in [-1, 1].
    """
    _check_pair(decoded, originals)
    if convention not in ("strict", "published"):
        raise ValueError(f"convention must be 'strict' or 'published', got {convention!r}")
    if not bool((originals.abs() <= 1.1).all()):  # they would be clamped without a message; NaN fails too
        raise ValueError("originals: values must be in [-1, 1]; vavae.data.to_tensor scales pixels")
    stored, reference = to_uint8(decoded), to_uint8(originals)
    values = {"psnr": published_psnr(stored, reference)}
    large = min(originals.shape[2:]) >= _WINDOW
    if convention == "strict":
        exact, target = to_tensor(stored), to_tensor(reference)
        if large:
            values["ssim"] = ssim(exact, target)
        pair = exact, target
    else:
        if large:
            values["ssim"] = ssim(decoded.clamp(-1, 1), originals.clamp(-1, 1), border="reflect")
        pair = decoded, originals
    return values | {name: to_float64(distance(*pair)) for name, distance in perceptual.items()}
