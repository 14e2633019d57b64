"""The three published stages in one small run that is killed within and between stages: the result is identical."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from children import CONTEXT
from estimates import skip_estimates

from vavae.cli import run
from vavae.training.checkpoint import CheckpointFolder

RECIPE = "imagenet256/tokenizer-f16d32-dinov2-final"
STAGES = "[{from_images: 16, weight: 0.1}, {from_images: 32, cos_margin: 0.5, distance_margin: 0.25}]"
SMALL = {
    "data.images": "demo", "data.size": "16", "data.limit": "30", "data.workers": "1",
    "tokenizer.latent_channels": "8", "tokenizer.base_channels": "16", "tokenizer.channel_multipliers": "[1, 2]",
    "tokenizer.blocks_per_level": "1", "tokenizer.attention_levels": "[]",
    "objective.perceptual.weight": "0", "objective.adversarial.start_images": "8",
    "objective.adversarial.discriminator": "{base_channels: 8, layers: 1}",
    "training.images": "48", "training.batch_size": "4", "training.device": "cpu", "training.log_images": "4",
    "training.checkpoint_images": "12", "training.milestone_images": "null", "training.tensorboard": "false",
}  # fmt: skip


class Patches(torch.nn.Module):
    """A fixed random projection of patches, in place of a foundation model."""

    width = 12

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(5)))

    def features_at(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        features = torch.nn.functional.conv2d(images, self.weight, stride=4)
        return torch.nn.functional.interpolate(features, size=grid, mode="bilinear")


def train(output: str, number: int, at: int) -> None:
    """Run the command, which sends itself a signal when it has seen `at` images."""
    from vavae.stages import train_tokenizer

    torch.set_num_threads(1)
    skip_estimates()
    train_tokenizer.load_teacher = lambda *_, **__: Patches()  # type: ignore[assignment]
    original = train_tokenizer.TokenizerTask.step

    def step(self: Any, batch: Any, images_seen: int, scale: float) -> dict[str, torch.Tensor]:
        if images_seen == at:
            os.kill(os.getpid(), number)
        return original(self, batch, images_seen, scale)

    train_tokenizer.TokenizerTask.step = step  # type: ignore[method-assign]
    options = [word for name, value in SMALL.items() for word in (f"--{name}", value)]
    sys.exit(run(["train-tokenizer", RECIPE, "--output", output, "--stages", STAGES, *options]))


def command(output: Path, number: int = 0, at: int = -1) -> int | None:
    child = CONTEXT.Process(target=train, args=(str(output), int(number), at))
    child.start()
    child.join()
    return child.exitcode


@pytest.mark.slow
def test_kills_within_and_between_stages(tmp_path: Path) -> None:
    assert command(tmp_path / "whole") == 0
    killed = tmp_path / "killed"
    assert command(killed, signal.SIGTERM, 12) == 1  # saved after the step, at 16: where the second stage begins
    assert CheckpointFolder(killed / "checkpoints").list()[-1].name.endswith("000016")
    assert command(killed, signal.SIGKILL, 28) == -signal.SIGKILL  # within the second
    assert command(killed, signal.SIGKILL, 32) == -signal.SIGKILL  # at the first step of the third
    assert command(killed) == 0
    states = [CheckpointFolder(tmp_path / name / "checkpoints").load_newest() for name in ("whole", "killed")]
    assert states[0] is not None and states[1] is not None
    one, other = states[0][0], states[1][0]
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]
    lines = [json.loads(line) for line in texts[0].splitlines()]
    assert [line["images"] for line in lines] == list(range(4, 49, 4))
    # The terms show the stages: the adaptive weight falls about fivefold, then the margins reduce the losses.
    weight = {line["images"]: line["alignment_weight"] for line in lines}
    cosine = {line["images"]: line["cosine"] for line in lines}
    assert weight[20] < 0.5 * weight[16]
    assert cosine[36] == pytest.approx(cosine[32] - 0.5, abs=0.1)
    files = [sorted((tmp_path / name / "tokenizer").glob("*.safetensors")) for name in ("whole", "killed")]
    assert files[0] and [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
