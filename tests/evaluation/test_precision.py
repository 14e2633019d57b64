"""The compute precision of models: in records, in the keys of stored features, and restored afterwards."""

import time
from dataclasses import replace

import pytest
import torch
from evaluate_models import color_network, make_generator, use_colors

from vavae.data.images import ImagesConfig
from vavae.device import autocast
from vavae.evaluation.features import Block, BlockStore, ImageSet, extract
from vavae.evaluation.images import decoded_images, generated_images
from vavae.models import sampling
from vavae.models.sampling import draw
from vavae.stages import evaluate
from vavae.training.parallel import World


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    use_colors(monkeypatch.setattr)


def test_records_name_the_precision(tmp_path):
    make_generator().save_pretrained(tmp_path / "generator")

    def measured(precision):
        config = evaluate.Config(
            "generator", [str(tmp_path / "generator")], ImagesConfig("demo", 32, limit=4), network="inception",
            count=4, steps=3, metrics=["frechet"], features=str(tmp_path / "features"), device="cpu",
            precision=precision,
        )  # fmt: skip
        (record,) = evaluate.run(config)
        return record

    plain, coarse = measured("fp32"), measured("tf32")
    assert (plain.protocol.dtype, coarse.protocol.dtype) == ("fp32", "tf32")
    assert plain.value == coarse.value  # on a CPU
    assert any("dtype" in obstacle for obstacle in plain.obstacles(coarse))


def test_features_are_stored_by_precision():
    generator = make_generator()
    keys = {
        generated_images(generator, [0, 1], 0, generator.sampling, precision, "a").block(range(2)).key
        for precision in ("fp32", "tf32", "bf16")
    }
    assert len(keys) == 3


def test_models_compute_in_tf32(monkeypatch):
    """The switch acts on GPUs only, so the test names one."""
    monkeypatch.setattr(sampling, "autocast", lambda mode, device: autocast(mode, torch.device("cuda")))
    generator, seen = make_generator(), []
    for module in (generator.transformer, generator.tokenizer.autoencoder.decoder):
        module.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.matmul.fp32_precision))
    draw(generator, [0], [0], 0, generator.sampling, "tf32")
    assert set(seen) == {"tf32"} and torch.backends.cuda.matmul.fp32_precision != "tf32"
    seen.clear()
    draw(generator, [0], [0], 0, generator.sampling, "fp32")
    assert seen and "tf32" not in seen


def test_precision_ends_with_each_batch():
    """Feature networks would compute in it too."""
    images = decoded_images(make_generator().tokenizer, torch.zeros(2, 4, 8, 8), "bf16", "decoded")
    block = images.block(range(2))
    for i in range(2):
        assert block.pixels(slice(i, i + 1)).shape == (1, 32, 32, 3)
        assert not torch.is_autocast_enabled("cpu")


def test_features_ignore_tf32_of_the_sampling_thread(tmp_path):
    seen = []

    def pixels(part):
        with autocast("tf32", torch.device("cuda")):
            time.sleep(0.01)
        return torch.zeros(1, 8, 8, 3, dtype=torch.uint8)

    def features(pixels):
        for _ in range(5):
            seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
            time.sleep(0.002)
        return torch.zeros(len(pixels), 2)

    network = replace(color_network(), compute=features, parts=("pool",))
    drawn = ImageSet("drawn", 40, 8, lambda indices: Block("drawn", pixels))
    extract(drawn, [network], BlockStore(tmp_path), 1, World(), "drawn")
    assert set(seen) == {("none", "ieee")}
