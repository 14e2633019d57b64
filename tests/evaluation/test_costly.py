"""Metrics that compare each image with each: left out unasked where that takes hours, and never at others' cost."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from evaluate_models import use_colours

from vavae.evaluation import generation as evaluate_generation
from vavae.evaluation.compare import read_records
from vavae.metrics import MetricRecord
from vavae.stages import evaluate

SAMPLES, REFERENCE = 30, 50
QUICK = ["FID", "sFID", "Inception Score"]


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Evaluates samples in one npz against the images of another."""
    monkeypatch.setattr(evaluate, "load_feature_network", evaluate.load_feature_network)  # put back afterwards
    monkeypatch.setattr(evaluate.of_tokenizer, "perceptual_networks", evaluate.of_tokenizer.perceptual_networks)
    use_colours()
    rng = np.random.default_rng(0)
    for name, count in (("samples", SAMPLES), ("reference", REFERENCE)):
        np.savez(tmp_path / f"{name}.npz", arr_0=rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))

    def evaluated(**changes: object) -> list[MetricRecord]:
        config = evaluate.Config(
            "samples",
            [str(tmp_path / "samples.npz")],
            reference=str(tmp_path / "reference.npz"),
            network="inception",
            features=str(tmp_path / "features"),
            output=str(tmp_path / "records.json"),
            device="cpu",
        )
        return evaluate.run(replace(config, **changes))  # type: ignore[arg-type]

    return evaluated


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        (SAMPLES + REFERENCE, [*QUICK, "precision", "recall", "KID"]),
        (SAMPLES + REFERENCE - 1, [*QUICK, "precision", "recall"]),
        (SAMPLES + 9, QUICK),
    ],
)
def test_what_would_take_hours_is_left_out_unasked(measured, monkeypatch, capsys, limit, found):
    monkeypatch.setattr(evaluate_generation, "_COMPARED", {"cpu": limit})
    monkeypatch.setattr(evaluate, "Measuring", partial(evaluate_generation.Measuring, manifold_reference=10))
    assert [record.name for record in measured()] == found
    told = capsys.readouterr().out
    assert ("kid is left out: it compares each of 80 images with each" in told) == ("KID" not in found)
    assert ("precision_recall is left out: it compares each of 40 images" in told) == ("recall" not in found)
    assert ("--metrics kid asks for it" in told) == ("KID" not in found)
    assert [record.name for record in measured(metrics=["kid"])] == ["KID"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_what_was_measured_before_a_failure_is_not_lost(measured, monkeypatch, tmp_path, capsys, error):
    def failing(*_: object) -> float:
        raise error

    monkeypatch.setattr(evaluate_generation, "kernel_distance", failing)
    with pytest.raises(type(error)):
        measured()
    records = read_records(tmp_path / "records.json")
    assert [record.name for record in records] == [*QUICK, "precision", "recall"]
    assert all(record.versions["torch"] for record in records)
    assert "FID" in capsys.readouterr().out
