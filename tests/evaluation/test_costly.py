"""Metrics that compare each image with each are left out of large sets; an error keeps the numbers before it."""

from dataclasses import replace

import numpy as np
import pytest
from evaluate_models import use_colors

from vavae.evaluation import generation
from vavae.evaluation.compare import read_records
from vavae.metrics import MetricRecord
from vavae.stages import evaluate

SAMPLES, REFERENCE = 30, 50
QUICK = ["FID", "sFID", "Inception Score"]


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Return a function that measures the samples of one npz against the images of another."""
    use_colors(monkeypatch.setattr)
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
def test_slow_metrics_are_left_out(measured, monkeypatch, capsys, limit, found):
    monkeypatch.setattr(generation, "_COMPARED", {"cpu": limit})
    monkeypatch.setattr(generation, "_MANIFOLD", 10)
    assert [record.name for record in measured()] == found
    printed = capsys.readouterr().out
    assert ("kid is left out: it compares each of 80 images with each" in printed) == ("KID" not in found)
    assert ("precision_recall is left out: it compares each of 40 images" in printed) == ("recall" not in found)
    assert ("--metrics kid measures it" in printed) == ("KID" not in found)
    assert [record.name for record in measured(metrics=["kid"])] == ["KID"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_failure_keeps_earlier_numbers(measured, monkeypatch, tmp_path, capsys, error):
    def failing(*_: object) -> float:
        raise error

    monkeypatch.setattr(generation, "kernel_distance", failing)
    with pytest.raises(type(error)):
        measured()
    records = read_records(tmp_path / "records.json")
    assert [record.name for record in records] == [*QUICK, "precision", "recall"]
    assert all(record.versions["torch"] for record in records)
    assert "FID" in capsys.readouterr().out
