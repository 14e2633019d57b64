"""The blocks of the README work in the order of reading; test_core_install.py runs the installed wheel."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vavae.cli import run
from vavae.data import DemoImages

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# Options that shorten a command.
SHORTER = {
    "vavae sample": "--steps 2 --device cpu",
    "vavae train-tokenizer": "--training.images 16 --teacher.input_size 56 --training.device cpu",
    "vavae encode": "--device cpu",
    "vavae train-dit": "--training.images 32 --training.batch_size 16 --training.device cpu",
    "vavae evaluate": "--device cpu --tsne_seeds 1",
}
ELSEWHERE = "imagenet256/"  # needs ImageNet; test_docs.py resolves these commands


def command(line: str) -> str | None:
    """Return a line of a shell block as a short command of vavae; check other lines, and return None."""
    if ELSEWHERE in line or line.startswith(("python3 -m venv", "source ")):
        return None
    if line.startswith("pip install"):
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        (extras,) = re.findall(r"'\.\[(.*)\]'", line)
        assert set(extras.split(",")) <= declared.keys(), line
        return None
    if line.startswith("make "):
        subprocess.run(["make", "--dry-run", line.split()[1]], cwd=ROOT, check=True, capture_output=True)
        return None
    assert line.startswith("vavae "), line
    if line == "vavae serve":
        return None  # tests/serve/test_page.py, which loads gradio anyway, runs this line
    return f"{line} {next((SHORTER[start] for start in SHORTER if line.startswith(start)), '')}"


def test_blocks_in_the_order_of_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        path = tmp_path / ("my-images/cats/tom.jpg" if number == 0 else f"my-images/{number % 2}s/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        DemoImages("test").image(number).save(path)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks].count("bash") >= 4
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block.replace("steps=50", "steps=4"), "README.md", "exec"), {})
            continue
        for line in filter(None, block.replace("\\\n", " ").splitlines()):
            if text := command(line.partition(" #")[0].strip()):
                assert run(shlex.split(text)[1:]) == 0, text
    assert np.asarray(Image.open("samples/grid.png")).std() > 0
    assert np.asarray(Image.open("runs/small/samples/grid.png")).std() > 0
    assert Image.open("cat.png").size == Image.open("sample.png").size == (32, 32)
