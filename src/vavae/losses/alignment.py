"""The vision foundation model loss: align latents with features of a frozen teacher (arXiv 2501.01423, section 4)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import resample_grid
from vavae.losses.adaptive import adaptive_weight
from vavae.losses.checks import check_not_negative, check_one_of, check_same_shape


@dataclass(frozen=True)
class AlignmentConfig:
    """The alignment term; the defaults are the published ones.

    Names of the published code are in brackets.

    Attributes:
        enabled: Whether to align the latent with a teacher.
        weight: Factor of the term, multiplied with the adaptive weight (`vf_weight`; w_hyper in the paper).
        adaptive: Scale the term's gradient to the reconstruction's gradient at the encoder's last layer
            (`adaptive_vf`).
        maximum: Upper bound of the adaptive weight.
        cos_margin: Cosine distance below which a position costs nothing (`cos_margin`; m1 in the paper).
        distance_margin: Difference of two similarities below which a pair costs nothing (`distmat_margin`; m2).
        cos_weight: Factor of the marginal cosine similarity loss (`cos_weight`).
        distance_weight: Factor of the marginal distance-matrix similarity loss (`distmat_weight`).
        projection: "latent_to_teacher": the learned 1×1 projection maps the latent to the teacher's channels
            (published, `reverse_proj: true`). "teacher_to_latent": it maps the teacher's features to the latent's
            channels.
        train_projection: Whether the projection is trained; the published fine-tuning may have frozen it.
    """

    enabled: bool = True
    weight: float = 0.1
    adaptive: bool = True
    maximum: float = 1e8
    cos_margin: float = 0.5
    distance_margin: float = 0.25
    cos_weight: float = 1.0
    distance_weight: float = 1.0
    projection: Literal["latent_to_teacher", "teacher_to_latent"] = "latent_to_teacher"
    train_projection: bool = True

    def __post_init__(self) -> None:
        names = ("weight", "maximum", "cos_margin", "distance_margin", "cos_weight", "distance_weight")
        check_not_negative("alignment", self, *names)
        for name in ("cos_margin", "distance_margin"):
            if (margin := getattr(self, name)) >= 2:
                raise UserError(f"alignment.{name} must be below 2, from where on the term is always 0, got {margin}")
        check_one_of("alignment.projection", self.projection, ("latent_to_teacher", "teacher_to_latent"))


def cosine_alignment(z: Tensor, f: Tensor, margin: float = 0.0) -> Tensor:
    """Return the marginal cosine similarity loss (mcos, equation 4).

    It is the mean over positions of relu(1 − margin − cos(z, f)).

    Args:
        z: (B, C, h, w) projected latents.
        f: (B, C, h, w) teacher features.
        margin: Cosine distance without cost, in [0, 2].

    Returns:
        0-dim, in [0, 2]. It does not depend on the scale of z or f.

    Raises:
        UserError: The shapes differ.
    """
    check_same_shape(z, f, "latents and features")
    return F.relu(1.0 - margin - F.cosine_similarity(z, f, dim=1, eps=1e-8)).mean()


def distance_matrix_alignment(z: Tensor, f: Tensor, margin: float = 0.0) -> Tensor:
    """Return the marginal distance-matrix similarity loss (mdms, equation 6).

    It is the mean over all pairs of positions in an image of relu(|cos(zᵢ, zⱼ) − cos(fᵢ, fⱼ)| − margin).

    Args:
        z: (B, C, h, w) projected latents.
        f: (B, D, h, w) teacher features.
        margin: Difference of similarities without cost, in [0, 2].

    Returns:
        0-dim, in [0, 2]. It does not depend on scale or rotation of z or f.

    Raises:
        UserError: Batch or grid differ.
    """
    if z.ndim != 4 or z.shape[0] != f.shape[0] or z.shape[2:] != f.shape[2:]:
        raise UserError(
            f"latents and features must have the same batch and grid, got {tuple(z.shape)} and {tuple(f.shape)}"
        )
    similarities = []
    for x in (z, f):
        tokens = F.normalize(x.flatten(2), dim=1, eps=1e-12)  # (B, C, h, w) -> (B, C, h·w)
        similarities.append(tokens.transpose(1, 2) @ tokens)  # (B, h·w, h·w)
    return F.relu((similarities[0] - similarities[1]).abs() - margin).mean()


class AlignmentLoss(nn.Module):
    """The alignment term with its learned projection `linear_proj`.

    Args:
        config: Margins, weights and direction of the projection.
        latent_channels: Channels of the latent.
        teacher_channels: Channels of the teacher's features.
    """

    def __init__(self, config: AlignmentConfig, latent_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.config = config
        if config.projection == "latent_to_teacher":
            self.linear_proj = nn.Conv2d(latent_channels, teacher_channels, 1, bias=False)
        else:
            self.linear_proj = nn.Conv2d(teacher_channels, latent_channels, 1)
        self.latent_channels = latent_channels
        self.teacher_channels = teacher_channels
        self.linear_proj.requires_grad_(config.train_projection)

    def project(self, latents: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents (B, C, h, w) and features (B, D, h', w') to one space: two tensors of the same shape.

        Raises:
            UserError: A shape does not fit.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise UserError(f"latents must have shape (B, {self.latent_channels}, h, w), got {tuple(latents.shape)}")
        if features.ndim != 4 or features.shape[:2] != (len(latents), self.teacher_channels):
            raise UserError(
                f"teacher features must have shape ({len(latents)}, {self.teacher_channels}, h, w), "
                f"got {tuple(features.shape)}"
            )
        features = resample_grid(features.to(latents.dtype), (latents.shape[2], latents.shape[3]))
        if self.config.projection == "latent_to_teacher":
            return self.linear_proj(latents), features
        return latents, self.linear_proj(features)

    def forward(self, latents: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Return the terms for sampled latents (B, C, h, w) and teacher features (B, D, h', w').

        Returns:
            `cosine`, `distance_matrix`, and `alignment`, their weighted sum; each 0-dim.
        """
        config = self.config
        # Cosines of nearly parallel vectors need float32, so autocast is off.
        with torch.autocast(latents.device.type, enabled=False):
            z, f = self.project(latents, features)
            cosine = cosine_alignment(z, f, config.cos_margin)
            distance = distance_matrix_alignment(z, f, config.distance_margin)
        return {
            "cosine": cosine,
            "distance_matrix": distance,
            "alignment": config.distance_weight * distance + config.cos_weight * cosine,
        }

    def balanced(
        self, reconstruction: Tensor, latents: Tensor, features: Tensor, last_weight: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms, and the total: reconstruction + w_hyper · w_adaptive · alignment.

        The adaptive weight scales the alignment's gradient at the encoder's last layer to the reconstruction's. It
        costs a backward pass of each to that layer. With several processes, each has the weight of its own batch.

        Args:
            reconstruction: 0-dim; the loss terms of the decoded images.
            latents: (B, C, h, w), of which `reconstruction` is a function.
            features: (B, D, h', w') of the teacher.
            last_weight: The weight of the encoder's last layer.

        Returns:
            The terms of `forward`, the factor `alignment_weight`, and `total`, whose gradient trains; each 0-dim.
        """
        config, terms = self.config, self(latents, features)
        weight = reconstruction.new_full((), config.weight)
        if config.adaptive:
            reference, own = (
                torch.autograd.grad(loss, last_weight, retain_graph=True)[0]
                for loss in (reconstruction, terms["alignment"])
            )
            weight = weight * adaptive_weight(reference, own, config.maximum)
        return {**terms, "alignment_weight": weight, "total": reconstruction + weight * terms["alignment"]}
