"""Numbers of a recipe that are out of range."""

import pytest

from vavae.cli import run


def test_numbers_out_of_range_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "training.images": "0",
        "training.batch_size": "-1",
        "training.log_images": "0",
        "training.keep_checkpoints": "0",
        "training.micro_batch": "0",
        "training.checkpoint_images": "0",
        "training.milestone_images": "-3",
        "training.preview_images": "0",
        "training.validation_images": "0",
        "training.ema_decay": "2",
        "training.averages.decays": "[1.5]",
        "training.averages.snapshot_images": "-5",
        "training.stability.history": "0",
        "training.stability.rollbacks": "-1",
        "training.stability.spike": ".nan",
        "optimizer.learning_rate": "-1",
        "optimizer.betas": "[0.9,2]",
        "optimizer.eps": "-1e-8",
        "optimizer.weight_decay": ".inf",
        "optimizer.momentum": "1.0",
        "optimizer.gradient_clip": ".nan",
        "optimizer.schedule.warmup_images": "-1",
        "optimizer.schedule.decay_images": "0",
        "optimizer.schedule.final": "-0.5",
        "optimizer.schedule": "{kind: staged, boundaries: [8], factors: [1.0, -1.0]}",
    }
    for key, value in wrong.items():
        assert run(["train-dit", f"--{key}={value}", "--latents=none"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and key.rpartition(".")[2] in lines[0].partition(": ")[2], (key, lines)
