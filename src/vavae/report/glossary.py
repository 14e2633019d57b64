"""What logged terms and metrics mean, in words a newcomer understands."""

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"] | None


@dataclass(frozen=True)
class Term:
    """A logged quantity.

    Attributes:
        title: Heading of its curve.
        meaning: One short sentence.
        detail: Whether it is shown among the details rather than the main curves.
    """

    title: str
    meaning: str
    detail: bool = False


TOKENIZER_TERMS = {
    "total": Term("Total loss", "All terms with their weights: what training minimises."),
    "nll": Term("Reconstruction loss", "Pixel and perceptual error together, summed over an image.", True),
    "pixel": Term("Pixel error", "Mean difference from the original, pixel by pixel."),
    "perceptual": Term("Perceptual error", "LPIPS: the difference as a vision network sees it."),
    "psnr": Term("PSNR (dB)", "Pixel fidelity of the training batch."),
    "kl": Term("KL", "How far the latents are from a standard normal distribution."),
    "alignment": Term("Alignment loss", "Both alignment terms together (the VF loss)."),
    "cosine": Term("Alignment: cosine", "Each latent against the teacher’s feature at its place."),
    "distance_matrix": Term("Alignment: distances", "Likeness between places: latents against teacher."),
    "alignment_weight": Term("Alignment weight", "Balances its gradient against reconstruction’s.", True),
    "adversarial": Term("Adversarial loss", "Falls when reconstructions pass for originals."),
    "discriminator": Term("Discriminator loss", "Telling originals and reconstructions apart.", True),
    "adversarial_weight": Term("Adversarial weight", "Balances its gradient against reconstruction’s.", True),
    "logits_real": Term("Verdict on originals", "The discriminator’s output: above 0 means real.", True),
    "logits_fake": Term("Verdict on reconstructions", "The discriminator’s output: below 0 means made.", True),
}

GENERATOR_TERMS = {
    "total": Term("Total loss", "What training minimises: velocity and direction."),
    "mse": Term("Velocity error", "Squared error of the predicted velocity."),
    "direction": Term("Direction error", "1 − cosine between predicted and true velocity."),
}

_METRICS = (
    ("psnr", "Pixel fidelity in decibels; 3 dB more is half the squared error."),
    ("ssim", "Likeness of local structure; 1 is identical."),
    ("lpips", "Difference as a vision network sees it; 0 is identical."),
    ("fid", "Distance between two sets of images, in the statistics of a vision network’s features."),
    ("fréchet", "Distance between two sets of images, in the statistics of a vision network’s features."),
    ("inception score", "Confident and varied class predictions on the samples."),
    ("precision", "Share of samples that look like real images."),
    ("recall", "Share of real images that the samples could have made."),
    ("gini", "Unevenness with which latents fill their space; 0 is perfectly even."),
    ("entropy", "Evenness with which latents fill their space; 1 is perfectly even."),
    ("density", "Unevenness of the density of latents; 0 is perfectly even."),
    ("linear probe", "Share of images whose class a linear classifier reads off the latents."),
    ("k-nn", "Share of images whose class the nearest training images share, by distance of latents."),
    ("cosine", "Cosine between the teacher’s features and what a linear map makes of the latents; 1 is perfect."),
    (
        "distance-matrix",
        "How differently latents and teacher judge which places of an image are alike; 0 is agreement.",
    ),
    ("cknna", "How far latents and teacher agree on which images are nearest neighbours; 1 is agreement."),
    ("cka", "Likeness of two feature spaces up to rotation; 1 is identical."),
    ("throughput", "How fast it ran on this machine."),
    ("images per second", "How fast it ran on this machine."),
    ("parameters", "Trainable numbers of the model."),
)


def tokenizer_term(key: str) -> Term:
    """The term behind a key of the tokenizer's log."""
    return TOKENIZER_TERMS.get(key) or _other(key)


def generator_term(key: str) -> Term:
    """The term behind a key of the generator's log."""
    return GENERATOR_TERMS.get(key) or _other(key)


def metric_meaning(name: str) -> str:
    """One sentence on a metric, found by its name; "" where there is none."""
    lowered = name.lower()
    return next((meaning for word, meaning in _METRICS if word in lowered), "")


def _other(key: str) -> Term:
    group, _, name = key.partition("/")
    if group == "gradient_norm" and name:
        return Term(f"Gradient norm: {name}", "Before clipping; spikes are steps in doubt.", True)
    if group == "skipped" and name:
        return Term(f"Skipped steps: {name}", "Share of steps left out as not finite.", True)
    return Term(key.replace("_", " ").replace("/", ": "), "", True)
