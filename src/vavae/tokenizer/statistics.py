"""Mean and standard deviation of latents, and the pair of functions that applies them."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vavae.device import to_float64
from vavae.errors import UserError


def _check(latents: Tensor, channels: int) -> None:
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise UserError(f"latents must have shape (B, {channels}, h, w), got {tuple(latents.shape)}")
    if not latents.is_floating_point():
        raise UserError(f"latents must be floats, got {latents.dtype}")


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Per-channel statistics of a tokenizer's latents over a data set.

    Attributes:
        mean: (C,), float32.
        std: (C,), float32, all positive.
        count: Number of images they were computed over; 0 if unknown.
    """

    mean: Tensor
    std: Tensor
    count: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.mean.detach().to(torch.float32, copy=True).flatten())
        object.__setattr__(self, "std", self.std.detach().to(torch.float32, copy=True).flatten())
        if self.mean.shape != self.std.shape:
            raise UserError(
                f"latent statistics must have as many standard deviations as means, got {self.std.numel()} and "
                f"{self.mean.numel()}"
            )
        if not bool(torch.isfinite(self.mean).all()) or not bool((self.std > 0).all() & self.std.isfinite().all()):
            raise UserError("latent statistics must have finite means and positive standard deviations")

    @property
    def channels(self) -> int:
        """Number of latent channels."""
        return self.mean.numel()

    def equals(self, other: "LatentStatistics") -> bool:
        """Return whether both have the same mean and standard deviation; `count` may differ."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)

    def normalize(self, latents: Tensor) -> Tensor:
        """Return (latents − mean) / std, the input of the transformer: (B, C, h, w), same dtype and device."""
        _check(latents, self.channels)
        return (latents - self._like(self.mean, latents)) / self._like(self.std, latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Return latents · std + mean, the input of the decoder: (B, C, h, w), same dtype and device."""
        _check(latents, self.channels)
        return latents * self._like(self.std, latents) + self._like(self.mean, latents)

    @staticmethod
    def _like(values: Tensor, latents: Tensor) -> Tensor:
        return values.to(latents.device, latents.dtype).view(1, -1, 1, 1)  # (C,) -> (1, C, 1, 1)

    def to_dict(self) -> dict[str, Tensor]:
        """Return tensors that safetensors can store: `mean`, `std`, `count`."""
        return {"mean": self.mean, "std": self.std, "count": torch.tensor(self.count, dtype=torch.int64)}

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor]) -> Self:
        """Return statistics from the output of `to_dict`, or from the published form: (1, C, 1, 1) without a count.

        Raises:
            UserError: A tensor is missing, or a value does not fit.
        """
        for name in ("mean", "std"):
            if name not in tensors:
                raise UserError(f"latent statistics must have a tensor {name}")
        count = int(tensors["count"]) if "count" in tensors else 0
        return cls(tensors["mean"], tensors["std"], count)


class RunningStatistics:
    """Exact mean and variance per channel, in float64, of latents that arrive in batches.

    Counts, means and sums of squared deviations of two parts combine without loss (Chan, Golub, LeVeque 1979).
    The parts may come from different batches, processes or runs.

    Args:
        channels: Number of latent channels.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.images = 0
        self.values = 0  # images times positions, per channel
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)  # sum of squared deviations from the mean

    def update(self, latents: Tensor) -> None:
        """Add (B, C, h, w) latents."""
        _check(latents, self.channels)
        if latents.numel() == 0:
            return
        flat = to_float64(latents.detach()).cpu().transpose(0, 1).flatten(1)  # (B, C, h, w) -> (C, B·h·w)
        mean = flat.mean(1)
        self._combine(len(latents), flat.shape[1], mean, (flat - mean[:, None]).square().sum(1))

    def merge(self, other: "RunningStatistics") -> None:
        """Add all that `other` has seen, for example in another process."""
        if other.channels != self.channels:
            raise UserError(f"latent statistics must have {self.channels} channels to be merged, got {other.channels}")
        if other.values > 0:
            self._combine(other.images, other.values, other.mean, other.squares)

    def _combine(self, images: int, values: int, mean: Tensor, squares: Tensor) -> None:
        total = self.values + values
        difference = mean - self.mean
        self.mean = self.mean + difference * (values / total)
        self.squares = self.squares + squares + difference.square() * (self.values * values / total)
        self.images += images
        self.values = total

    def finalize(self) -> LatentStatistics:
        """Return the statistics so far; the standard deviation is the unbiased one.

        Raises:
            UserError: There are fewer than two values per channel, or a channel is constant.
        """
        if self.values < 2:
            raise UserError(f"latent statistics need at least 2 values per channel, got {self.values}")
        std = (self.squares / (self.values - 1)).sqrt()
        return LatentStatistics(self.mean, std, self.images)

    def to_dict(self) -> dict[str, Tensor]:
        """Return tensors that safetensors can store: `images`, `values`, `mean`, `squares`."""
        return {
            "images": torch.tensor(self.images, dtype=torch.int64),
            "values": torch.tensor(self.values, dtype=torch.int64),
            "mean": self.mean,
            "squares": self.squares,
        }

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor]) -> Self:
        """Return statistics from the output of `to_dict`."""
        for name in ("images", "values", "mean", "squares"):
            if name not in tensors:
                raise UserError(f"latent statistics must have a tensor {name}")
        statistics = cls(tensors["mean"].numel())
        statistics.images = int(tensors["images"])
        statistics.values = int(tensors["values"])
        statistics.mean = tensors["mean"].to(torch.float64)
        statistics.squares = tensors["squares"].to(torch.float64)
        return statistics
