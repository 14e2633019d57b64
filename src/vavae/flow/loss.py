"""The training loss: squared error and direction error of the predicted velocity."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.errors import UserError
from vavae.flow.labels import integer_labels
from vavae.flow.networks import config_of
from vavae.flow.paths import LinearPath, Prediction, ProbabilityPath
from vavae.flow.times import TimeDistribution

LossSpace = Literal["target", "velocity"]
NO_SCORE = "the score is unbounded near data; train the noise, which is the score times -sigma"

# Lower bound of norms in the cosine. The network starts by predicting exactly zero. There the usual 1e-8 makes the
# first gradient 10^7 times too large, and Adam's second moments keep it for hundreds of steps. Velocities of
# normalized latents are hundreds of times longer than this bound.
_SMALLEST_NORM = 1e-2


def flow_matching_loss(
    model: Callable[..., Any],
    data: Tensor,
    labels: Tensor,
    *,
    noise: Tensor | None = None,
    t: Tensor | None = None,
    path: ProbabilityPath | None = None,
    times: TimeDistribution | None = None,
    prediction: Prediction = "velocity",
    space: LossSpace = "target",
    direction_weight: float = 1.0,
    contrastive: float = 0.0,
    label_drop: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return the flow-matching loss of each sample, computed in float32.

    mse is the mean over channels and positions of (v - u)². direction is the mean over positions of 1 - cosine(v, u),
    with the cosine over channels (FasterDiT, arXiv 2410.10356). v is the prediction at
    path.interpolate(t, noise, data); u is the velocity there, or the noise or data.

    Args:
        model: Called as model(x, t, labels), with label_drop=... if that is given; returns what `prediction` names.
            With an auxiliary head (model.config.auxiliary_block), called with auxiliary=True too.
        data: (B, C, h, w) normalized latents.
        labels: (B,) integers.
        noise: (B, C, h, w); drawn if None.
        t: (B,) times in [0, 1]; drawn from `times` if None.
        path: Path between noise and data; straight lines if None.
        times: Distribution of drawn times; the published logit-normal if None.
        prediction: "velocity", "noise" (DDPM, arXiv 2006.11239) or "data".
        space: Where prediction and target are compared: "target", as they are, or "velocity", both converted to it
            (a data prediction x then has the error |x - data|² / max(sigma, path.floor)² on straight lines; JiT,
            arXiv 2511.13720).
        direction_weight: Weight of the direction term in the total.
        contrastive: Weight λ of contrastive flow matching (arXiv 2506.05350): the total falls by λ times the mean of
            (v - u')², where u' is the target of another sample. Neighbors in the batch, 0 and 1, 2 and 3, … take each
            other's; a last one without a partner takes its predecessor's.
        label_drop: (B,) bool, True where the model replaces the label by "no label"; None leaves that to the model.
        generator: Source of drawn noise and times, on the device of data.

    Returns:
        "mse", "direction" and "total" = mse + direction_weight · direction: (B,) float32 each. With an auxiliary head
        also "auxiliary", the same total of its prediction, which is added to "total". With `contrastive` also
        "contrastive", the distance to the other target, unweighted.

    Raises:
        UserError: The prediction does not exist or is the score, which is unbounded near data, a shape or dtype does
            not fit, or `contrastive` is given and one sample only.
    """
    if prediction == "score":
        raise UserError(f"prediction must not be score: {NO_SCORE}")
    if prediction not in ("velocity", "noise", "data"):
        raise UserError(f"prediction must be velocity, noise or data, got {prediction!r}")
    if space not in get_args(LossSpace):
        raise UserError(f"space must be one of {', '.join(get_args(LossSpace))}, got {space!r}")
    labels = integer_labels(labels, len(data), data.device)
    path = LinearPath() if path is None else path
    times = TimeDistribution() if times is None else times
    if noise is None:
        noise = torch.randn(data.shape, generator=generator, device=data.device, dtype=data.dtype)
    if t is None:
        t = times.sample(len(data), generator=generator, device=data.device)
    elif t.shape != (len(data),):
        raise UserError(f"t must have shape ({len(data)},), one time per sample, got {tuple(t.shape)}")
    x, velocity = path.interpolate(t, noise, data)
    target = {"velocity": velocity, "noise": noise, "data": data}[prediction]
    options: dict[str, Any] = {} if label_drop is None else {"label_drop": label_drop}

    def loss(predicted: Tensor) -> dict[str, Tensor]:
        wanted = target
        if space == "velocity" and prediction != "velocity" and predicted.shape == target.shape:
            predicted, wanted = (
                path.convert(value.float(), x.float(), t, prediction, "velocity") for value in (predicted, target)
            )
        terms = velocity_loss(predicted, wanted, direction_weight)  # it names another shape
        if contrastive:
            terms["contrastive"] = _squared_error(predicted, wanted[_partners(len(wanted), wanted.device)])
            terms["total"] = terms["total"] - contrastive * terms["contrastive"]
        return terms

    if getattr(config_of(model), "auxiliary_block", None) is None:
        return loss(model(x, t, labels, **options))
    output = model(x, t, labels, auxiliary=True, **options)
    terms, auxiliary = loss(output.prediction), loss(output.auxiliary)["total"]
    return terms | {"auxiliary": auxiliary, "total": terms["total"] + auxiliary}


def _partners(count: int, device: torch.device) -> Tensor:
    """Return the other sample of each of `count`, (count,) int64; raise UserError for one sample."""
    if count < 2:
        raise UserError("contrastive must be 0 for one sample at once, which has no other to differ from")
    other = torch.arange(count, device=device) ^ 1
    return torch.where(other < count, other, count - 2)


def _squared_error(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference of each sample in float32: two of (B, C, h, w) -> (B,)."""
    return (first.float() - second.float()).square().flatten(1).mean(dim=1)


def velocity_loss(velocity: Tensor, target: Tensor, direction_weight: float = 1.0) -> dict[str, Tensor]:
    """Return the terms of `flow_matching_loss` for predicted velocities (B, C, h, w).

    Raises:
        UserError: The shapes differ.
    """
    if velocity.shape != target.shape:
        raise UserError(
            f"the prediction must have the shape of the data {tuple(target.shape)}, got {tuple(velocity.shape)}"
        )
    velocity, target = velocity.float(), target.float()
    mse = _squared_error(velocity, target)
    cosine = F.cosine_similarity(velocity, target, dim=1, eps=_SMALLEST_NORM)  # (B, h, w)
    direction = (1 - cosine).flatten(1).mean(dim=1)  # (B, h, w) -> (B, h·w) -> (B,)
    return {"mse": mse, "direction": direction, "total": mse + direction_weight * direction}
