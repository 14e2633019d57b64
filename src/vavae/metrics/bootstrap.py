"""How much a number varies with the images it was measured on."""

from collections.abc import Callable

import torch
from torch import Tensor

from vavae import rng
from vavae.device import to_float64


def bootstrap_interval(
    statistic: Callable[[Tensor], float], count: int, value: float, repetitions: int, seed: int = 0
) -> tuple[float, float]:
    """Where a number would lie in 95 of 100 measurements on as many other images.

    Percentiles 2.5 and 97.5 over resampled images, moved so that the resampled mean falls on `value`: drawing with
    repetition adds a bias of its own to distances, which is no part of the spread. The bias of `value` itself, that
    of a Fréchet distance to few samples say, is not in the interval.

    Args:
        statistic: Indices (count,) int64 of images, some several times -> the number.
        count: Number of images.
        value: The number measured on all of them.
        repetitions: How often to resample; 100 or more for a smooth interval.
        seed: Of the resampling.
    """
    if repetitions < 2 or count < 2:
        raise ValueError(f"at least 2 repetitions and 2 images are needed, not {repetitions} and {count}")
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
    """The interval of the mean of one value per image, (N,)."""
    values = to_float64(values.detach()).cpu()
    return bootstrap_interval(
        lambda indices: float(values[indices].mean()), len(values), float(values.mean()), repetitions, seed
    )
