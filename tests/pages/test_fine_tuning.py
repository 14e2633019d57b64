"""Run the fine-tuning commands of docs/training.md on small stand-ins of the published files."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_files import autoencoder, golden_dit, statistics, training_checkpoint

from vavae.cli import run
from vavae.models import Generator, Tokenizer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()
# Options that make each command small; the stand-ins are for 64 px.
SMALL = {
    "convert": "",
    "encode": "--data.size 64 --device cpu",
    "train-dit": "--transformer.width 64 --transformer.depth 2 --transformer.heads 4 --training.images 16 "
    "--training.batch_size 8 --training.device cpu --training.precision fp32 --training.tensorboard false "
    "--compile false",
    "sample": "--steps 3 --device cpu",
}


@pytest.mark.slow
def test_fine_tuning_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(autoencoder()[0].state_dict(), "vavae-imagenet256-f16d32-dinov2.pt")
    torch.save(statistics(8), "latents_stats.pt")
    torch.save(training_checkpoint(golden_dit()[0]), "lightningdit-xl-imagenet256-800ep.pt")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        Path("my-images", name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(f"my-images/{name}/{i}.png")
    section = PAGE.split("## Fine-tuning")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    commands = [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines()]
    assert [command[0] for command in commands] == ["convert", "convert", "encode", "train-dit", "sample"]
    for command in commands:
        assert run([*command, *shlex.split(SMALL[command[0]])]) == 0
    (printed,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    assert Path("runs/tuned/transformer/initial.txt").read_text() == printed
    generator = Generator.from_pretrained("runs/tuned/transformer/generator")
    assert generator.class_names == ("cat", "dog")
    assert generator.tokenizer.statistics.equals(Tokenizer.from_pretrained("tokenizers/vavae").statistics)
    assert json.loads(Path("runs/tuned/samples/samples.json").read_text())["labels"] == [0, 1]
