"""Titles and meanings of logged terms and metrics, for newcomers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"] | None


@dataclass(frozen=True)
class Term:
    """A logged quantity."""

    title: str  # heading of its curve
    meaning: str  # one short sentence
    detail: bool = False  # whether its curve belongs to the details, below the main curves


TOKENIZER_TERMS = {
    "nll": Term("Reconstruction loss", "Pixel and perceptual error together, summed over an image.", True),
    "pixel": Term("Pixel error", "Mean difference from the original, pixel by pixel."),
    "perceptual": Term("Perceptual error", "LPIPS: difference of a vision network’s features."),
    "psnr": Term("PSNR (dB)", "Pixel fidelity of the training batch."),
    "kl": Term("KL", "Distance of the latents from a standard normal distribution."),
    "alignment": Term("Alignment loss", "Both alignment terms together (the VF loss)."),
    "cosine": Term("Alignment: cosine", "Each latent against the teacher’s feature at its position."),
    "distance_matrix": Term("Alignment: distances", "Similarity between positions: latents against teacher."),
    "alignment_weight": Term("Alignment weight", "Balances its gradient against reconstruction’s.", True),
    "total": Term("Total loss", "All terms with their weights: what training minimizes."),
    "adversarial": Term("Adversarial loss", "Falls when the discriminator takes reconstructions for originals."),
    "discriminator": Term("Discriminator loss", "Low when it separates originals from reconstructions.", True),
    "adversarial_weight": Term("Adversarial weight", "Balances its gradient against reconstruction’s.", True),
    "logits_real": Term("Logit of originals", "The discriminator’s output: above 0 means real.", True),
    "logits_fake": Term("Logit of reconstructions", "The discriminator’s output: below 0 means reconstructed.", True),
}

GENERATOR_TERMS = {
    "mse": Term("Velocity error", "Squared error of the predicted velocity."),
    "direction": Term("Direction error", "1 − cosine between predicted and true velocity."),
    "class_token": Term("Class token error", "Squared error of the velocity of the teacher’s class token (REG)."),
    "total": Term("Total loss", "What training minimizes: all terms with their weights."),
}

_MEANINGS = {
    "psnr": "Pixel fidelity in decibels; 3 dB more is half the squared error.",
    "ssim": "Similarity of local structure; 1 is identical.",
    "lpips": "Difference of a vision network’s features; 0 is identical.",
    "fréchet": "Distance between two sets of images, in the statistics of a vision network’s features.",
    "gini": "Unevenness of the latents in their space; 0 is perfectly even.",
    "entropy": "Evenness of the latents in their space; 1 is perfectly even.",
    "density": "Unevenness of the density of latents; 0 is perfectly even.",
    "linear probe": "Share of images whose class a linear classifier finds from the latents.",
    "k-nn": "Share of images whose nearest training images, by distance of latents, have the same class.",
    "cosine": "Cosine between the teacher’s features and a linear map of the latents; 1 is perfect.",
    "distance-matrix": "Difference of the similarities between positions, latents against teacher; 0 is agreement.",
    "cknna": "Agreement of latents and teacher on the nearest neighbors of images; 1 is agreement.",
}


FRONTIER_TERMS = {
    "d": Term("d", "Channels of the latent: numbers at each position of its grid."),
    "teacher": Term("teacher", "Vision model whose features the latents should resemble; none: without alignment."),
    "rfid": Term("rFID, rFD", "Fréchet distance between test images and their reconstructions."),
    "gfid": Term("gFID, gFD", "Fréchet distance between training images and samples of the generator."),
    "frechet": Term("FID, FD", f"{_MEANINGS['fréchet']} FID: the network is Inception. FD: another network."),
    "psnr": Term("PSNR", _MEANINGS["psnr"]),
    "lpips": Term("LPIPS", _MEANINGS["lpips"]),
    "ssim": Term("SSIM", _MEANINGS["ssim"]),
    "probe": Term("probe", _MEANINGS["linear probe"]),
    "agreement": Term("cosine", _MEANINGS["cosine"]),
    "cv": Term("density CV", "Coefficient of variation of the density of latents in a t-SNE map; 0 is perfectly even."),
    "gini": Term("Gini", _MEANINGS["gini"]),
    "entropy": Term("norm. entropy", _MEANINGS["entropy"]),
    "t-sne": Term("t-SNE", "Places points in the plane so that neighbors stay neighbors; far distances mean nothing."),
    "correlation": Term(
        "Pearson, Spearman (rank)",
        "Correlation of the values and of their ranks: 1 if both rise together, −1 if one falls as the other rises.",
    ),
    "spread": Term("±", "Standard deviation over the seeds; for a correlation, its standard error."),
    "seed": Term("seed", "Start of a training’s random numbers; runs that differ by it show the chance in a number."),
    "size": Term("M/1, S/1, …", "Size of the generator and its patch: latent positions per side of a token."),
    "guidance": Term("guidance", "Classifier-free: amplifies the influence of the class on a sample; 1 is off."),
}

# By table: terms that no other table has.
TABLE_TERMS = {
    "latents": {
        "latent": Term("latent", "What the generator learns: an aligned latent, or the teacher’s own features (RAE)."),
        "transformer": Term("transformer", "Size and kind of the generator; DiT^DH has a wider head."),
    },
    "alignment": {
        "method": Term(
            "method: none, REPA, iREPA, REG, joint",
            "How the transformer is aligned with a vision model while it trains: its tokens predict the model’s "
            "features (REPA; iREPA by a convolution, features normalized), it also denoises the model’s class token "
            "(REG), or the tokenizer learns along (joint, REPA-E).",
        ),
        "hidden_probe": Term("probe", "Share of images whose class a linear classifier finds from hidden states."),
        "cknna": Term(
            "CKNNA", "Agreement of hidden states and teacher on the nearest neighbors of images; 1 is agreement."
        ),
        "velocity": Term(
            "velocity loss", "Squared error of the predicted velocity on images that training did not see."
        ),
    },
    "table1": {
        "up-to": Term("up to", "Table 1 adds one change per row; each row has all changes of the rows above."),
        "dit": Term("DiT", "Diffusion transformer: denoises latents that are cut into tokens."),
        "flow": Term("rectified flow", "The generator learns the velocity on straight lines from noise to latents."),
        "batch": Term("batch, learning rate", "Images per training step, and the length of the step."),
        "beta2": Term("AdamW β₂", "How slowly the optimizer’s mean of squared gradients changes."),
        "times": Term(
            "logit-normal times", "Trains more often on the middle between noise and latent than on its ends."
        ),
        "direction": Term(
            "velocity direction loss", "1 − cosine between predicted and true velocity, added to the loss."
        ),
        "swiglu": Term("SwiGLU", "Feed-forward layer in which one half of the values gates the other."),
        "rmsnorm": Term("RMSNorm", "Normalization by the root mean square, without subtracting the mean."),
        "rope": Term("RoPE", "Encodes positions by rotating queries and keys in attention."),
    },
    "table5": {
        "loss": Term(
            "loss: full, mcos, mdms, margins",
            "The alignment loss (VF loss) and its parts: mcos compares each latent with the teacher’s feature at its "
            "position, mdms the similarities between positions; differences within the margins cost nothing.",
        ),
    },
}


def metric_meaning(name: str) -> str:
    """Return one sentence about a metric, by words of its name; "" if it is unknown."""
    lowered = name.lower()
    return next((meaning for word, meaning in _MEANINGS.items() if word in lowered), "")


def term_of(key: str, terms: Mapping[str, Term]) -> Term:
    """Return the term of a key in a log; unknown keys become a heading."""
    if key in terms:
        return terms[key]
    group, _, name = key.partition("/")
    if group == "gradient_norm" and name:
        return Term(f"Gradient norm: {name}", "Before clipping; spikes mark doubtful steps.", True)
    if group == "skipped" and name:
        return Term(f"Skipped steps: {name}", "Share of steps skipped because they were not finite.", True)
    return Term(key.replace("_", " ").replace("/", ": "), "", True)
