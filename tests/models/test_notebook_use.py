"""Use in a notebook: own pictures as input, names as labels, outputs that can be trained on."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluate_models import make_generator
from PIL import Image
from torch import nn

import vavae
from vavae import Generator, SamplingConfig, UserError
from vavae.data import center_crop, to_tensor, to_uint8

FEW: Any = {"steps": 3}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.from_pretrained("demo")


def test_outputs_can_be_trained_on(generator: Generator) -> None:
    images = generator([1], output_type="pt", **FEW)
    latents = generator.tokenizer.encode(images)
    layers = nn.Conv2d(3, 2, 1), nn.Conv2d(generator.tokenizer.latent_channels, 2, 1)
    for layer, value in zip(layers, (images, latents), strict=True):
        layer(value).sum().backward()
        assert layer.weight.grad is not None and bool(layer.weight.grad.any())
    images.add_(1)


def test_class_names_are_labels(generator: Generator) -> None:
    assert generator.class_names[3] == "cat"
    assert generator(["cat", 10], **FEW) == generator([3, 10], **FEW)
    assert generator(torch.tensor([3, 10]), **FEW) == generator([3, 10], **FEW)
    with pytest.raises(
        UserError, match="labels must be numbers or names of classes, got 'unicorn'; the first are 'airplane'"
    ):
        generator(["unicorn"], **FEW)


def test_labels_in_usual_forms(generator: Generator) -> None:
    expected = generator([3], **FEW)
    one = torch.tensor(3)
    numpy_forms = (np.int64(3), np.array([3]), np.array(3), [np.uint8(3)], np.array(["cat"]))
    for labels in (3, "cat", (3,), one, [one], *numpy_forms):
        assert generator(labels, **FEW) == expected, repr(labels)
    assert generator(range(3, 4), **FEW) == expected


def test_single_setting_changes_only_itself(generator: Generator) -> None:
    own = generator.sampling
    few = generator.with_sampling(replace(own, steps=3))
    assert few.latents([3]).equal(generator.latents([3], steps=3)) and generator.sampling == own
    plain = generator.with_sampling(SamplingConfig(steps=3, shift=own.shift))
    assert plain.latents([3]).equal(generator.latents([3], steps=3, guidance_scale=1))
    assert not plain.latents([3]).equal(few.latents([3]))  # a whole configuration turns guidance off
    assert few.latents([3]).equal(few.latents([3], steps=None))
    for name in ("num_inference_steps", "sampling"):
        with pytest.raises(UserError, match=f"a setting of sampling must be one of solver, steps, .*, got {name}"):
            generator(3, **{name: 3})
    with pytest.raises(UserError, match="guidance_scale must be a number, got '2'"):
        generator(3, guidance_scale="2")  # type: ignore[arg-type]


def test_output_types(generator: Generator) -> None:
    images = generator([3, 8], output_type="pt", **FEW)
    pixels = generator([3, 8], output_type="np", **FEW)
    pictures = generator([3, 8], **FEW)
    assert images.shape == (2, 3, 32, 32) and pixels.shape == (2, 32, 32, 3) and pixels.dtype == np.uint8
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), pixels)
    assert np.array_equal(to_uint8(images), pixels)
    encode = generator.tokenizer.encode
    assert torch.equal(encode(pictures), encode(pixels))
    torch.testing.assert_close(encode(images), encode(pixels), atol=0.1, rtol=0.1)
    with pytest.raises(UserError, match="output_type must be one of pil, np, pt, got 'latent'"):
        generator(3, output_type="latent")  # type: ignore[arg-type]


def test_generator_of_torch_draws_the_seed(generator: Generator) -> None:
    source = torch.Generator().manual_seed(0)
    first, second = (generator([3], generator=source, **FEW) for _ in range(2))
    assert first != second
    assert generator([3], generator=source.manual_seed(0), **FEW) == first
    with pytest.raises(UserError, match="seed must be left out with generator, which draws it, got 1"):
        generator([3], 1, generator=source)
    with pytest.raises(UserError, match=r"generator must be a torch\.Generator, got int"):
        generator([3], generator=0)  # type: ignore[arg-type]


def test_callback_and_progress(generator: Generator, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, float, int]] = []

    def note(step: int, t: float, x: torch.Tensor, data: torch.Tensor) -> None:
        assert x.shape == data.shape == (1, 16, 8, 8)
        seen.append((step, t, len(data)))

    generator([3], callback=note, progress=True, **FEW)
    assert [step for step, _, _ in seen] == [0, 1] and seen[0][1] == 0 < seen[1][1] < 1
    assert "sampling: 2/2 steps" in capsys.readouterr().err
    with pytest.raises(UserError, match="progress must be False with the solver dopri5"):
        generator([3], solver="dopri5", progress=True)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (True, r"labels must be numbers or names of classes, got True \(bool\)"),
        ([1, False], "got False"),
        (torch.tensor([True]), "got True"),
        (1.0, r"got 1\.0 \(float\)"),
        (np.array([1.5]), r"got 1\.5"),
        (None, r"got None \(NoneType\)"),
        ([[1, 2]], "got \\[1, 2\\]"),
        (10**30, r"labels must be from 0 to 10, got 1000000000000000000000000000000"),
        (-1, r"labels must be from 0 to 10, got -1"),
        ("Cat", "labels must be numbers or names of classes, got 'Cat'; near are 'cat'$"),
        (["hrose"], "got 'hrose'; near are 'horse'$"),
    ],
)
def test_other_labels_are_refused(generator: Generator, labels: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generator(labels, **FEW)  # type: ignore[arg-type]


def test_empty_labels_give_empty_images(generator: Generator) -> None:
    assert generator([], **FEW) == []
    assert generator([], output_type="pt", **FEW).shape == (0, 3, 32, 32)


def test_seeds_and_indices_must_be_integers(generator: Generator) -> None:
    expected = generator.noise([0, 2], seed=1)
    assert torch.equal(generator.noise([0, 2], seed=True), expected)
    assert torch.equal(generator.noise(np.array([0, 2]), seed=np.int64(1)), expected)
    for seed in (None, 1.0, "1"):
        with pytest.raises(TypeError):
            generator.noise([0], seed=seed)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="indices must be integers"):
        generator.noise([0.5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seed": "a"}, r"seed must be a whole number, got a \(str\)"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"indices": [0.5]}, "indices must be a whole number, got 0.5"),
        ({"indices": [2**70]}, "indices must fit in 64 bits"),
        ({"indices": 5}, "indices must be a list of numbers, got 5"),
    ],
)
def test_seeds_and_numbers_of_samples_are_checked(
    generator: Generator, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        generator(1, **FEW, **options)  # type: ignore[arg-type]


def test_noise_may_be_an_array(generator: Generator) -> None:
    noise = generator.noise([0])
    drawn = generator(1, **FEW, noise=noise.numpy())
    assert drawn == generator(1, **FEW, noise=noise)


@pytest.mark.parametrize("path", ["~no-such-user/x", "x" * 5000, ""])
def test_a_path_that_is_none_is_one_line(path: str) -> None:
    with pytest.raises(UserError, match=r"home directory|name too long|no such file") as error:
        Generator.from_pretrained(path)
    assert len(str(error.value)) < 200


def test_a_folder_whose_path_is_not_utf8_is_refused(generator: Generator, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match="its path must be UTF-8"):
        generator.save_pretrained(folder)
    assert not folder.exists()
    with pytest.raises(UserError, match="its path must be UTF-8"):
        generator.tokenizer.save_diffusers(folder)
    assert not folder.exists()
    generator.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain").rename(folder)
    with pytest.raises(UserError, match="its path must be UTF-8"):
        Generator.from_pretrained(folder)


def test_all_parts_move_to_a_device() -> None:
    """The weak model too, and a network of which one part was moved by hand before."""
    generator = make_generator().with_weak_model(make_generator(2))
    assert generator.weak_model is not None
    generator.tokenizer.autoencoder.encoder.to("meta")
    generator.to("meta")
    for model in (generator, generator.weak_model):
        for network in (model.transformer, model.tokenizer.autoencoder):
            assert all(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"device must be cpu.*, got 'toaster', which is not a device"):
        Generator.from_pretrained("demo", device="toaster")
    with pytest.raises(UserError, match=r"device must be cpu.*, got 'toaster', which is not a device"):
        vavae.AutoencoderKL.from_pretrained("demo", device="toaster")


def test_a_missing_device_is_refused(generator: Generator) -> None:
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(UserError, match=f"device must be cpu.*, got '{missing}', which is not on this machine"):
        generator.to(missing)


def test_noise_without_use_is_refused(generator: Generator) -> None:
    noise = torch.zeros(1, 16, 8, 8)
    with pytest.raises(UserError, match="noise must be None for mode 'mean'"):
        generator.tokenizer.encode(torch.zeros(1, 3, 32, 32), noise=noise)
    with pytest.raises(UserError, match="noise must be finite, got NaN or infinity"):
        generator([1], noise=noise * torch.nan, **FEW)


def test_tensors_of_pictures_are_encoded(generator: Generator) -> None:
    picture = Image.effect_mandelbrot((70, 50), (-2, -1, 1, 1), 20).convert("RGB")
    images = to_tensor(center_crop(picture, 32))[None]
    expected = generator.tokenizer.encode(images)
    assert expected.shape == (1, 16, 8, 8)
    mirrored = to_tensor(np.asarray(center_crop(picture, 32))[:, ::-1])
    assert torch.equal(mirrored, images[0].flip(-1))
    for dtype in (torch.float64, torch.bfloat16):
        torch.testing.assert_close(generator.tokenizer.encode(images.to(dtype)), expected, atol=0.1, rtol=0.1)
    with pytest.raises(UserError, match=r"images: torch\.uint8 is not in"):
        generator.tokenizer.encode(((images + 1) * 127.5).to(torch.uint8))


def test_pictures_and_pixels_are_encoded(generator: Generator) -> None:
    tokenizer = generator.tokenizer
    picture = center_crop(Image.effect_mandelbrot((70, 50), (-2, -1, 1, 1), 20).convert("RGB"), 32)
    expected = tokenizer.encode(to_tensor(picture)[None])
    for images in (picture, [picture], np.asarray(picture), np.asarray(picture)[None], to_tensor(picture)):
        assert torch.equal(tokenizer.encode(images), expected)
        assert torch.equal(tokenizer.reconstruct(images), tokenizer.decode(expected))
    for images, sentence in (
        (to_tensor(picture)[None] * 127.5 + 127.5, r"values must be in \[-1, 1\], got"),
        (torch.full((1, 3, 32, 32), float("nan")), "got nan to nan"),
        ([picture, picture.resize((16, 16))], "of one size"),
    ):
        for use in (tokenizer.encode, tokenizer.reconstruct):
            with pytest.raises(UserError, match=sentence):
                use(images)
    for latents in (np.zeros((1, 16, 8, 8)), torch.zeros(1, 16, 8, 8, dtype=torch.int64), picture):
        with pytest.raises(UserError, match="latents must be a tensor of floats"):
            tokenizer.decode(latents)  # type: ignore[arg-type]


def test_noise_of_another_type(generator: Generator) -> None:
    noise = generator.noise([0])
    drawn = generator([1], **FEW, noise=noise.double())
    assert drawn == generator([1], **FEW, noise=noise)


def test_repr_describes_the_models(generator: Generator) -> None:
    assert repr(generator) == "Generator(width 256, depth 6, 10 classes, latents 16x8x8, cpu)"
    assert repr(generator.tokenizer) == "Tokenizer(f4 d16, cpu)"


def test_public_names_are_listed() -> None:
    assert set(vavae.__all__) == set(dir(vavae))
    for module in (vavae, vavae.models):
        assert all(getattr(module, name) is not None for name in module.__all__)
