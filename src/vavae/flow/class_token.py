"""A class token that is denoised along with the latent: REG (arXiv 2507.01467).

A foundation model's feature of the whole image gets its own noise and the time of the latent. The network sees both and
predicts both velocities.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.flow.guidance import Guidance
from vavae.flow.networks import config_of
from vavae.flow.paths import ProbabilityPath
from vavae.flow.sampling import SampleCallback, sample

JointNetwork = Callable[..., Any]  # (x, t, labels, class_token=…) -> TransformerOutput


class NoisedClassToken:
    """A network with class tokens at the times of the latents, and the error of the velocity it predicts for them.

    Args:
        model: Called as model(x, t, labels, class_token=…); returns a `TransformerOutput`.
        class_token: (B, D) class tokens.
        noise: (B, D) standard normal noise of their own.
        t: (B,) times.
        path: Path between noise and data.
    """

    def __init__(
        self, model: JointNetwork, class_token: Tensor, noise: Tensor, t: Tensor, path: ProbabilityPath
    ) -> None:
        self._model = model
        self._point, self._velocity = path.interpolate(t, noise, class_token)
        self._predicted = self._velocity

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the prediction for the latents, and keep the one for the class tokens."""
        output = self._model(x, t, labels, class_token=self._point, **options)
        self._predicted = output.class_token
        return output.prediction

    def added_to(self, terms: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
        """Return the terms of the loss with "class_token", the mean of (v - u)² over channels, (B,) float32."""
        error = (self._predicted.float() - self._velocity.float()).square().mean(dim=1)
        return {**terms, "class_token": error, "total": terms["total"] + weight * error}


class _Joint(nn.Module):
    """A network on the state (B, D + C·h·w): the class token, then the latents. Solvers and guidance see one state."""

    def __init__(self, model: JointNetwork, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.channels, self.shape = model, channels, shape
        self.config = config_of(model)

    def latents(self, state: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) of a state."""
        return state[:, self.channels :].unflatten(1, self.shape)

    def forward(self, state: Tensor, t: Tensor, labels: Tensor, **options: Any) -> Tensor:
        output = self.model(self.latents(state), t, labels, class_token=state[:, : self.channels], **options)
        return torch.cat((output.class_token, output.prediction.flatten(1)), dim=1)


def sample_with_class_token(
    model: JointNetwork,
    noise: Tensor,
    labels: Tensor,
    *,
    class_noise: Tensor,
    guidance: Guidance | None = None,
    weak_model: JointNetwork | None = None,
    callback: SampleCallback | None = None,
    **options: Any,
) -> Tensor:
    """Integrate latents and class tokens together, and return the latents (B, C, h, w), as `sample` does.

    Guidance acts on the whole class token; its `channels` restrict the latents only. The factor of "zero_star" is one
    for both. The steps of "dopri5" depend on both. A callback sees the latents.

    Args:
        model: (x, t, labels, class_token=…) -> `TransformerOutput`.
        noise: (B, C, h, w) standard normal noise of the latents.
        labels: (B,) integers.
        class_noise: (B, D) standard normal noise of the class tokens.
        guidance: Scale, interval and channels; None for no guidance.
        weak_model: Weaker network, which has class tokens too.
        callback: As for `sample`.
        options: Other arguments of `sample`.

    Raises:
        UserError: As for `sample`.
    """
    shape, channels = tuple(noise.shape[1:]), class_noise.shape[1]
    joint = _Joint(model, channels, shape)
    if guidance is not None and guidance.channels is not None:
        if guidance.channels > shape[0]:
            raise UserError(f"channels must be at most {shape[0]}, got {guidance.channels}")
        guidance = replace(guidance, channels=channels + guidance.channels * shape[1] * shape[2])

    def show(step: int, t: float, state: Tensor, data: Tensor) -> None:
        if callback is not None:
            callback(step, t, joint.latents(state), joint.latents(data))

    drawn = sample(
        joint,
        torch.cat((class_noise.to(noise), noise.flatten(1)), dim=1),
        labels,
        guidance=guidance,
        weak_model=None if weak_model is None else _Joint(weak_model, channels, shape),
        callback=None if callback is None else show,
        **options,
    )
    return joint.latents(drawn)
