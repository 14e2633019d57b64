"""Weights in half precision: encoding, decoding and sampling work, and outputs are float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import same_weights

from vavae import AutoencoderKL, Generator, LightningDiT, Tokenizer, UserError
from vavae.errors import RunError

FEW: Any = {"steps": 3, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def whole() -> Generator:
    """The demo model in float32, to read only."""
    return Generator.from_pretrained("demo")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_images_little(dtype: torch.dtype, whole: Generator) -> None:
    half = Generator.from_pretrained("demo", dtype=dtype)
    assert half.dtype == half.tokenizer.dtype == dtype
    assert all(weight.dtype == dtype for weight in half.transformer.parameters())
    assert half.transformer.pos_embed.dtype == torch.float32
    expected = whole.latents([3], **FEW)
    latents = half.latents([3], **FEW)
    images = half.tokenizer.decode(latents)
    again = half.tokenizer.encode(images)
    assert latents.dtype == images.dtype == again.dtype == torch.float32
    assert (latents - expected).abs().mean() < 0.03 * expected.abs().mean()
    assert (images - whole.tokenizer.decode(latents)).abs().mean() < 0.02
    assert (again - whole.tokenizer.encode(images)).abs().mean() < 0.05
    assert half([3], **FEW, output_type="pt", size=(24, 32)).isfinite().all()


@pytest.mark.slow
def test_models_are_converted(tmp_path: Path) -> None:
    generator = Generator.from_pretrained("demo")
    assert generator.to(torch.bfloat16) is generator and generator.dtype == generator.tokenizer.dtype == torch.bfloat16
    read = Generator.from_pretrained("demo", dtype=torch.bfloat16)
    assert generator([3], **FEW) == read([3], **FEW)
    assert generator.device == generator.tokenizer.device == torch.device("cpu")
    assert generator.config == generator.transformer.config
    assert generator.tokenizer.config == generator.tokenizer.autoencoder.config
    generator.save_pretrained(tmp_path)
    saved = Generator.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert same_weights(saved.transformer, read.transformer)
    assert same_weights(saved.tokenizer.autoencoder, read.tokenizer.autoencoder)
    tokenizer = generator.tokenizer.to("cpu", torch.float32)
    assert tokenizer.dtype == torch.float32 and generator.dtype == torch.bfloat16
    with pytest.raises(UserError, match="dtype must be float32, float16 or bfloat16, got int8"):
        generator.to(torch.int8)


def test_weights_too_large_leave_the_model_as_it_was() -> None:
    generator = Generator.from_pretrained("demo")
    with torch.no_grad():
        generator.tokenizer.autoencoder.decoder.conv_out.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(UserError, match=r"conv_out\.weight is too large for float16; take bfloat16"):
        generator.to(torch.float16)
    assert generator.dtype == generator.tokenizer.dtype == torch.float32


def test_decoder_that_overflows_is_an_error() -> None:
    generator = Generator.from_pretrained("demo", dtype=torch.float16)
    with torch.no_grad():
        generator.tokenizer.autoencoder.decoder.conv_in.weight.fill_(6e4)
    with pytest.raises(RunError, match="images are not finite: convert the weights to bfloat16 or float32"):
        generator([3], **FEW)


def test_networks_compute_in_their_own_type(whole: Generator) -> None:
    network = LightningDiT.from_pretrained("demo", dtype=torch.bfloat16)
    x, t, y = torch.randn(2, 16, 8, 8), torch.tensor([0.3, 0.6]), torch.tensor([1, 2])
    with torch.no_grad():
        velocity = network(x.bfloat16(), t, y)
        assert velocity.dtype == torch.bfloat16
        assert (velocity - whole.transformer(x, t, y)).abs().mean() < 0.05
        assert network(x[..., :6].bfloat16(), t, y).shape == (2, 16, 8, 6)
        images = torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)
        assert AutoencoderKL.from_pretrained("demo", dtype=torch.bfloat16)(images).dtype == torch.bfloat16


def test_given_tokenizer_keeps_its_type(whole: Generator) -> None:
    given = Generator.from_pretrained("demo", tokenizer=whole.tokenizer, dtype=torch.bfloat16)
    assert given.tokenizer.dtype == torch.float32


def test_weak_model_in_another_type_is_refused(whole: Generator) -> None:
    weak = Generator.from_pretrained("demo", dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"weak_model must have the generator's dtype torch\.float32 or float32, got"):
        whole.latents([1], weak_model=weak, steps=3, guidance_scale=2.0)


def test_default_type_of_torch_changes_no_weights() -> None:
    try:
        torch.set_default_dtype(torch.float16)
        read = Generator.from_pretrained("demo")
    finally:
        torch.set_default_dtype(torch.float32)
    assert read.dtype == torch.float32


def test_other_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype must be float32, float16 or bfloat16, got int8"):
        Tokenizer.from_pretrained("demo", dtype=torch.int8)
    with pytest.raises(UserError, match="dtype must be float32, float16 or bfloat16, got float64"):
        Generator.from_pretrained("demo").to(torch.float64)
    tokenizer = Tokenizer.from_pretrained("demo")
    with torch.no_grad():
        tokenizer.autoencoder.encoder.conv_in.weight[0, 0, 0, 0] = 1e5
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"encoder\.conv_in\.weight is too large for float16; take bfloat16"):
        Tokenizer.from_pretrained(tmp_path, dtype=torch.float16)
