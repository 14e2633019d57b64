"""The latents that `vavae encode` stores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import AUTOENCODER

from vavae.data import load_images
from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.models import Tokenizer
from vavae.stages import encode
from vavae.tokenizer import AutoencoderKL, LatentStatistics


def small_tokenizer(folder: Path) -> str:
    torch.manual_seed(0)
    Tokenizer(AutoencoderKL(AUTOENCODER), LatentStatistics(torch.zeros(8), torch.ones(8))).save_pretrained(folder)
    return str(folder)


def test_refused_call_leaves_the_record_of_the_images(tmp_path: Path) -> None:
    data, tokenizer = ImagesConfig("demo", 16, limit=20), small_tokenizer(tmp_path / "tokenizer")
    config = encode.Config(tokenizer, str(tmp_path / "latents"), data, device="cpu")
    encode.run(config)
    recorded = (tmp_path / "latents/images.json").read_bytes()
    with pytest.raises(UserError, match=r"\.safetensors was made with other images \(data\): encode into another"):
        encode.run(replace(config, data=ImagesConfig("demo", 16, limit=10)))
    with pytest.raises(UserError, match=r"\.safetensors was made with precision fp32, not bf16: encode into another"):
        encode.run(replace(config, precision="bf16"))
    assert (tmp_path / "latents/images.json").read_bytes() == recorded
    assert json.loads(recorded)["images"]["images"] == 20


def test_mirrored_images_have_their_own_noise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(AUTOENCODER).eval()
    Tokenizer(model, LatentStatistics(torch.zeros(8), torch.ones(8))).save_pretrained(tmp_path / "tokenizer")
    data = ImagesConfig("demo", 16, limit=20)
    config = encode.Config(str(tmp_path / "tokenizer"), str(tmp_path / "latents"), data, device="cpu")
    stored = encode.run(config)
    images = load_images(data.open("train"), range(20), 16)
    noise = []
    for mirrored in (False, True):
        latents, _ = stored.get(torch.arange(20), torch.full((20,), mirrored), normalize=False)
        with torch.inference_mode():
            posterior = model.encode(images.flip(3) if mirrored else images)
        noise.append((latents - posterior.mean) / posterior.std)
    for one in noise:
        assert abs(float(one.mean())) < 0.1 and abs(float(one.std()) - 1) < 0.1
    for other in (noise[1], noise[1].flip(3)):
        assert abs(float((noise[0] * other).mean())) < 0.1
