"""Config of the flow: path, prediction, times and loss weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from vavae.errors import UserError
from vavae.flow.class_token import NoisedClassToken
from vavae.flow.loss import LossSpace, flow_matching_loss
from vavae.flow.paths import PathName, Prediction, path_by_name
from vavae.flow.times import TimeDistribution, shift_in_numbers


@dataclass(frozen=True)
class FlowConfig:
    """The flow that the transformer learns.

    Attributes:
        path: Path from noise to data: linear, cosine (GVP) or variance-preserving (`path_type` in the published code).
        prediction: What the network predicts: velocity (published), noise (DiT) or data; the score cannot be trained.
        space: Where a prediction of noise or data is compared with its target: as it is (`target`), or after both are
            converted to `velocity` (JiT, JLT, RiT).
        floor: Least sigma by which predicted data are divided to become a velocity, in training and sampling; JiT
            (arXiv 2511.13720) takes 0.05. With 0 and the space `velocity`, one time near data can outweigh a batch.
        times: Distribution of training times.
        direction_weight: Weight of the velocity-direction loss (1 is the published `use_cosine_loss: true`); 0
            leaves only the mean squared error.
        uniform_after_images: Change the kind of `times` to uniform after this many images; null never. The published
            800-epoch model switched after 480 epochs.
        class_token_weight: Weight of the squared error of the class token's velocity (REG), where the transformer has
            one.
        contrastive: Weight of the distance to another sample's target, which is subtracted (contrastive flow matching,
            arXiv 2506.05350, takes 0.05); 0 turns it off.
    """

    path: PathName = "linear"
    prediction: Prediction = "velocity"
    times: TimeDistribution = field(default_factory=TimeDistribution)
    direction_weight: float = 1.0
    uniform_after_images: int | None = None
    space: LossSpace = "target"
    floor: float = 0.0
    class_token_weight: float = 0.03
    contrastive: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise UserError(f"flow.floor must be from 0 to 1, got {self.floor}")
        if self.prediction == "velocity" and (self.floor or self.space == "velocity"):
            raise UserError("flow.space must be target and flow.floor 0 for flow.prediction velocity")
        if not 0.0 <= self.direction_weight < math.inf:
            raise UserError(f"flow.direction_weight must be at least 0 and finite, got {self.direction_weight}")
        if not 0.0 <= self.class_token_weight < math.inf:
            raise UserError(f"flow.class_token_weight must be at least 0 and finite, got {self.class_token_weight}")
        if not 0 <= self.contrastive < 1:
            raise UserError(f"flow.contrastive must be at least 0 and below 1, got {self.contrastive}")
        if self.uniform_after_images is not None and self.uniform_after_images < 0:
            raise UserError(
                f"flow.uniform_after_images must be at least 0, or null for never, got {self.uniform_after_images}"
            )

    def for_latents(self, shape: Sequence[int]) -> Self:
        """Return the flow for latents of a shape (C, h, w): with the shift that their dimension gives as a number."""
        return replace(self, times=replace(self.times, shift=shift_in_numbers(self.times.shift, shape)))

    def draw_times(self, seed: int, positions: Tensor, device: torch.device) -> Tensor:
        """Return (B,) float32 times of the images at `positions` of the run, each a function of (seed, position)."""
        times = self.times.at(seed, positions, device=device)
        if self.uniform_after_images is None:
            return times
        late = positions.to(device) >= self.uniform_after_images
        return torch.where(late, replace(self.times, kind="uniform").at(seed, positions, device=device), times)

    def loss(
        self,
        model: Callable[..., Tensor],
        latents: Tensor,
        labels: Tensor,
        noise: Tensor,
        t: Tensor,
        label_drop: Tensor,
        class_token: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms of `flow_matching_loss` for this path, prediction and weight.

        With class tokens (B, D) and their noise (B, D), the term "class_token" is added.
        """
        path = path_by_name(self.path, self.floor)
        noised = None if class_token is None else NoisedClassToken(model, *class_token, t, path)
        terms = flow_matching_loss(
            model if noised is None else noised,
            latents,
            labels,
            noise=noise,
            t=t,
            path=path,
            prediction=self.prediction,
            space=self.space,
            direction_weight=self.direction_weight,
            contrastive=self.contrastive,
            label_drop=label_drop,
        )
        return terms if noised is None else noised.added_to(terms, self.class_token_weight)
