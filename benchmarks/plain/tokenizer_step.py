"""The published tokenizer objective, term by term: one graph, and a backward pass for every gradient.

`TokenizerObjective` must equal it in the tests, and be faster in the benchmark; nothing is shared with it but the
networks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.losses import ObjectiveConfig, TokenizerObjective
from vavae.tokenizer import AutoencoderKL


def _balance(reference: Tensor, term: Tensor, weight: Tensor, maximum: float) -> Tensor:
    (first,) = torch.autograd.grad(reference, weight, retain_graph=True)
    (second,) = torch.autograd.grad(term, weight, retain_graph=True)
    return (first.norm() / (second.norm() + 1e-4)).clamp(0.0, maximum).detach()


def plain_step(
    config: ObjectiveConfig,
    objective: TokenizerObjective,
    autoencoder: AutoencoderKL,
    images: Tensor,
    noise: Tensor,
    features: Tensor | None,
    active: bool,
) -> dict[str, Tensor]:
    """Fill gradients of all three parts and return the terms."""
    batch = len(images)
    zero = images.new_zeros(())
    mean, logvar = autoencoder.quant_conv(autoencoder.encoder(images)).chunk(2, 1)
    logvar = logvar.clamp(-30.0, 20.0)
    z = mean + torch.exp(0.5 * logvar) * noise
    reconstruction = autoencoder.decoder(autoencoder.post_quant_conv(z))

    error = (images - reconstruction).abs()
    perceptual = zero.expand(batch)
    if objective.perceptual is not None:
        perceptual = objective.perceptual(images, reconstruction)
    rec = config.pixel.weight * error + config.perceptual.weight * perceptual.view(-1, 1, 1, 1)
    nll = rec.sum() / batch
    kl = 0.5 * (mean**2 + logvar.exp() - 1.0 - logvar).sum() / batch
    total = nll + config.kl.weight * kl
    terms = {"pixel": error.mean(), "perceptual": perceptual.mean(), "nll": nll, "kl": kl}

    adversarial = config.adversarial
    if active:
        generator = -objective.discriminator(reconstruction).mean()
        weight = torch.tensor(adversarial.weight, dtype=images.dtype)
        if adversarial.adaptive:
            weight = weight * _balance(nll, generator, autoencoder.decoder.conv_out.weight, adversarial.maximum)
        total = total + weight * generator
        terms |= {"adversarial": generator, "adversarial_weight": weight}
    alignment = config.alignment
    if alignment.enabled:
        if alignment.projection == "latent_to_teacher":
            a, b = objective.alignment.linear_proj(z), features
        else:
            a, b = z, objective.alignment.linear_proj(features)
        cosine = F.relu(1 - alignment.cos_margin - F.cosine_similarity(b, a)).mean()
        a, b = F.normalize(a.flatten(2), dim=1), F.normalize(b.flatten(2), dim=1)
        difference = torch.einsum("bci,bcj->bij", a, a) - torch.einsum("bci,bcj->bij", b, b)
        distance = F.relu(difference.abs() - alignment.distance_margin).mean()
        loss = alignment.distance_weight * distance + alignment.cos_weight * cosine
        weight = torch.tensor(alignment.weight, dtype=images.dtype)
        if alignment.adaptive:
            weight = weight * _balance(nll, loss, autoencoder.encoder.conv_out.weight, alignment.maximum)
        total = total + weight * loss
        terms |= {"cosine": cosine, "distance_matrix": distance, "alignment": loss, "alignment_weight": weight}
    terms["total"] = total
    total.backward()

    if active:
        for parameter in objective.discriminator.parameters():
            parameter.grad = None
        real = objective.discriminator(images)
        fake = objective.discriminator(reconstruction.detach())
        loss = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
        loss.backward()
        terms |= {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
    return {name: value.detach() for name, value in terms.items()}
