"""Draw the figures of losses in docs/ from the package's own functions.

python tools/loss_figures.py [FOLDER]
python tools/loss_figures.py measure  # tables that need weights: LPIPS, and cosines of DINOv2's features
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.data import demo_pixels, to_tensor, to_uint8
from vavae.flow import TimeDistribution, flow_matching_loss, shifted_times
from vavae.flow.loss import velocity_loss
from vavae.grids import to_tokens
from vavae.losses import adaptive_weight, cosine_alignment, distance_matrix_alignment
from vavae.losses.adversarial import discriminator_hinge_loss, generator_loss
from vavae.losses.perceptual import LPIPS
from vavae.losses.pixel import pixel_error
from vavae.losses.representation import spatial_normalize
from vavae.report.figures import LegendLine, standalone
from vavae.report.svg import CLASS_COLORS, DASHES, draw_svg
from vavae.teachers import load_teacher
from vavae.tokenizer.gaussian import DiagonalGaussian

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
PICTURED = 16  # a dog
MEASURED = 16  # test images of the demo
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
        else:
            axes.locator_params(nbins=8)
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


def changed(images: Tensor) -> dict[str, Tensor]:
    """Change images (N, 3, H, W) in four ways, each with the mean absolute error of a shift by one pixel."""
    shifted = torch.cat((images[..., :1], images[..., :-1]), dim=-1)
    ways = {
        "brighter": images + 1,
        "shifted": shifted,
        "noisy": images + torch.randn(images.shape, generator=torch.Generator().manual_seed(0)),
        "blurred": F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1),
    }
    error = {name: pixel_error(images, way).mean((1, 2, 3), keepdim=True) for name, way in ways.items()}
    return {name: images + (way - images) * error["shifted"] / error[name] for name, way in ways.items()}


def pixel_pictures() -> str:
    """Draw an image and its changes of equal pixel error."""
    image = to_tensor(demo_pixels("test")[PICTURED : PICTURED + 1])
    pictures = {"original": image} | changed(image)

    def draw(canvas) -> None:  # type: ignore[no-untyped-def]
        for i, (name, picture) in enumerate(pictures.items()):
            axes = canvas.add_axes((0.012 + 0.198 * i, 0.18, 0.184, 0.62))
            axes.imshow(to_uint8(picture)[0].numpy(), interpolation="none")
            axes.set_axis_off()
            axes.set_title(name, fontsize=10)
            axes.text(0.5, -0.2, f"{pixel_error(image, picture).mean():.3f}", transform=axes.transAxes, ha="center")

    return standalone(draw_svg(draw, 5.2, 1.54), "Equal pixel errors")


def kl() -> str:
    """Draw the KL divergence of one number of the latent."""
    deviations = torch.linspace(0.02, 3, 150)
    curves = []
    for mean in (0.0, 1.0, 2.0):
        moments = torch.stack((torch.full_like(deviations, mean), 2 * deviations.log()), dim=1)
        curves.append((f"mean {mean:g}", deviations, DiagonalGaussian(moments.view(-1, 2, 1, 1)).kl()))
    return figure("KL divergence to N(0, 1)", "standard deviation of the posterior", "nats", curves)


def hinge() -> str:
    """Draw the losses of discriminator and autoencoder over the discriminator's logit of one patch."""
    logits = torch.linspace(-3, 3, 121)
    free = torch.tensor(9.0)  # a logit of the other kind that costs nothing
    curves = [
        ("discriminator: real", logits, torch.stack([discriminator_hinge_loss(d, -free) for d in logits])),
        ("decoded", logits, torch.stack([discriminator_hinge_loss(free, d) for d in logits])),
        ("autoencoder", logits, torch.stack([generator_loss(d) for d in logits])),
    ]
    return figure("Hinge loss of one patch", "logit D of the patch", "loss", curves)


def contrastive() -> str:
    """Draw contrastive flow matching for predictions between the own velocity and that of the other image."""
    places = torch.linspace(-1, 1, 101)
    data = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)  # without noise, data are the velocities
    curves = []
    for weight in (0.0, 0.05, 0.2):
        loss = [
            flow_matching_loss(
                lambda x, t, labels, place=place: (1 - place) * data + place * data.flip(0),
                data,
                torch.zeros(2, dtype=torch.long),
                noise=torch.zeros_like(data),
                t=torch.zeros(2),
                direction_weight=0,
                contrastive=weight,
            )["total"][0]
            for place in places
        ]
        curves.append((f"contrastive {weight:g}", places, torch.stack(loss)))
    return figure("Contrastive flow matching", "prediction: own velocity (0), other image's (1)", "loss", curves)


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
    "loss-pixel": pixel_pictures,
    "loss-kl": kl,
    "loss-hinge": hinge,
    "loss-margin-cosine": margin_cosine,
    "loss-margin-distance-matrix": margin_distance_matrix,
    "loss-adaptive-weight": adaptive,
    "loss-velocity-direction": velocity_direction,
    "loss-contrastive": contrastive,
    "loss-logit-normal-times": logit_normal_times,
    "loss-time-shift": time_shift,
}


def perceptual_rows() -> list[str]:
    """Measure pixel error and LPIPS of changed images: rows of docs/losses.md."""
    images = to_tensor(demo_pixels("test")[:MEASURED])
    lpips = LPIPS.pretrained()
    features = lpips.extract(images)
    rows = []
    for name, way in changed(images).items():
        perceptual = lpips.distance(features, lpips.extract(way)).mean()
        rows.append(f"| {name} | {pixel_error(images, way).mean():.3f} | {perceptual:.3f} |")
    return rows


def normalization_rows() -> list[str]:
    """Measure the mean cosine of two tokens of an image in DINOv2's features: rows of docs/alignment.md."""
    with torch.no_grad():
        grid = load_teacher("dinov2-small-focus", input_size=224)(to_tensor(demo_pixels("test")[:MEASURED])).grid
    features = to_tokens(grid)
    ways = {
        "`none`": features,
        "`zscore`, `alpha` 0.6": spatial_normalize(features),
        "`zscore`, `alpha` 1": spatial_normalize(features, 1),
    }
    rows = []
    for name, way in ways.items():
        tokens = F.normalize(way, dim=-1)
        similarity = tokens @ tokens.mT
        count = similarity.shape[1]
        others = (similarity.sum((1, 2)) - count) / (count * (count - 1))  # without each token's cosine with itself
        rows.append(f"| {name} | {others.mean():.2f} |")
    return rows


def main(folder: Path = PICTURES) -> None:
    """Write all figures into `folder`."""
    for name, draw in FIGURES.items():
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        print("\n".join([*perceptual_rows(), *normalization_rows()]))
    else:
        main(*map(Path, sys.argv[1:]))
