"""The autoencoder: published names, shapes, counts and numbers; sizes, memory, layouts, precision."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vavae.device import without_values
from vavae.errors import UserError
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL
from vavae.tokenizer.layers import GroupNorm

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = AutoencoderConfig(4, 16, (1, 2, 3), blocks_per_level=1, attention_levels=(2,))


def _small(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(SMALL)


def _images(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("channels", [16, 32, 64])
def test_state_dict_is_the_published_one(channels: int) -> None:
    published = json.loads((GOLDEN / "state_dicts.json").read_text())[f"vavae_f16d{channels}"]
    with torch.device("meta"):
        model = AutoencoderKL(latent_channels=channels)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert len(shapes) == 342
    # published training files also have the alignment's projection, which belongs to the objective here
    assert shapes | {"linear_proj.weight": [1024, channels, 1, 1]} == published["state_dict"]
    for part in ("encoder", "decoder"):
        count = sum(parameter.numel() for parameter in model.get_submodule(part).parameters())
        assert count == published[f"parameters_{part}"]


def test_mar_variant_lacks_decoder_attention_only() -> None:
    with torch.device("meta"):
        full, variant = (
            AutoencoderKL(latent_channels=16, decoder_attention=flag).state_dict().keys() for flag in (True, False)
        )
    assert full - variant == {name for name in full if name.startswith("decoder.up.4.attn.")}
    assert variant <= full


def _fill_by_sine(model: nn.Module) -> None:
    """Fill the weights by the rule of the published numbers."""
    for i, (name, value) in enumerate(sorted(model.state_dict().items())):
        sine = torch.sin(0.37 * torch.arange(value.numel(), dtype=torch.float64) + i).view(value.shape)
        value.copy_(1 + 0.1 * sine if "norm" in name and name.endswith("weight") else 0.05 * sine)


def _sine(shape: tuple[int, ...], step: float) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64)).float().double().view(shape)


@torch.no_grad()
@pytest.mark.slow
def test_full_network_gives_the_published_numbers() -> None:
    """In float64, since these weights amplify the rounding of float32 in the decoder."""
    with without_values():  # initial weights, which take a second
        model = AutoencoderKL()
    _fill_by_sine(model.to_empty(device="cpu"))
    model.double()
    images = _sine((1, 3, 64, 64), 0.013)
    moments = model.encoder(images)
    assert moments.mean().item() == pytest.approx(-0.00136646, abs=2e-8)
    assert moments.abs().mean().item() == pytest.approx(0.07202711, abs=2e-7)
    assert moments.flatten()[0].item() == pytest.approx(-0.0570523, abs=2e-6)
    posterior = model.encode(images)
    assert posterior.mean.flatten()[0].item() == pytest.approx(0.1020486, abs=1e-7)
    assert posterior.logvar.flatten()[0].item() == pytest.approx(-0.0314992, abs=1e-7)
    assert posterior.kl().item() == pytest.approx(1.8605465, abs=2e-6)
    decoded = model.decode(_sine((1, 32, 4, 4), 0.1))
    assert decoded.mean().item() == pytest.approx(-0.07996918, abs=5e-6)
    assert decoded.abs().mean().item() == pytest.approx(0.09377438, abs=1e-6)
    assert decoded.flatten()[0].item() == pytest.approx(0.0396957, abs=2e-5)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 48), (4, 20)])
def test_sizes_that_the_factor_divides(height: int, width: int) -> None:
    model = _small()
    assert model.factor == 4
    images = _images(2, height, width)
    assert model.encode(images).mean.shape == (2, 4, height // 4, width // 4)
    assert model(images).shape == images.shape


def test_images_of_a_batch_do_not_mix() -> None:
    model = _small().double().eval()
    images = _images(3, 16, 16).double()
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-10, atol=1e-10)


def test_stem_is_translation_equivariant() -> None:
    """Padding on the right and bottom only, as published, keeps steps of two pixels aligned."""
    model = _small().double()
    images = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    images[..., 12:20, 12:20] = _images(1, 8, 8).double()
    stem = nn.Sequential(model.encoder.conv_in, model.encoder.down[0].downsample)
    moved = stem(images.roll((2, 4), (2, 3))).roll((-1, -2), (2, 3))
    torch.testing.assert_close(moved[..., 3:12, 3:12], stem(images)[..., 3:12, 3:12])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 18, 16), "multiples of 4, got 18 x 16"),
        ((1, 1, 16, 16), "shape"),
        ((3, 16, 16), "shape"),
        ((1, 3, 0, 16), "got 0 x 16"),
    ],
)
def test_wrong_images_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _small().encode(torch.zeros(shape))


def test_stored_pixels_are_refused() -> None:
    with pytest.raises(UserError, match=r"^images must be floats in \[-1, 1\], got torch.uint8"):
        _small().encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_wrong_latents_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(B, 4, h, w\)"):
        _small().decode(torch.zeros(1, 8, 4, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_levels": (5,)}, "^attention_levels must be levels from 0 to 4, got 5"),
        ({"attention_levels": (-6,)}, "^attention_levels must be levels from 0 to 4, got -6"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"channel_multipliers": ()}, "channel_multipliers"),
        ({"blocks_per_level": 0}, "blocks_per_level"),
    ],
)
def test_impossible_configs_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AutoencoderConfig(**changes)


def test_config_from_lists_equals_config_from_tuples() -> None:
    config = AutoencoderConfig(channel_multipliers=[1, 2], attention_levels=[1])  # type: ignore[arg-type]
    assert config == AutoencoderConfig(channel_multipliers=(1, 2), attention_levels=(1,))
    assert AutoencoderKL(config).config == config


def test_lowest_level_has_attention_by_default() -> None:
    assert AutoencoderConfig().attention_levels == (4,)
    model = AutoencoderKL(base_channels=32, channel_multipliers=(1, 2), latent_channels=4)
    assert model.config == AutoencoderConfig(4, 32, (1, 2), attention_levels=(1,))
    assert AutoencoderKL(model.config, blocks_per_level=1).config.attention_levels == (1,)


@pytest.mark.parametrize("width", [4, 24, 32, 48])
def test_narrow_and_odd_widths_work(width: int) -> None:
    model = AutoencoderKL(AutoencoderConfig(2, width, (1, 2), 1, ()))
    model(_images(1, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def _gradients(model: AutoencoderKL, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(images, noise=torch.ones(2, 4, 4, 4).to(images)).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def _saved_bytes(model: AutoencoderKL, images: Tensor, dtype: torch.dtype | None) -> int:
    """Return the bytes of the activations that are saved for the backward pass."""
    storages: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
    ):
        output = model(images)
    assert output.requires_grad
    return sum(storages.values())


def test_training_mode_saves_fewer_activations() -> None:
    model = _small()
    images = _images(2, 32, 32)
    for dtype, share in ((None, 0.8), (torch.bfloat16, 0.7)):
        train, evaluation = (_saved_bytes(model.train(mode), images, dtype) for mode in (True, False))
        assert train < share * evaluation


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
@pytest.mark.parametrize("channels", [4, 48, 64])
def test_norm_then_silu_gradients(channels: int, layout: str) -> None:
    torch.manual_seed(0)
    norm = GroupNorm(channels).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = 3 + 2 * torch.randn(2, channels, 3, 5, dtype=torch.float64)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x.transpose(2, 3)
    x.requires_grad_()
    inputs = (x, norm.weight, norm.bias)
    output_grad = torch.randn(x.shape, dtype=torch.float64)
    results = []
    for mode in (True, False):
        y = norm.train(mode).silu(x)
        results.append([y, *torch.autograd.grad(y, inputs, output_grad)])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-10)


def test_channels_last_gives_the_same_images() -> None:
    model = _small().double()
    images = _images(2, 16, 16).double()
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    actual = model(images.contiguous(memory_format=torch.channels_last))
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_bfloat16_autocast_keeps_norms_exact() -> None:
    model = _small()
    images = _images(2, 16, 16)
    expected = _gradients(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(images)
        assert posterior.mean.dtype == torch.float32
        torch.testing.assert_close(posterior.mean, model.encode(images).mean, rtol=0, atol=0.05)
        actual = _gradients(model, images)
    flat = [torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (expected, actual)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.995
    norm = model.encoder.norm_out
    x = (1000 + torch.randn(2, norm.num_channels, 8, 8)).bfloat16()
    reference = nn.functional.group_norm(x.double(), norm.num_groups, eps=norm.eps)
    with torch.autocast("cpu", torch.bfloat16):
        actual_norm = norm(x)
    assert actual_norm.dtype == torch.bfloat16
    torch.testing.assert_close(actual_norm.double(), reference, rtol=1e-2, atol=1e-2)


def test_last_layers() -> None:
    model = _small()
    names = {id(module): name for name, module in model.named_modules()}
    assert names[id(model.last_encoder_layer)] == "encoder.conv_out"
    assert names[id(model.last_decoder_layer)] == "decoder.conv_out"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gradients_on_cuda_equal_those_on_the_cpu() -> None:
    model, images = _small().double(), _images(2, 16, 16)
    expected = torch.cat([gradient.flatten() for gradient in _gradients(model, images.double())])
    model.float().cuda()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=memory_format)
        batch = images.cuda().contiguous(memory_format=memory_format)
        for half, least in ((False, 0.9999), (True, 0.98)):
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                gradients = _gradients(model, batch)
            actual = torch.cat([gradient.flatten().cpu().double() for gradient in gradients])
            assert torch.nn.functional.cosine_similarity(expected, actual, dim=0) > least
