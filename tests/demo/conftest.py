"""A report with everything in it, small."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vavae.data import DemoImages
from vavae.demo.contents import DemoReport, Headline, MetricRow, RunReport, StepTiming


def log_lines(count: int, alignment: bool, seed: int) -> list[dict[str, float | None]]:
    """Log lines of a pretend run, one value missing and one not finite."""
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


def make_run(name: str, alignment: bool, originals: np.ndarray, seed: int) -> RunReport:
    """A pretend run on `originals`."""
    rng = np.random.default_rng(seed)
    count = len(originals)
    return RunReport(
        name=name,
        reconstructions=np.clip(originals.astype(int) + 7 + seed, 0, 255).astype(np.uint8),
        latents=rng.normal(size=(count, 4, 4, 6)),
        tokenizer_log=log_lines(40, alignment, seed),
        generator_log=[{"images": 64.0 * (i + 1), "total": 2 / (i + 1), "mse": 1 / (i + 1)} for i in range(30)],
        tsne_points=rng.normal(size=(25, 2)),
        tsne_labels=np.arange(25) % 10,
        tsne_note="Each point is a mean latent.",
        samples=rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8),
        sample_labels=np.repeat(np.arange(10), 2),
        guidance="guidance 3.25",
        formation=[(t, rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)) for t in (0.0, 0.5, 1.0)],
        formation_note="States, decoded.",
    )


@pytest.fixture
def make_report() -> Callable[..., DemoReport]:
    """Makes a full report of two runs on ten real images; keywords replace its fields."""

    def make(**changes: Any) -> DemoReport:
        source = DemoImages("test")
        originals = source.pixels[:10]
        report = DemoReport(
            title="A title",
            subtitle="A subtitle",
            command="vavae demo --seed 0",
            created="2026-03-14T15:09:26+00:00",
            machine={"processor": "Some CPU", "threads": "2"},
            versions={"vavae": "0.1.0", "torch": "2.13.0"},
            images_note="Images of someone, licence so and so.",
            teacher_note="Teacher X.",
            steps=(StepTiming("Train", 75.3, "1,000 images"), StepTiming("Sample", 4.25)),
            class_names=source.class_names,
            originals=originals,
            original_labels=source.labels[:10],
            teacher_features=np.random.default_rng(0).normal(size=(10, 4, 4, 12)),
            runs=(make_run("aligned", True, originals, 1), make_run("unaligned", False, originals, 2)),
            headline=(
                Headline("Cosine", 0.7123456, "", "higher is better", {"unaligned": 0.0987}, "aligned"),
                Headline("Time", "1 min 20 s"),
            ),
            metrics=(
                MetricRow("PSNR", "aligned", 24.81234, "higher", {"images": 1000, "split": "test"}),
                MetricRow("PSNR", "unaligned", 25.10432, "higher", {"images": 1000, "split": "test"}),
                MetricRow("gFID", "aligned", 98.7654, "lower", {"samples": 500, "guidance": {"scale": 1.5}}),
                MetricRow("gFID", "unaligned", 131.25, "lower", {"samples": 500, "guidance": {"scale": 1.5}}),
                MetricRow("Floor", "", 22.456, None, {"pairs": "train against test"}),
            ),
            findings=("Alignment did something.",),
        )
        return replace(report, **changes)

    return make
