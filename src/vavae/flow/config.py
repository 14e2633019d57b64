"""What a transformer learns: path, prediction, times and loss weights, as a part of a recipe."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vavae.errors import UserError
from vavae.flow.paths import PathName, Prediction
from vavae.flow.times import TimeDistribution


@dataclass(frozen=True)
class FlowConfig:
    """The flow that is learned.

    Attributes:
        path: linear, cosine (GVP) or variance-preserving.
        prediction: What the network predicts; the published one velocity, DiT noise.
        times: How training draws times.
        direction_weight: Weight of the velocity-direction loss; 0 leaves the mean squared error alone.
        uniform_after_images: From this many images on, draw times uniformly, whatever `times` says; null never. The
            published 800-epoch model switched at 480 epochs.
    """

    path: PathName = "linear"
    prediction: Prediction = "velocity"
    times: TimeDistribution = field(default_factory=TimeDistribution)
    direction_weight: float = 1.0
    uniform_after_images: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.direction_weight < math.inf:
            raise UserError(f"flow.direction_weight: {self.direction_weight} is negative or no number")
        if self.uniform_after_images is not None and self.uniform_after_images < 0:
            raise UserError(f"flow.uniform_after_images: {self.uniform_after_images} is negative; null is never")

    def draw_times(self, seed: int, positions: Tensor, device: torch.device) -> Tensor:
        """(B,) float32 times of the images at `positions` of the run, each a function of (seed, position)."""
        times = self.times.at(seed, positions, device=device)
        if self.uniform_after_images is None:
            return times
        late = positions.to(device) >= self.uniform_after_images
        return torch.where(late, TimeDistribution(kind="uniform").at(seed, positions, device=device), times)
