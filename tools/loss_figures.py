"""Draw the figures of docs/losses.md from the package's own functions: python tools/loss_figures.py [FOLDER]"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vavae.flow import TimeDistribution, shifted_times
from vavae.flow.loss import velocity_loss
from vavae.losses import adaptive_weight, cosine_alignment, distance_matrix_alignment
from vavae.report.figures import LegendLine, standalone
from vavae.report.svg import CLASS_COLORS, DASHES, draw_svg

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
SIGNS = ("━━", "╍╍", "┅┅")
Curve = tuple[str, Tensor, Tensor]


def figure(title: str, x: str, y: str, curves: Sequence[Curve], logarithmic: bool = False, points: bool = False) -> str:
    """Draw curves (name, x, y) with a legend; return a file's SVG."""

    def draw(canvas) -> None:  # type: ignore[no-untyped-def]
        axes = canvas.add_axes((0.13, 0.17, 0.84, 0.79))
        for i, (_, along, values) in enumerate(curves):
            axes.plot(
                along.numpy(),
                values.numpy(),
                color=CLASS_COLORS[i],
                linestyle="" if points else DASHES[i],
                marker="o" if points else "",
                markersize=3.2,
                linewidth=1.9,
            )
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.minorticks_off()
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    signs = ("●",) * 3 if points else SIGNS
    return standalone(
        draw_svg(draw, 5.2, 2.9), title, [LegendLine(i, signs[i], name) for i, (name, _, _) in enumerate(curves)]
    )


def direction_at(cosine: float | Tensor) -> Tensor:
    """Return unit vectors (2,) at the given cosine to (1, 0)."""
    cosine = torch.as_tensor(cosine)
    return torch.stack((cosine, (1 - cosine**2).clamp(min=0).sqrt()))


def margin_cosine() -> str:
    """Draw the marginal cosine loss of one position."""
    cosines = torch.linspace(-1, 1, 201)
    feature = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    curves = []
    for margin in (0.0, 0.25, 0.5):
        cost = [cosine_alignment(direction_at(c).view(1, 2, 1, 1), feature, margin) for c in cosines]
        curves.append((f"margin {margin:g}", cosines, torch.stack(cost)))
    return figure("Marginal cosine similarity", "cosine of latent and teacher feature", "cost", curves)


def margin_distance_matrix() -> str:
    """Draw the marginal distance-matrix loss of one pair of positions whose teacher features have cosine 0.5."""
    cosines = torch.linspace(-1, 1, 201)
    first = torch.tensor([1.0, 0.0])
    features = torch.stack((first, direction_at(0.5)), dim=1).view(1, 2, 1, 2)
    curves = []
    for margin in (0.0, 0.1, 0.25):
        latents = [torch.stack((first, direction_at(c)), dim=1).view(1, 2, 1, 2) for c in cosines]
        # The mean counts the pair twice, and each position with itself, which costs nothing: 2 of 4.
        cost = [2 * distance_matrix_alignment(z, features, margin) for z in latents]
        curves.append((f"margin {margin:g}", cosines, torch.stack(cost)))
    return figure(
        "Marginal distance matrix, one pair", "cosine of the pair's latents (of its features: 0.5)", "cost", curves
    )


def adaptive() -> str:
    """Draw the gradient of a term before and after the adaptive weight; the reconstruction's gradient has norm 1."""
    norms = torch.logspace(-7, 3, 201)
    weights = torch.stack([adaptive_weight(torch.ones(1), norm.view(1), 1e4) for norm in norms])
    curves = [("term alone", norms, norms), ("weighted", norms, weights * norms), ("weight", norms, weights)]
    return figure(
        "Adaptive weight, maximum 10⁴", "norm of the term's gradient (reconstruction: 1)", "norm, weight", curves, True
    )


def velocity_direction() -> str:
    """Draw both terms of the velocity loss against the angle of a prediction."""
    angles = torch.linspace(0, 180, 181)
    target = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(181, 2, 1, 1)
    unit = direction_at(torch.cos(torch.deg2rad(angles))).T.reshape(181, 2, 1, 1)
    curves = [
        ("direction", angles, velocity_loss(unit, target)["direction"]),
        ("mse, half as long", angles, velocity_loss(0.5 * unit, target)["mse"]),
        ("mse, twice as long", angles, velocity_loss(2 * unit, target)["mse"]),
    ]
    return figure("Velocity direction", "angle of prediction and target in degrees", "cost", curves)


def logit_normal_times() -> str:
    """Draw densities of training times: the slope of their cumulative distributions."""
    u = torch.linspace(0.0005, 0.9995, 2000, dtype=torch.float64)
    curves = []
    for name, distribution in (
        ("logit-normal (0, 1)", TimeDistribution()),
        ("logit-normal (−1, 1)", TimeDistribution(mean=-1.0)),
        ("uniform", TimeDistribution(kind="uniform")),
    ):
        t = distribution.from_uniform(u)
        curves.append((name, (t[1:] + t[:-1]) / 2, u.diff() / t.diff()))
    return figure("Training times", "time, from noise (0) to data (1)", "density", curves)


def time_shift() -> str:
    """Draw the time grids of sampling."""
    steps = torch.arange(25)
    curves = [(f"shift {shift:g}", steps, shifted_times(25, shift)) for shift in (1.0, 0.3, 0.1)]
    return figure("Time grid of 25 points", "grid point", "time, from noise to data", curves, points=True)


FIGURES = {
    "loss-margin-cosine": margin_cosine,
    "loss-margin-distance-matrix": margin_distance_matrix,
    "loss-adaptive-weight": adaptive,
    "loss-velocity-direction": velocity_direction,
    "loss-logit-normal-times": logit_normal_times,
    "loss-time-shift": time_shift,
}


def main(folder: Path = PICTURES) -> None:
    """Write all figures into `folder`."""
    for name, draw in FIGURES.items():
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
