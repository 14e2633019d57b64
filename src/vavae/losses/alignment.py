"""The vision-foundation-model loss: latents aligned with a frozen teacher's features (arXiv 2501.01423, section 4)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import resample_grid


@dataclass(frozen=True)
class AlignmentConfig:
    """The alignment term; the defaults are those of the published variants.

    Attributes:
        enabled: whether the latent is aligned with a teacher at all.
        weight: factor of the term, on top of the adaptive weight.
        adaptive: balance the gradient with the reconstruction's at the encoder's last layer.
        maximum: upper bound of the adaptive weight.
        cos_margin: cosine distance below which a position costs nothing (m1 of the paper).
        distance_margin: difference of two similarities below which a pair costs nothing (m2).
        cos_weight: factor of the marginal cosine similarity loss.
        distance_weight: factor of the marginal distance-matrix similarity loss.
        projection: what the learned 1×1 projection maps: the latent to the teacher's width (published), or
            the teacher's features to the latent's.
        train_projection: whether the projection learns; published fine-tuning may have frozen it.
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
        for name in ("weight", "maximum", "cos_margin", "distance_margin", "cos_weight", "distance_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"alignment.{name}: {getattr(self, name)} is negative")
        if self.projection not in ("latent_to_teacher", "teacher_to_latent"):
            raise UserError(
                f"alignment.projection: {self.projection!r} is neither 'latent_to_teacher' nor 'teacher_to_latent'"
            )


def _check_pair(z: Tensor, f: Tensor) -> None:
    if z.ndim != 4 or z.shape != f.shape:
        raise UserError(f"alignment: latents {tuple(z.shape)} and features {tuple(f.shape)} differ in shape")


def cosine_alignment(z: Tensor, f: Tensor, margin: float = 0.0) -> Tensor:
    """Marginal cosine similarity loss (mcos, equation 4): mean over positions of relu(1 − margin − cos(z, f)).

    Args:
        z: (B, C, h, w) projected latents.
        f: (B, C, h, w) teacher features.
        margin: cosine distance that is forgiven, in [0, 2].

    Returns:
        0-dim, in [0, 2]. Neither z's nor f's scale matters.
    """
    _check_pair(z, f)
    return F.relu(1.0 - margin - F.cosine_similarity(z, f, dim=1, eps=1e-8)).mean()


def distance_matrix_alignment(z: Tensor, f: Tensor, margin: float = 0.0) -> Tensor:
    """Marginal distance-matrix similarity loss (mdms, equation 6).

    Mean over all pairs of positions within an image of relu(|cos(zᵢ, zⱼ) − cos(fᵢ, fⱼ)| − margin).

    Args:
        z: (B, C, h, w) projected latents.
        f: (B, D, h, w) teacher features.
        margin: difference of similarities that is forgiven, in [0, 2].

    Returns:
        0-dim, in [0, 2]. Neither scales nor rotations of z or f matter.
    """
    if z.ndim != 4 or z.shape[0] != f.shape[0] or z.shape[2:] != f.shape[2:]:
        raise UserError(f"alignment: latents {tuple(z.shape)} and features {tuple(f.shape)} differ in grid")
    similarities = []
    for x in (z, f):
        tokens = F.normalize(x.flatten(2), dim=1, eps=1e-12)  # (B, C, h*w)
        similarities.append(tokens.transpose(1, 2) @ tokens)  # (B, h*w, h*w)
    return F.relu((similarities[0] - similarities[1]).abs() - margin).mean()


class AlignmentLoss(nn.Module):
    """The alignment term with its learned projection `linear_proj`.

    Args:
        config: margins, weights, direction of the projection.
        latent_channels: channels of the latent.
        teacher_channels: channels of the teacher's features.
    """

    def __init__(self, config: AlignmentConfig, latent_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.config = config
        if config.projection == "latent_to_teacher":
            self.linear_proj = nn.Conv2d(latent_channels, teacher_channels, 1, bias=False)
        else:
            self.linear_proj = nn.Conv2d(teacher_channels, latent_channels, 1)
        self.teacher_channels = teacher_channels
        self.linear_proj.requires_grad_(config.train_projection)

    def project(self, latents: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one space: latents (B, C, h, w), features (B, D, h', w') -> two tensors of one shape."""
        if features.ndim != 4 or features.shape[:2] != (len(latents), self.teacher_channels):
            raise UserError(
                f"teacher features: shape ({len(latents)}, {self.teacher_channels}, h, w) is needed, "
                f"not {tuple(features.shape)}"
            )
        features = resample_grid(features.to(latents.dtype), (latents.shape[2], latents.shape[3]))
        if self.config.projection == "latent_to_teacher":
            return self.linear_proj(latents), features
        return latents, self.linear_proj(features)

    def forward(self, latents: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Terms for sampled latents (B, C, h, w) and teacher features (B, D, h', w').

        Returns:
            `cosine`, `distance_matrix`, and `alignment`, their weighted sum; each 0-dim.
        """
        config = self.config
        # cosines of nearly parallel vectors need float32, so autocast stays out
        with torch.autocast(latents.device.type, enabled=False):
            z, f = self.project(latents, features)
            cosine = cosine_alignment(z, f, config.cos_margin)
            distance = distance_matrix_alignment(z, f, config.distance_margin)
        return {
            "cosine": cosine,
            "distance_matrix": distance,
            "alignment": config.distance_weight * distance + config.cos_weight * cosine,
        }
