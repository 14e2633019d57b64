"""The precision that models compute in is part of what is recorded and of what is found again."""

import time
from dataclasses import replace

import pytest
import torch
from evaluate_models import colour_network, make_generator, use_colours

from vavae.data.images import ImagesConfig
from vavae.device import autocast
from vavae.evaluation.features import Block, BlockStore, extract
from vavae.evaluation.images import GeneratorBlocks, LatentBlocks
from vavae.models import sampling
from vavae.models.sampling import draw
from vavae.stages import evaluate
from vavae.training.parallel import World


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    for module, name in ((evaluate, "load_feature_network"), (evaluate.of_tokenizer, "perceptual_networks")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    use_colours()


def test_records_say_tf32_and_are_not_those_of_fp32(tmp_path):
    make_generator().save_pretrained(tmp_path / "generator")

    def measured(precision):
        config = evaluate.Config(
            "generator", [str(tmp_path / "generator")], ImagesConfig("demo", 32, limit=30), network="inception",
            count=30, steps=3, metrics=["frechet"], features=str(tmp_path / "features"), device="cpu",
            precision=precision,
        )  # fmt: skip
        (record,) = evaluate.run(config)
        return record

    plain, coarse = measured("fp32"), measured("tf32")
    assert (plain.protocol.dtype, coarse.protocol.dtype) == ("fp32", "tf32")
    assert plain.value == coarse.value  # on a CPU
    assert any("dtype" in obstacle for obstacle in plain.obstacles(coarse))


def test_stored_features_of_tf32_are_not_those_of_fp32():
    generator = make_generator()
    keys = {
        GeneratorBlocks(
            generator, [0, 1], 0, generator.sampling, precision, generator.fingerprint()
        ).open(range(2)).key
        for precision in ("fp32", "tf32", "bf16")
    }  # fmt: skip
    assert len(keys) == 3


def test_decoder_and_transformer_compute_in_tf32(monkeypatch):
    """Both are asked in it; the switch itself is told of a GPU here, where there may be none."""
    monkeypatch.setattr(sampling, "autocast", lambda mode, device: autocast(mode, torch.device("cuda")))
    generator, seen = make_generator(), []
    for module in (generator.transformer, generator.tokenizer.autoencoder.decoder):
        module.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.matmul.fp32_precision))
    draw(generator, [0], [0], 0, generator.sampling, "tf32")
    assert set(seen) == {"tf32"} and torch.backends.cuda.matmul.fp32_precision != "tf32"
    seen.clear()
    draw(generator, [0], [0], 0, generator.sampling, "fp32")
    assert seen and "tf32" not in seen


def test_no_precision_is_held_between_batches():
    """Who takes the images would compute in it too, or wait for it in vain."""
    generator = make_generator()
    blocks = LatentBlocks(generator.tokenizer, torch.zeros(2, 4, 8, 8), "bf16", "decoded")
    for _ in blocks.open(range(2)).batches(1):
        assert not torch.is_autocast_enabled("cpu")


def test_features_are_not_computed_in_the_tf32_of_the_drawing_thread(tmp_path):
    seen = []

    class Drawn:
        name, count, side = "drawn", 40, 8

        def open(self, indices):
            def batches(batch_size):
                for _ in range(0, len(indices), batch_size):
                    with autocast("tf32", torch.device("cuda")):
                        time.sleep(0.01)
                    yield torch.zeros(batch_size, 8, 8, 3, dtype=torch.uint8)

            return Block("drawn", batches)

    def features(pixels):
        for _ in range(5):
            seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
            time.sleep(0.002)
        return torch.zeros(len(pixels), 2)

    network = replace(colour_network(), compute=features, compute_parts=None, parts=("pool",))
    extract(Drawn(), [network], BlockStore(tmp_path), 1, World(), "drawn")
    assert set(seen) == {("none", "ieee")}
