"""Tokenizer, latents, transformer and samples on a CPU, and on a GPU: compiled, with features and latents on it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_teacher import tiny_teacher

from vavae.data import LatentDataset, to_uint8
from vavae.data.images import ImagesConfig
from vavae.losses import LPIPS, AdversarialConfig, AlignmentConfig, DiscriminatorConfig, ObjectiveConfig
from vavae.models import Generator, Tokenizer
from vavae.stages import encode, sample, train_dit, train_tokenizer
from vavae.stages.train_tokenizer import TeacherConfig, TokenizerTask
from vavae.tokenizer import AutoencoderConfig
from vavae.training.optimizer import OptimizerConfig
from vavae.training.trainer import TrainingConfig

pytestmark = pytest.mark.slow

_ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = [("cpu", False), pytest.param(("cuda", True), marks=_ON_GPU)]
_ON_GPU_ONLY = pytest.mark.parametrize("chain", DEVICES[1:], ids=["cuda"], indirect=True)
DATA = ImagesConfig("demo", 32, crop="center", limit=32, workers=2)
TRAINING = TrainingConfig(
    images=32, batch_size=8, precision="auto", ema_decay=0.9, log_images=8, checkpoint_images=16, tensorboard=False
)


def tokenizer_recipe(folder: Path, device: str, compiled: bool) -> train_tokenizer.Config:
    return train_tokenizer.Config(
        output=str(folder / "tokenizer"),
        data=DATA,
        tokenizer=AutoencoderConfig(4, 32, (1, 2, 2), 1, ()),
        teacher=TeacherConfig("convolution", 16, cache_features=True),
        objective=ObjectiveConfig(
            adversarial=AdversarialConfig(start_images=16, discriminator=DiscriminatorConfig(16, 2)),
            alignment=AlignmentConfig(cos_margin=0.0, distance_margin=0.0),
        ),
        optimizer=OptimizerConfig("adam", 1e-3),
        training=replace(TRAINING, device=device),
        compile=compiled,
    )


def transformer_recipe(folder: Path, device: str, compiled: bool) -> train_dit.Config:
    return train_dit.Config(
        output=str(folder / "generator"),
        latents=str(folder / "latents"),
        tokenizer=str(folder / "tokenizer/tokenizer"),
        transformer=train_dit.TransformerConfig("S/1", width=64, depth=2, heads=2),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        training=replace(TRAINING, device=device),
        compile="blocks" if compiled else False,
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["total"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=DEVICES, ids=["cpu", "cuda"])
def chain(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, TokenizerTask]:
    """Train both stages; return their folder, the device, and the tokenizer's task."""
    device, compiled = request.param
    folder = tmp_path_factory.mktemp(f"chain-{device}")
    made: list[TokenizerTask] = []

    class Watched(TokenizerTask):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    def lpips(network: str) -> LPIPS:
        torch.manual_seed(3)
        return LPIPS("alexnet")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_tokenizer, "TokenizerTask", Watched)
        patch.setattr(train_tokenizer, "load_teacher", lambda *_, **__: tiny_teacher())
        patch.setattr(LPIPS, "pretrained", lpips)
        train_tokenizer.run(tokenizer_recipe(folder, device, compiled))
        encode.run(
            encode.Config(
                tokenizer=str(folder / "tokenizer/tokenizer"),
                output=str(folder / "latents"),
                data=DATA,
                flips=True,
                dtype="float16",
                batch_size=20,
                device=device,
                precision="fp32",
            )
        )
        torch.compiler.reset()
        train_dit.run(transformer_recipe(folder, device, compiled))
    return folder, device, made[0]


def test_losses_fall(chain: tuple[Path, str, TokenizerTask]) -> None:
    folder = chain[0]
    for stage in ("tokenizer", "generator"):
        first, *_, last = losses(folder / stage)
        assert np.isfinite([first, last]).all() and last < first, stage


def test_features_are_kept_on_a_gpu(chain: tuple[Path, str, TokenizerTask]) -> None:
    _, device, task = chain
    assert task.features is not None and task.features.resident == (device == "cuda")
    batch = next(iter(task.batches(0, 0)))
    assert batch.images.device.type == device
    assert batch.features is not None and batch.features.device.type == device


@_ON_GPU_ONLY
def test_latents_equal_those_of_a_cpu(chain: tuple[Path, str, TokenizerTask]) -> None:
    """A stored latent is a sample of the posterior, whose noise is the same on every device."""
    folder, _, _ = chain
    there = LatentDataset(folder / "latents")
    encode.run(
        encode.Config(
            tokenizer=str(folder / "tokenizer/tokenizer"),
            output=str(folder / "latents-cpu"),
            data=DATA,
            dtype="float16",
            device="cpu",
            precision="fp32",
        )
    )
    expected, labels = LatentDataset(folder / "latents-cpu").get(torch.arange(32))
    found, found_labels = there.get(torch.arange(32))
    assert torch.equal(found_labels, labels)
    assert (found - expected).norm() < 5e-3 * expected.norm()


@_ON_GPU_ONLY
def test_samples_equal_those_of_a_cpu(chain: tuple[Path, str, TokenizerTask], tmp_path: Path) -> None:
    folder, device, _ = chain
    sample.run(
        sample.Config(str(folder / "generator/generator"), str(tmp_path), count=6, steps=8, batch_size=4, device=device)
    )
    generator = Generator.from_pretrained(folder / "generator/generator")
    labels = sample.choose_labels(6, generator.num_classes, "balanced", 0)
    expected = sample.draw(generator, labels, range(6), 0, replace(generator.sampling, steps=8))
    for index, pixels in enumerate(expected):
        found = np.asarray(Image.open(tmp_path / f"{index:06d}.png")).astype(int)
        assert np.abs(found - pixels).mean() < 1.0, index  # of 255; convolutions may use TF32 there


@_ON_GPU_ONLY
def test_reconstructions_equal_those_of_a_cpu(chain: tuple[Path, str, TokenizerTask]) -> None:
    folder, device, task = chain
    images = next(iter(task.batches(0, 0))).images
    here, there = (Tokenizer.from_pretrained(folder / "tokenizer/tokenizer", d) for d in ("cpu", device))
    expected = to_uint8(here.decode(here.encode(images.cpu()))).int()
    found = to_uint8(there.decode(there.encode(images)).cpu()).int()
    assert (found - expected).abs().float().mean() < 1.0
