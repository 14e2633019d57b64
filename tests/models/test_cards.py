"""Model cards: the hub's metadata, and evaluation results of the model itself only."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from published_files import SMALL, autoencoder, golden_dit, statistics

from vavae import Generator, SamplingConfig, Tokenizer, UserError
from vavae.metrics.records import MeasurementProtocol, MetricRecord
from vavae.tokenizer import LatentStatistics

XL, VAVAE = "hustvl/lightningdit-xl-imagenet256-800ep", "hustvl/vavae-imagenet256-f16d32-dinov2"


def make(own: dict[str, Any], tokenizers: dict[str, Any]) -> Generator:
    tokenizer = Tokenizer(autoencoder(SMALL)[0], LatentStatistics.from_dict(statistics(8)), tokenizers)
    return Generator(golden_dit()[0], tokenizer, sampling=SamplingConfig(steps=3), provenance=own)


def test_metadata_of_a_converted_model() -> None:
    generator = make({"converted_from": XL}, {"converted_from": VAVAE})
    data = generator.card().data
    assert (data.license, data.library_name, data.datasets) == ("mit", "vavae", None)
    assert data.base_model == [XL, VAVAE]
    assert data.pipeline_tag == "unconditional-image-generation" and "LightningDiT" in data.tags
    tokenizer = generator.tokenizer.card(license="cc-by-4.0").data
    assert (tokenizer.license, tokenizer.base_model, tokenizer.pipeline_tag) == ("cc-by-4.0", [VAVAE], "image-to-image")


def test_metadata_of_a_trained_model() -> None:
    """Nothing is invented: a file cannot be a base model, and a license is stated only if it is given."""
    generator = make({"initial": "them/dit@v1", "seed": 7}, {"dataset": "them/photos", "converted_from": "vae.pt"})
    data = generator.card().data
    assert (data.base_model, data.datasets) == (["them/dit"], ["them/photos"])
    assert data.license is None and data.eval_results is None
    assert generator.card(datasets=["me/mine"]).data.datasets == ["me/mine"]
    assert make({}, {}).card().data.base_model is None


def test_text_loads_from_the_repository(tmp_path: Path) -> None:
    generator = make({"seed": 7}, {})
    text = generator.card("me/cats").text
    assert 'vavae.Generator.from_pretrained("me/cats")' in text and "- seed: 7" in text
    assert 'Tokenizer.from_pretrained("this folder or its hub id")' in generator.tokenizer.card().text
    generator.save_diffusers(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "diffusers" and "DiffusionPipeline.from_pretrained" in card.text


def test_results_of_this_model_become_metrics(tmp_path: Path) -> None:
    generator, results = make({}, {}), tmp_path / "results.json"
    protocol = MeasurementProtocol(5000, reference="cifar10-train", checkpoint="/home/me/model")
    records = [
        MetricRecord("FID", value, replace(protocol, checkpoint_hash=of))
        for value, of in ((48.7, generator.fingerprint()), (9.9, "another"))
    ]
    results.write_text(json.dumps([record.to_dict() for record in records]))
    (found,) = ModelCard(generator.card("me/cats", results=results).content).data.eval_results  # as the hub reads it
    assert (found.metric_type, found.metric_value, found.dataset_name) == ("fid", 48.7, "cifar10-train")
    assert found.metric_args["samples"] == 5000 and "checkpoint" not in found.metric_args
    with pytest.raises(UserError, match=r"^results must have records of this model"):
        generator.tokenizer.card(results=results)
    for text in ("{", "{}", '["x"]'):
        results.write_text(text)
        with pytest.raises(UserError, match=r"^results must "):
            generator.card(results=results)
