"""Bootstrap intervals: how much a number varies with the images on which it was measured."""

from collections.abc import Callable

import torch
from torch import Tensor

from vavae import rng
from vavae.device import to_float64


def bootstrap_interval(
    statistic: Callable[[Tensor], float], count: int, value: float, repetitions: int, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a number.

    These are percentiles 2.5 and 97.5 over resampled images, shifted so that the resampled mean equals `value`: drawing
    with repetition adds a bias to distances, which does not belong to the spread. The bias of `value` itself, for
    example of a Fréchet distance of few samples, is not in the interval.

    Args:
        statistic: Function from indices (count,) int64 of images, with repetition, to the number.
        count: Number of images.
        value: The number measured on all images.
        repetitions: Number of resamplings; 100 or more for a smooth interval.
        seed: Seed of the resampling.
    """
    if repetitions < 2 or count < 2:
        raise ValueError(f"at least 2 repetitions and 2 images are needed, got {repetitions} and {count}")
    found = torch.tensor(
        [
            statistic(rng.integers(seed, f"bootstrap {number}", torch.arange(count), count))
            for number in range(repetitions)
        ],
        dtype=torch.float64,
    )
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    shift = value - float(found.mean())
    return low + shift, high + shift


def bootstrap_mean(values: Tensor, repetitions: int, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of one value per image, (N,)."""
    values = to_float64(values.detach()).cpu()
    return bootstrap_interval(
        lambda indices: float(values[indices].mean()), len(values), float(values.mean()), repetitions, seed
    )
