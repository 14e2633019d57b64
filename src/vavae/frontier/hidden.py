"""Measure what hidden states of a generator say about images, and its velocity loss on held-out images.

The input of all generators has the same noise and times. Where latents differ, as after joint training, velocity losses
do not compare.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vavae import rng
from vavae.device import to_float64
from vavae.evaluation.records import make_records
from vavae.evaluation.tokenizer import Latents
from vavae.flow import FlowConfig, path_by_name
from vavae.flow.class_token import NoisedClassToken
from vavae.metrics import MeasurementProtocol, MetricRecord, cknna, linear_probe
from vavae.models import Generator
from vavae.stages.hidden_alignment import HiddenTokens

TIME = 0.5  # of the noised latents whose hidden states are measured
NEIGHBORS = 10


@dataclass(frozen=True, eq=False)
class SeenImages:
    """Some images, as a generator and a teacher see them.

    Attributes:
        latents: Their latents in the generator's normalization, with labels.
        features: (N, D) the teacher's feature of each whole image, which is REG's class token.
    """

    latents: Latents
    features: Tensor


@torch.no_grad()
def hidden_states(generator: Generator, block: int, images: SeenImages, seed: int, batch_size: int) -> Tensor:
    """Return the mean over the latent's tokens after a block, (N, width) float32, at `TIME` and without a label.

    A label would be in the hidden states and decide the probe. A class token is noised to the same time.
    """
    kept, found = HiddenTokens(generator.transformer, block), []
    tokens = math.prod(generator.config.grid)
    for rows, x, noise, class_token in _batches(generator, images, seed, batch_size):
        t = torch.full((len(rows),), TIME, device=generator.device)
        path = path_by_name(generator.path, generator.floor)
        model = kept if class_token is None else NoisedClassToken(kept, *class_token, t, path)
        model(path.interpolate(t, noise, x)[0], t, torch.full_like(rows, generator.num_classes, device=t.device))
        found.append(kept.tokens[:, -tokens:].float().mean(dim=1).cpu())
    return torch.cat(found)


@torch.no_grad()
def velocity_loss(generator: Generator, flow: FlowConfig, images: SeenImages, seed: int, batch_size: int) -> float:
    """Return the mean squared error of the prediction, with labels, at one time per image as in training."""
    flow, total = flow.for_latents(generator.latent_shape), 0.0
    for rows, x, noise, class_token in _batches(generator, images, seed, batch_size):
        t = flow.times.at(seed, rows, device=generator.device)
        labels = images.latents.labels[rows].to(generator.device)
        drop = torch.zeros(len(rows), dtype=torch.bool, device=generator.device)
        terms = flow.loss(generator.transformer, x, labels, noise, t, drop, class_token)
        total += float(to_float64(terms["mse"]).sum())
    return total / len(images.features)


def _batches(
    generator: Generator, images: SeenImages, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]]:
    """Yield indices, latents, their noise, and class tokens with their noise (None without), on the device."""
    device, channels = generator.device, generator.config.class_token
    for rows in torch.arange(len(images.features)).split(batch_size):
        noise = rng.normal(seed, "held-out noise", rows, generator.latent_shape, device)
        tokens = None
        if channels is not None:
            own = rng.normal(seed, "held-out class token noise", rows, (channels,), device)
            tokens = images.features[rows].to(device), own
        yield rows, images.latents.values[rows].to(device), noise, tokens


def hidden_records(
    generator: Generator,
    flow: FlowConfig,
    block: int,
    train: SeenImages,
    test: SeenImages,
    protocol: MeasurementProtocol,
    batch_size: int,
) -> list[MetricRecord]:
    """Return probe and CKNNA of hidden states of test images, and the velocity loss.

    The probe is fitted to the hidden states of `train`. CKNNA compares with the teacher's features of the same images.
    """
    seed = protocol.seed or 0
    seen, held_out = (hidden_states(generator, block, images, seed, batch_size) for images in (train, test))
    probe = linear_probe(seen, train.latents.labels, held_out, test.latents.labels)
    states = replace(protocol, preprocessing=f"mean token after block {block}, t {TIME:g}, no label")
    agreement = cknna(held_out, test.features, NEIGHBORS)
    loss = velocity_loss(generator, flow, test, seed, batch_size)
    return [
        *make_records(
            states, ("linear probe of hidden states", probe, True), ("CKNNA of hidden states", agreement, True)
        ),
        *make_records(protocol, ("held-out velocity loss", loss, False)),
    ]
