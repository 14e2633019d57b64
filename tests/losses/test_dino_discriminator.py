"""The DINO discriminator and its losses against numbers of the published implementation (bytetriper/RAE at a4d18c4)."""

from typing import Any

import pytest
import torch
from golden_next import assert_close, fill, load, pixels, vit_decoder
from torch import Tensor

from vavae.losses.adaptive import adaptive_weight
from vavae.losses.adversarial import discriminator_hinge_loss, generator_loss
from vavae.losses.dino_discriminator import DinoDiscriminator, DinoViT, diff_augment, quantized
from vavae.tokenizer import ViTDecoder


@pytest.fixture(scope="module")
def golden() -> tuple[DinoDiscriminator, ViTDecoder, dict[str, Tensor], dict[str, Any]]:
    tensors, config, weights = load("rae_objective")
    recipe = config["discriminator"]["recipe"]
    dino = DinoViT(recipe["embed_dim"], recipe["depth"], recipe["num_heads"], recipe["patch_size"])
    fill(dino, weights["dino"])
    discriminator = DinoDiscriminator(dino, tuple(recipe["key_depths"]), config["discriminator"]["ks"]).eval()
    stored = {name.removeprefix("disc."): value for name, value in tensors.items() if name.startswith("disc.")}
    missing, unexpected = discriminator.load_state_dict({**weights["heads"], **stored}, strict=False)
    assert not unexpected and all(name.startswith("dino.") for name in missing)
    decoder = vit_decoder(config, weights["decoder"])
    return discriminator, decoder, tensors, config


def reconstructed(golden: Any) -> Tensor:
    """Reconstructions in [0, 1]."""
    _, decoder, tensors, config = golden
    return pixels(decoder(tensors["latents"]), config)


def test_logits_and_losses(golden: Any) -> None:
    discriminator, _, tensors, _ = golden
    with torch.no_grad():
        fake, real = 2 * reconstructed(golden) - 1, 2 * tensors["images"] - 1
        logits_fake, logits_real, logits_discrete = (discriminator(x) for x in (fake, real, quantized(fake)))
    assert_close(logits_fake, tensors["logits_fake"], 3e-5)
    assert_close(logits_real, tensors["logits_real"], 3e-5)
    assert_close(logits_discrete, tensors["logits_fake_discrete"], 3e-5)
    assert_close(generator_loss(logits_fake), tensors["generator_loss"], 1e-4)
    assert_close(discriminator_hinge_loss(logits_real, logits_discrete), tensors["discriminator_loss"], 1e-4)


@pytest.mark.parametrize("setting", ["plain", "perceptual", "clamped"])
def test_adaptive_weight_and_total(golden: Any, setting: str) -> None:
    discriminator, decoder, tensors, config = golden
    reconstruction = reconstructed(golden)
    l1 = (reconstruction - tensors["images"]).abs().mean()
    stand_in = (2 * reconstruction - 2 * tensors["images"]).square().mean()
    total = l1 + config["perceptual_weight"][setting] * stand_in
    generator = generator_loss(discriminator(2 * reconstruction - 1))
    last = decoder.decoder_pred.weight
    gradients = [torch.autograd.grad(term, last, retain_graph=True)[0] for term in (total, generator)]
    weight = adaptive_weight(*gradients, config["max_d_weight"][setting], eps=1e-6)
    assert_close(weight, tensors[f"{setting}.adaptive_weight"], 1e-4)
    total = total + config["disc_weight"] * weight * generator
    assert_close(total.detach(), tensors[f"{setting}.total"], 1e-4)
    (gradient,) = torch.autograd.grad(total, last)
    assert_close(gradient, tensors[f"{setting}.grad.decoder_pred.weight"], 1e-4)


def test_only_the_heads_learn() -> None:
    discriminator = DinoDiscriminator(DinoViT(8, 1, 2, 112), (0,))
    trained = {name for name, parameter in discriminator.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("heads.") for name in trained)


def test_augmentation_keeps_the_image_at_its_neutral_numbers() -> None:
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    neutral = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5]).expand(2, 5)
    torch.testing.assert_close(diff_augment(images, neutral), images)


def test_augmentation_moves_by_an_eighth_at_most() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[:, :, 8, 8] = 1
    places = set()
    for row in torch.linspace(0, 0.999, 11).tolist():
        moved = diff_augment(image, torch.tensor([[0.5, 0.5, 0.5, row, 0.0]]))
        places.add(tuple((moved[0, 0] > 0.5).nonzero()[0].tolist()))
    assert places == {(r, 10) for r in range(6, 11)}  # reading a window further up moves the image down


def test_augmentation_moves_before_it_colors() -> None:
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    moved = diff_augment(images, torch.tensor([[0.5, 0.5, 0.5, 0.0, 0.5]]))
    assert moved[:, :, :2].abs().max() == 0  # two rows of zeros
    numbers = torch.tensor([0.9, 0.2, 0.7, 0.5, 0.5])
    both = diff_augment(images, torch.cat([numbers[:3], torch.tensor([0.0, 0.5])])[None])
    torch.testing.assert_close(both, diff_augment(moved, numbers[None]))


def test_augmentation_has_gradients_and_its_own_ranges() -> None:
    images = torch.rand(1, 3, 8, 8).requires_grad_()
    bright = diff_augment(images, torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.5]]))
    torch.testing.assert_close(bright, images + 0.5)
    gray = diff_augment(images, torch.tensor([[0.5, 0.0, 0.5, 0.5, 0.5]]))
    assert (gray - gray.mean(1, keepdim=True)).abs().max() < 1e-6
    bright.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
