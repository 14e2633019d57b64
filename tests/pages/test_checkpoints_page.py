"""Run docs/checkpoints.md from top to bottom on small stand-ins of the published files, and compare the output."""

import contextlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from published_files import (
    LIGHTNINGDIT,
    MAR_VAE,
    SD_VAE,
    autoencoder,
    golden_dit,
    lightning_checkpoint,
    same_weights,
    statistics,
    training_checkpoint,
)
from safetensors.torch import save_file

from vavae.checkpoints.diffusers_autoencoder import diffusers_config, to_diffusers_names
from vavae.checkpoints.statistics import scaling_statistics
from vavae.cli import run
from vavae.models import Generator, Tokenizer

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
# What makes commands and Python of the page shorter: fewer steps than the published 250.
SHORTER = {
    '--labels "[1, 2, 3, 4]"': '--labels "[1, 2, 3, 4]" --steps 8',
    "seed=0)": "seed=0, steps=4)",
    "size=(32, 96))": "size=(32, 96), steps=4)",
    "pipeline(class_labels=[1, 2])": "pipeline(class_labels=[1, 2], num_inference_steps=4)",
}


def make_published_files() -> None:
    """Write one file of each kind into the current folder."""
    model, projection = autoencoder()
    torch.save(model.state_dict(), "vavae-imagenet256-f16d32-dinov2.pt")
    torch.save(statistics(8), "latents_stats.pt")
    torch.save(lightning_checkpoint(model, projection), "f16d32_vfdinov2_50ep.ckpt")
    torch.save({"model": autoencoder(MAR_VAE)[0].state_dict()}, "kl16.ckpt")
    torch.save(training_checkpoint(golden_dit()[0]), "lightningdit-xl-imagenet256-800ep.pt")
    torch.save({"ema": dict(golden_dit("dit_original")[0].state_dict())}, "dit-sd-vae.pt")
    sd = autoencoder(SD_VAE)[0].state_dict()
    torch.save({"state_dict": {**sd, "loss.logvar": torch.zeros(())}}, "kl-f8.ckpt")
    folder = Path("sd-vae-ft-ema")
    folder.mkdir()
    save_file(to_diffusers_names(sd, 4), folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    config = diffusers_config(SD_VAE, scaling_statistics(4, 0.18215))
    (folder / "config.json").write_text(json.dumps(config))
    Path("lightningdit_xl.yaml").write_text(LIGHTNINGDIT)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def sessions() -> list[tuple[str, str]]:
    """Return every command of the page with the output below it."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command, printed))
    return found


def shorter(text: str) -> str:
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


def execute(command: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        run(shlex.split(shorter(command))[1:])
    # Progress bars go to the error stream too.
    refusals = [line + "\n" for line in err.getvalue().splitlines() if line.startswith("vavae: ")]
    return out.getvalue() + "".join(refusals)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run the commands of the page in order in a folder with the files; return their output."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("page"))
    make_published_files()
    yield {command: execute(command) for command, _ in sessions()}
    os.chdir(before)


def test_page_has_what_is_made_shorter() -> None:
    assert [text for text in SHORTER if text not in PAGE.read_text()] == []


def test_commands_print_the_output_on_the_page(ran: dict[str, str]) -> None:
    for command, printed in sessions():
        assert ran[command] == printed, command


def test_table_agrees_with_the_commands(ran: dict[str, str]) -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:4]] for line in PAGE.read_text().splitlines() if "| `vavae " in line
    ]
    assert len(rows) == 7
    for _, command, line in rows:
        known = [printed for full, printed in ran.items() if full.startswith(command.strip("`"))]
        assert any(line.strip("`") in printed.splitlines() for printed in known), command


def test_python_on_the_page_runs(ran: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(Path("modules").absolute()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which diffusers adds the folder of its modules
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # of another test's folder
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for block in blocks("python"):
            exec(compile(shorter(block), PAGE.name, "exec"), names)
    assert "left out model: weights that are not averaged" in printed.getvalue()
    assert [image.size for image in names["images"]] == [(64, 64)] * 2  # of the pipeline


def test_every_published_form_gives_images(ran: dict[str, str]) -> None:
    for folder, count, size in (("samples", 4, (64, 64)), ("samples-sd", 2, (64, 64))):
        for i in range(count):
            image = Image.open(f"{folder}/{i:06d}.png")
            assert image.size == size
            low, high = zip(*image.getextrema(), strict=True)
            assert max(high) - min(low) > 50  # several colors
    published = golden_dit()[0]
    assert same_weights(Generator.from_pretrained("generators/xl").transformer, published)
    assert same_weights(Generator.from_pretrained("generators/back").transformer, published)
    again = Generator.from_pretrained("published-again")
    assert same_weights(again.transformer, published)
    assert same_weights(again.tokenizer.autoencoder, autoencoder()[0])
    for name, config in (("mar", MAR_VAE), ("sd-vae", SD_VAE), ("kl-f8", SD_VAE)):
        tokenizer = Tokenizer.from_pretrained(f"tokenizers/{name}")
        assert tokenizer.autoencoder.config == config
        assert same_weights(tokenizer.autoencoder, autoencoder(config)[0])


def test_converted_recipe_resolves(ran: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert yaml.safe_load(Path("recipe.yaml").read_text())["tokenizer"] == "tokenizers/vavae"
    assert run(["train-dit", "recipe.yaml", "--print_config"]) == 0
    capsys.readouterr()
