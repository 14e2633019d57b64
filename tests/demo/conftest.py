"""A small report with every part of the page."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vavae.data import DemoImages
from vavae.demo.contents import DemoReport, Gallery, RunResult, StepTiming
from vavae.metrics import MeasurementProtocol, MetricRecord


def log_lines(count: int, alignment: bool, seed: int) -> list[dict[str, float | None]]:
    """Return log lines of a run; one value is missing and one is not finite."""
    rng = np.random.default_rng(seed)
    lines: list[dict[str, float | None]] = []
    for i in range(count):
        decay = float(np.exp(-i / count * 4) * (1 + 0.05 * rng.normal()))
        lines.append(
            {
                "images": 32.0 * (i + 1),
                "step": float(i),
                "total": 100 * decay,
                "pixel": 0.3 * decay,
                "psnr": 20 - 5 * decay,
                "cosine": decay if alignment else 0.0,
                "adversarial": 0.0 if i < count // 2 else -0.2 * decay,
                "discriminator": 0.0,
                "gradient_norm/autoencoder": 1000 * decay,
                "skipped/autoencoder": 0.0,
            }
        )
    lines[3]["pixel"] = None
    lines[4]["psnr"] = float("nan")
    return lines


def record(name: str, value: float, higher: bool | None = None, unit: str = "", **protocol: Any) -> MetricRecord:
    return MetricRecord(name, value, MeasurementProtocol(samples=10, **protocol), unit, higher)


def make_run(name: str, alignment: bool, originals: np.ndarray, seed: int) -> RunResult:
    """Return a made-up run on `originals`."""
    rng = np.random.default_rng(seed)
    count = len(originals)
    return RunResult(
        name=name,
        records=[
            record("PSNR", 24.81234 + 0.3 * seed, True, "dB", split="test"),
            record("linear probe", 0.4124 - 0.0003 * seed, True),
            record("Fréchet distance of samples", 98.7654 * seed, False, guidance_scale=1.5, checkpoint=name),
        ],
        reconstructions=np.clip(originals.astype(int) + 7 + seed, 0, 255).astype(np.uint8),
        latents=rng.normal(size=(count, 4, 4, 6)),
        tokenizer_log=log_lines(40, alignment, seed),
        generator_log=[{"images": 64.0 * (i + 1), "total": 2 / (i + 1), "mse": 1 / (i + 1)} for i in range(30)],
        tsne_points=rng.normal(size=(25, 2)),
        tsne_labels=np.arange(25) % 10,
        samples=rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8),
        sample_labels=[label for label in range(10) for _ in range(2)],
        formation=[(t, rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)) for t in (0.0, 0.5, 1.0)],
    )


@pytest.fixture(scope="session")
def make_report() -> Callable[..., DemoReport]:
    """Return a function that makes a report of two runs on ten real images; keywords replace its fields."""
    source = DemoImages("test")
    originals = source.pixels[:10]
    gallery = np.random.default_rng(5).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    report = DemoReport(
        command="vavae demo --seed 0",
        created="14 March 2026, 15:09 UTC",
        machine={"processor": "Some CPU", "device": "CPU, 2 threads"},
        versions={"vavae": "0.1.0", "torch": "2.13.0"},
        images_note="Ten images, with a license.",
        teacher_note="Teacher X.",
        guidance="guidance 3.25",
        steps=(StepTiming("train", 75.3, "1,000 images"), StepTiming("sample", 4.25)),
        class_names=source.class_names,
        originals=originals,
        original_labels=source.labels[:10],
        teacher_features=np.random.default_rng(0).normal(size=(10, 4, 4, 12)),
        runs=(make_run("aligned", True, originals, 1), make_run("unaligned", False, originals, 2)),
        reference=(record("Fréchet distance of real training images", 22.456, False),),
        findings=("Alignment did something.",),
        gallery=Gallery("Trained for a week.", gallery, [1, 0, 1, 1, 0, 2], ("fern", "moss"), "guidance 9"),
    )
    return lambda **changes: replace(report, **changes)
