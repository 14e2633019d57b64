"""Numbers of a recipe that are out of range."""

import math
from typing import Any

import pytest

from vavae.cli import run
from vavae.errors import UserError
from vavae.training.config import TrainingConfig
from vavae.training.ema import AveragesConfig
from vavae.training.optimizer import OptimizerConfig
from vavae.training.schedule import ScheduleConfig
from vavae.training.stability import StabilityConfig

WRONG: dict[type, dict[str, Any]] = {
    TrainingConfig: {
        "images": 0,
        "batch_size": -1,
        "log_images": 0,
        "keep_checkpoints": 0,
        "micro_batch": 0,
        "checkpoint_images": 0,
        "milestone_images": -3,
        "preview_images": 0,
        "validation_images": 0,
        "ema_decay": 2,
    },
    AveragesConfig: {"decays": (1.5,), "widths": (0.3,), "snapshot_images": -5},
    StabilityConfig: {"skipped": 0.0, "history": 0, "rollbacks": -1, "spike": math.nan},
    OptimizerConfig: {
        "learning_rate": -1.0,
        "betas": (0.9, 2.0),
        "eps": -1e-8,
        "weight_decay": math.inf,
        "momentum": 1.0,
        "gradient_clip": math.nan,
    },
    ScheduleConfig: {"warmup_images": -1, "decay_images": 0, "final": -0.5, "factors": (1.0, -1.0)},
}


@pytest.mark.parametrize("config_class", WRONG, ids=lambda config_class: config_class.__name__)
def test_numbers_out_of_range_are_named(config_class: type) -> None:
    for name, value in WRONG[config_class].items():
        with pytest.raises(UserError, match=rf"^([a-z]+\.)?{name} must be "):
            config_class(**{name: value})


@pytest.mark.parametrize(
    "option", ["training.batch_size=-1", "optimizer.schedule={kind: staged, boundaries: [8], factors: [1.0, -1.0]}"]
)
def test_command_names_numbers_out_of_range(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train-dit", f"--{option}", "--latents=none"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ("factors" if "factors" in option else "training.batch_size") in line.partition(": ")[2]
