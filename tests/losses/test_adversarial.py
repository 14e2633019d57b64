"""The discriminator: published names, counts, initialization; hinge losses by definition."""

import pytest
import torch

from vavae.errors import UserError
from vavae.losses import AdversarialConfig, DiscriminatorConfig
from vavae.losses.adversarial import PatchDiscriminator, discriminator_hinge_loss, generator_loss


def test_state_dict_is_the_published_one() -> None:
    model = PatchDiscriminator()
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    expected = {
        "main.0.weight": (64, 3, 4, 4),
        "main.0.bias": (64,),
        "main.11.weight": (1, 512, 4, 4),
        "main.11.bias": (1,),
    }
    for i, (narrow, wide) in {2: (64, 128), 5: (128, 256), 8: (256, 512)}.items():
        expected |= {f"main.{i}.weight": (wide, narrow, 4, 4)}
        expected |= {f"main.{i + 1}.{name}": (wide,) for name in ("weight", "bias")}
    assert shapes == expected
    buffers = {f"main.{i}.{name}" for i in (3, 6, 9) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(model.state_dict()) == set(expected) | buffers
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_765_633


def test_256_pixels_give_30_by_30_logits() -> None:
    assert PatchDiscriminator().eval()(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize(("layers", "size", "logits"), [(1, 32, 14), (2, 32, 6), (3, 32, 2), (2, 12, 1), (4, 64, 2)])
def test_small_images_take_fewer_layers(layers: int, size: int, logits: int) -> None:
    model = PatchDiscriminator(DiscriminatorConfig(base_channels=8, layers=layers)).eval()
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 1, logits, logits)


def test_initialization_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator()
    for name, value in model.named_parameters():
        if value.ndim == 4 and value.numel() > 10_000:
            assert value.std().item() == pytest.approx(0.02, rel=0.03), name
            assert abs(value.mean().item()) < 1e-3, name
        elif value.ndim == 1 and name.endswith("weight"):
            assert value.mean().item() == pytest.approx(1.0, abs=0.01), name
            assert value.std().item() == pytest.approx(0.02, rel=0.3), name
    for i in (3, 6, 9):
        assert torch.equal(model.main[i].bias, torch.zeros_like(model.main[i].bias))


def test_hinge_losses_by_definition() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert discriminator_hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0.5 + 2.0) / 3 + (1.0 + 2.0) / 3))
    assert generator_loss(fake).item() == pytest.approx(2 / 3)
    assert discriminator_hinge_loss(torch.full((4,), 1.0), torch.full((4,), -1.0)) == 0


def test_discriminator_learns_to_separate_two_textures() -> None:
    torch.manual_seed(1)
    model = PatchDiscriminator(DiscriminatorConfig(base_channels=8, layers=1))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(60):
        real = torch.randn(8, 3, 16, 16)
        fake = torch.nn.functional.avg_pool2d(torch.randn(8, 3, 18, 18), 3, stride=1) * 3
        loss = discriminator_hinge_loss(model(real), model(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # 1 for an untrained discriminator


def test_bad_settings_are_named() -> None:
    with pytest.raises(UserError, match=r"discriminator\.layers"):
        DiscriminatorConfig(layers=0)
    with pytest.raises(UserError, match=r"discriminator\.layers must be from 1 to 16, got 1000000000"):
        DiscriminatorConfig(layers=10**9)
    with pytest.raises(UserError, match=r"adversarial\.start_images"):
        AdversarialConfig(start_images=-1)
    for early in (-1, 1001):
        with pytest.raises(UserError, match=f"start_images must be from 0 to start_images 1,000, got {early:,}"):
            AdversarialConfig(start_images=1000, discriminator_start_images=early)
