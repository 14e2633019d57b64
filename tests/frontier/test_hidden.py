"""Hidden states and velocity losses against direct computations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import randomise
from tiny_runs import AUTOENCODER

from vavae import rng
from vavae.evaluation.features import ImageSet
from vavae.evaluation.tokenizer import Latents
from vavae.flow import FlowConfig, TimeDistribution
from vavae.frontier import hidden
from vavae.frontier.hidden import SeenImages, hidden_records, hidden_states, velocity_loss
from vavae.metrics import MeasurementProtocol, cknna
from vavae.models import Generator, Tokenizer
from vavae.tokenizer import AutoencoderKL, LatentStatistics
from vavae.transformer import LightningDiT, LightningDiTConfig

D = 6  # channels of the teacher
COUNT = 24


def tiny_generator(class_token: int | None = None) -> Generator:
    """A transformer of two blocks on latents of 8 x 4 x 4, in patches of 2."""
    torch.manual_seed(0)
    shape = LightningDiTConfig(4, 2, 8, width=16, depth=2, heads=2, num_classes=3, class_token=class_token)
    tokenizer = Tokenizer(AutoencoderKL(AUTOENCODER), LatentStatistics(torch.zeros(8), torch.ones(8)))
    return Generator(LightningDiT(shape), tokenizer)


def some_images(stream: str = "latents") -> SeenImages:
    values = rng.normal(0, stream, range(COUNT), (8, 4, 4))
    labels = torch.arange(COUNT) % 3
    source = ImageSet("images", COUNT, 8, lambda _: pytest.fail("no pixels are read"))
    latents = Latents(values, labels, None, source)  # type: ignore[arg-type]
    return SeenImages(latents, rng.normal(1, stream, range(COUNT), (D,)))


@pytest.mark.parametrize("class_token", [None, D])
def test_hidden_states_of_one_image(class_token: int | None) -> None:
    generator, images = tiny_generator(class_token), some_images()
    randomise(generator.transformer)
    found = hidden_states(generator, 1, images, seed=4, batch_size=10)
    torch.testing.assert_close(found, hidden_states(generator, 1, images, seed=4, batch_size=COUNT))
    noise = rng.normal(4, "held-out noise", [7], (8, 4, 4))
    options = {}
    if class_token is not None:
        own = rng.normal(4, "held-out class token noise", [7], (D,))
        options["class_token"] = 0.5 * images.features[7:8] + 0.5 * own
    x = 0.5 * images.latents.values[7:8] + 0.5 * noise
    t, nothing = torch.tensor([0.5]), torch.tensor([3])  # the number of "no label"
    with torch.no_grad():
        (tokens,) = generator.transformer(x, t, nothing, hidden_blocks=(1,), **options).hidden
    assert tokens.shape[1] == (4 if class_token is None else 5)
    torch.testing.assert_close(found[7], tokens[0, -4:].mean(dim=0))


def test_velocity_loss_of_a_network_that_predicts_zero() -> None:
    """A new network predicts zero, so the loss is the mean square of data minus noise at any time."""
    images = some_images()
    noise = rng.normal(2, "held-out noise", range(COUNT), (8, 4, 4)).double().numpy()
    expected = np.square(images.latents.values.double().numpy() - noise).mean()
    losses = [velocity_loss(tiny_generator(token), FlowConfig(), images, 2, 10) for token in (None, D)]
    assert losses == pytest.approx([expected, expected], rel=1e-6)


def test_velocity_loss_has_the_labels_and_the_times_of_the_flow() -> None:
    generator, images = tiny_generator(), some_images()
    randomise(generator.transformer)
    flow = FlowConfig(times=TimeDistribution("logit_normal", mean=1.0))
    t = flow.times.at(2, torch.arange(COUNT))
    noise = rng.normal(2, "held-out noise", range(COUNT), (8, 4, 4))
    mix = t.view(-1, 1, 1, 1)
    with torch.no_grad():
        predicted = generator.transformer(mix * images.latents.values + (1 - mix) * noise, t, images.latents.labels)
    expected = (predicted - (images.latents.values - noise)).double().square().mean()
    assert velocity_loss(generator, flow, images, 2, COUNT) == pytest.approx(float(expected), rel=1e-5)
    assert velocity_loss(generator, FlowConfig(), images, 2, COUNT) != pytest.approx(float(expected), rel=1e-2)


def test_records_compare_test_images_with_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is fitted to training images; CKNNA is of ten neighbors, among the test images."""
    generator, train, test = tiny_generator(), some_images("train"), some_images("test")
    randomise(generator.transformer)
    asked = []
    monkeypatch.setattr(hidden, "linear_probe", lambda *sets: asked.append(sets) or 0.5)
    protocol = MeasurementProtocol(COUNT, seed=3)
    probe, agreement, loss = hidden_records(generator, FlowConfig(), 2, train, test, protocol, 8)
    states = [hidden_states(generator, 2, images, 3, 8) for images in (train, test)]
    ((seen, labels, held_out, wanted),) = asked
    assert torch.equal(seen, states[0]) and torch.equal(held_out, states[1])
    assert labels is train.latents.labels and wanted is test.latents.labels
    assert agreement.value == pytest.approx(cknna(states[1], test.features, 10), abs=1e-12)
    assert (probe.value, loss.value) == (0.5, velocity_loss(generator, FlowConfig(), test, 3, 8))
    assert probe.protocol == replace(protocol, preprocessing="mean token after block 2, t 0.5, no label")
    assert loss.protocol == protocol
