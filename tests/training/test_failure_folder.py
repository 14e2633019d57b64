"""A run that goes wrong, and the documented command that repeats its last steps, as given on the command line."""

import json
from pathlib import Path

import pytest
from tiny_runs import write_latents

from vavae.cli import run
from vavae.training.run_log import read_metrics


@pytest.mark.slow
def test_documented_command_reproduces_the_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From 64 images on the learning rate is so large that loss and gradient become infinite or NaN."""
    write_latents(tmp_path)
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        f"""
latents: {tmp_path}/latents
tokenizer: {tmp_path}/tokenizer
transformer: {{size: S/1, width: 32, depth: 2, heads: 2}}
optimizer: {{learning_rate: 1.0e-3, schedule: {{kind: staged, boundaries: [64], factors: [1.0, 1.0e+38]}}}}
training:
  images: 160
  batch_size: 8
  device: cpu
  precision: fp32
  log_images: 16
  checkpoint_images: 40
  tensorboard: false
  stability: {{rollbacks: 1}}
"""
    )
    assert run(["train-dit", str(recipe), "--output", str(folder)]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "of the steps were skipped" in message and f"after 1 rollback; {folder}/failure reproduces it" in message
    wrong = json.loads((folder / "failure/failure.json").read_text())
    before = read_metrics(folder)

    # As docs/training.md gives it: the run's own recipe, and the folder as output.
    assert run(["train-dit", str(recipe), "--output", str(folder / "failure")]) == 1
    again = capsys.readouterr().err.splitlines()[-1]
    assert again == message.replace(f"{folder}/failure", f"{folder}/failure/failure")
    assert json.loads((folder / "failure/failure/failure.json").read_text()) == wrong
    repeated = read_metrics(folder / "failure")
    assert repeated and repeated == before[-len(repeated) :]

    # The folder's own copy of the recipe works too; it includes the options of the command line.
    assert run(["train-dit", str(folder / "failure/recipe.yaml"), "--output", str(folder / "failure")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == again and read_metrics(folder / "failure") == repeated
