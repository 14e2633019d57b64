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
        better: Which way a good run goes; None where neither is good in itself.
        detail: Whether it is shown among the details rather than the main curves.
    """

    title: str
    meaning: str
    better: Better = None
    detail: bool = False


TOKENIZER_TERMS = {
    "total": Term("Total loss", "All terms with their weights: what training minimises.", "lower"),
    "nll": Term("Reconstruction loss", "Pixel and perceptual error together, summed over an image.", "lower", True),
    "pixel": Term("Pixel error", "Mean difference from the original, pixel by pixel.", "lower"),
    "perceptual": Term("Perceptual error", "LPIPS: the difference as a vision network sees it.", "lower"),
    "psnr": Term("PSNR (dB)", "Pixel fidelity of the training batch.", "higher"),
    "kl": Term("KL", "How far the latents are from a standard normal distribution."),
    "alignment": Term("Alignment loss", "Both alignment terms together (the VF loss).", "lower"),
    "cosine": Term("Alignment: cosine", "Each latent against the teacher’s feature at its place.", "lower"),
    "distance_matrix": Term("Alignment: distances", "Likeness between places: latents against teacher.", "lower"),
    "alignment_weight": Term("Alignment weight", "Balances its gradient against reconstruction’s.", None, True),
    "adversarial": Term("Adversarial loss", "Falls when reconstructions pass for originals.", "lower"),
    "discriminator": Term("Discriminator loss", "Telling originals and reconstructions apart.", None, True),
    "adversarial_weight": Term("Adversarial weight", "Balances its gradient against reconstruction’s.", None, True),
    "logits_real": Term("Verdict on originals", "The discriminator’s output: above 0 means real.", None, True),
    "logits_fake": Term("Verdict on reconstructions", "The discriminator’s output: below 0 means made.", None, True),
}

GENERATOR_TERMS = {
    "total": Term("Total loss", "What training minimises: velocity and direction.", "lower"),
    "mse": Term("Velocity error", "Squared error of the predicted velocity.", "lower"),
    "direction": Term("Direction error", "1 − cosine between predicted and true velocity.", "lower"),
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
    ("cosine", "Mean cosine between projected latents and teacher features; 1 is perfect alignment."),
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
        return Term(f"Gradient norm: {name}", "Before clipping; spikes are steps in doubt.", None, True)
    if group == "skipped" and name:
        return Term(f"Skipped steps: {name}", "Share of steps left out as not finite.", "lower", True)
    return Term(key.replace("_", " ").replace("/", ": "), "", None, True)
