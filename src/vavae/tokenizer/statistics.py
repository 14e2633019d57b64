"""Mean and standard deviation of latents, and the pair of functions that applies them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vavae.device import to_float64
from vavae.errors import UserError

_RAE_EPS = 1e-5
# Names of mean and spread in the forms that `LatentStatistics.from_dict` reads, and the standard deviation of a spread.
FORMS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("mean", "std"): lambda deviation: deviation,
    ("mean", "var"): lambda variance: (variance.double() + _RAE_EPS).sqrt(),
    ("latents_bias", "latents_scale"): lambda scale: 1 / scale.double(),
    ("running_mean", "running_var"): lambda variance: (variance.double() + 1e-4).sqrt(),
}


def _check(latents: Tensor, channels: int) -> None:
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise UserError(f"latents must have shape (B, {channels}, h, w), got {tuple(latents.shape)}")
    if not latents.is_floating_point():
        raise UserError(f"latents must be floats, got {latents.dtype}")


def _check_grid(latents: Tensor, grid: tuple[int, int] | None) -> None:
    if grid is not None and grid != latents.shape[2:]:
        needed, got = ("{} x {}".format(*size) for size in (grid, latents.shape[2:]))
        raise UserError(f"latents must be {needed}, as their statistics are per position, got {got}")


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Statistics of a tokenizer's latents over a data set, per channel, or per channel and position.

    Attributes:
        mean: (C,) or (C, h, w), float32; the published (1, C, 1, 1) becomes (C,).
        std: The same shape, float32, all positive.
        count: Number of images they were computed over; 0 if unknown.

    Raises:
        UserError: Shapes differ or are others, or a number is not finite or not positive.
    """

    mean: Tensor
    std: Tensor
    count: int = 0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name).detach().to(torch.float32, copy=True)
            if values.ndim == 4 and len(values) == 1:
                values = values[0]  # (1, C, h, w) -> (C, h, w)
            object.__setattr__(self, name, values.flatten() if values.shape[1:] == (1, 1) else values)
        if self.mean.ndim not in (1, 3) or self.mean.shape != self.std.shape:
            raise UserError(
                "latent statistics must have a mean and a standard deviation of one shape, (C,) or (C, h, w), got "
                f"{tuple(self.mean.shape)} and {tuple(self.std.shape)}"
            )
        if not bool(torch.isfinite(self.mean).all()) or not bool((self.std > 0).all() & self.std.isfinite().all()):
            raise UserError("latent statistics must have finite means and positive standard deviations")

    @property
    def channels(self) -> int:
        """Number of latent channels."""
        return len(self.mean)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width of the only latents that they fit; None if they are per channel and fit all."""
        return None if self.mean.ndim == 1 else (self.mean.shape[1], self.mean.shape[2])

    def equals(self, other: "LatentStatistics") -> bool:
        """Return whether both have the same mean and standard deviation; `count` may differ."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)

    def normalize(self, latents: Tensor) -> Tensor:
        """Return (latents − mean) / std, the input of the transformer: (B, C, h, w), same dtype and device."""
        return (latents - self._like(self.mean, latents)) / self._like(self.std, latents)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Return latents · std + mean, the input of the decoder: (B, C, h, w), same dtype and device."""
        return latents * self._like(self.std, latents) + self._like(self.mean, latents)

    def _like(self, values: Tensor, latents: Tensor) -> Tensor:
        _check(latents, self.channels)
        _check_grid(latents, self.grid)
        # (C,) -> (1, C, 1, 1); (C, h, w) -> (1, C, h, w)
        return values.to(latents.device, latents.dtype).view(1, self.channels, *(self.grid or (1, 1)))

    def published_variance(self) -> Tensor:
        """Return the `var` of RAE's `stat.pt`, std² − 1e-5, with which `from_dict` gives this standard deviation."""
        return (self.std.double().square() - _RAE_EPS).float()

    def to_dict(self) -> dict[str, Tensor]:
        """Return tensors that safetensors can store: `mean`, `std`, `count`."""
        return {"mean": self.mean, "std": self.std, "count": torch.tensor(self.count, dtype=torch.int64)}

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor]) -> Self:
        """Return statistics from the output of `to_dict`, or from a published form.

        Published are `mean` and `std` (VA-VAE), `mean` and `var` (RAE; eps 1e-5), `latents_bias` and `latents_scale`
        = 1 / std (REPA-E), and BatchNorm's `running_mean` and `running_var` (REPA-E, FLUX.2; eps 1e-4). The standard
        deviation is sqrt(var + eps).

        Raises:
            UserError: The tensors have none of these forms, or a value does not fit.
        """
        count = int(tensors["count"]) if "count" in tensors else 0
        for (mean, spread), deviation in FORMS.items():
            if {mean, spread} <= tensors.keys():
                return cls(tensors[mean], deviation(tensors[spread]), count)
        forms = ", or ".join(" and ".join(names) for names in FORMS)
        raise UserError(
            f"latent statistics must have the tensors {forms}, got {', '.join(sorted(tensors))[:100] or 'none'}"
        )


class RunningStatistics:
    """Exact mean and variance, in float64, of latents that arrive in batches: per channel, or per channel and position.

    Counts, means and sums of squared deviations of two parts combine without loss (Chan, Golub, LeVeque 1979).
    The parts may come from different batches, processes or runs.

    Args:
        channels: Number of latent channels.
        grid: Height and width of the latents for statistics per position; None for statistics per channel.
    """

    def __init__(self, channels: int, grid: tuple[int, int] | None = None) -> None:
        self.channels = channels
        self.grid = grid
        self.images = 0
        self.values = 0  # that each mean is over: images, times positions if per channel
        self.mean = torch.zeros(channels, *(grid or ()), dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)  # sum of squared deviations from the mean

    def update(self, latents: Tensor) -> None:
        """Add (B, C, h, w) latents."""
        _check(latents, self.channels)
        if latents.numel() == 0:
            return
        _check_grid(latents, self.grid)
        wide = to_float64(latents.detach()).cpu()
        # (B, C, h, w) -> (C, B·h·w), or (C·h·w, B) per position
        flat = wide.transpose(0, 1).flatten(1) if self.grid is None else wide.flatten(1).T
        mean = flat.mean(1)
        squares = (flat - mean[:, None]).square().sum(1)
        self._combine(len(latents), flat.shape[1], mean.view_as(self.mean), squares.view_as(self.mean))

    def merge(self, other: "RunningStatistics") -> None:
        """Add all that `other` has seen, for example in another process."""
        if other.mean.shape != self.mean.shape:
            raise UserError(
                f"latent statistics must have the shape {tuple(self.mean.shape)} to be merged, got "
                f"{tuple(other.mean.shape)}"
            )
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
        channels, *grid = tensors["mean"].shape
        statistics = cls(channels, (grid[0], grid[1]) if grid else None)
        statistics.images = int(tensors["images"])
        statistics.values = int(tensors["values"])
        statistics.mean = tensors["mean"].to(torch.float64)
        statistics.squares = tensors["squares"].to(torch.float64)
        return statistics
