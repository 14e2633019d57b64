"""The training loss: how far the prediction is from the truth, in size and in direction."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.errors import UserError
from vavae.flow.paths import LinearPath, Prediction, ProbabilityPath
from vavae.flow.times import TimeDistribution

NO_SCORE = "the score has no bound near data; train the noise, which is the score times -sigma"

# Below this norm a predicted velocity counts as having this norm, in the cosine only. The network starts by
# predicting exactly zero, where the usual 1e-8 makes the first gradient 10^7 times too large, and that stays in
# Adam's second moments for hundreds of steps. Velocities of normalised latents are hundreds of times longer.
_SMALLEST_NORM = 1e-2


def flow_matching_loss(
    model: Callable[..., Tensor],
    data: Tensor,
    labels: Tensor,
    *,
    noise: Tensor | None = None,
    t: Tensor | None = None,
    path: ProbabilityPath | None = None,
    times: TimeDistribution | None = None,
    prediction: Prediction = "velocity",
    direction_weight: float = 1.0,
    label_drop: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Flow-matching loss of each sample, computed in float32.

    mse is the mean over channels and positions of (v - u)²; direction is the mean over positions of
    1 - cosine(v, u), the cosine taken over channels (FasterDiT, arXiv 2410.10356). v is predicted at
    path.interpolate(t, noise, data), u is the velocity there, or the noise or data it is made of.

    Args:
        model: Called as model(x, t, labels), with label_drop=... if that is given; predicts what `prediction`
            says.
        data: (B, C, h, w) normalised latents.
        labels: (B,) integers.
        noise: (B, C, h, w); drawn if None.
        t: (B,) times in [0, 1]; drawn from `times` if None.
        path: Path between noise and data; straight lines if None.
        times: Distribution of drawn times; the published logit-normal if None.
        prediction: "velocity", "noise" (DDPM, arXiv 2006.11239) or "data".
        direction_weight: Weight of the direction term in the total.
        label_drop: (B,) bool, which labels the model replaces by "no label"; None leaves that to the model.
        generator: Where drawn noise and times come from, on the device of data.

    Returns:
        "mse", "direction" and "total" = mse + direction_weight · direction: (B,) float32 each.

    Raises:
        UserError: No such prediction; the score, whose size has no bound near data; labels that are not one per sample.
    """
    if prediction == "score":
        raise UserError(f"prediction: {NO_SCORE}")
    if prediction not in ("velocity", "noise", "data"):
        raise UserError(f"prediction: {prediction!r} is none of velocity, noise, data")
    if labels.shape != (len(data),):
        raise UserError(f"labels: expected {len(data)}, one per sample, got shape {tuple(labels.shape)}")
    path = LinearPath() if path is None else path
    times = TimeDistribution() if times is None else times
    if noise is None:
        noise = torch.randn(data.shape, generator=generator, device=data.device, dtype=data.dtype)
    if t is None:
        t = times.sample(len(data), generator=generator, device=data.device)
    x, velocity = path.interpolate(t, noise, data)
    target = {"velocity": velocity, "noise": noise, "data": data}[prediction]
    options = {} if label_drop is None else {"label_drop": label_drop}
    return velocity_loss(model(x, t, labels, **options), target, direction_weight)


def velocity_loss(velocity: Tensor, target: Tensor, direction_weight: float = 1.0) -> dict[str, Tensor]:
    """The terms of `flow_matching_loss` for velocities (B, C, h, w) that are already predicted."""
    velocity, target = velocity.float(), target.float()
    mse = (velocity - target).square().flatten(1).mean(dim=1)
    cosine = F.cosine_similarity(velocity, target, dim=1, eps=_SMALLEST_NORM)
    direction = (1 - cosine).flatten(1).mean(dim=1)
    return {"mse": mse, "direction": direction, "total": mse + direction_weight * direction}
