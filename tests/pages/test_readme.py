"""The blocks of the README work in the order of reading, in an environment that has the wheel."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import estimates
import pytest
from launching import free_port
from PIL import Image

from vavae.data import DemoImages

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SUPPORT = Path(estimates.__file__).parent
# Options that shorten a command.
SHORTER = {
    "vavae sample": "--steps 2 --device cpu",
    "vavae train-tokenizer": "--training.images 16 --teacher.input_size 56 --training.device cpu",
    "vavae encode": "--device cpu",
    "vavae train-dit": "--training.images 32 --training.batch_size 16 --training.device cpu",
    "vavae evaluate": "--device cpu --tsne_seeds 1",
}
ELSEWHERE = "imagenet256/"  # needs ImageNet; test_docs.py resolves these commands


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel; return an environment with it and the packages of this one."""
    place = tmp_path_factory.mktemp("readme")
    source = place / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", place, source], check=True)
    venv.create(place / "venv")
    python = place / "venv/bin/python"
    (wheel,) = place.glob("*.whl")
    # With PYTHONPATH pip would take the package for installed.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True, env=kept)
    (packages,) = (place / "venv/lib").glob("python*/site-packages")
    # A line of a .pth file adds a folder without the .pth files in it, so not this environment's editable vavae.
    (packages / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "venv"


def environment(installed: Path) -> dict[str, str]:
    """Return the variables of a shell in which the environment is active."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "PATH": f"{installed / 'bin'}{os.pathsep}{kept['PATH']}", "VIRTUAL_ENV": str(installed)}


# All blocks in one process, since each takes seconds to import torch.
PROGRAM = """
import contextlib, io, json, os, shlex, signal, sys, threading, time
import vavae
sys.path.append(sys.argv[2])
from estimates import skip_estimates
skip_estimates()
from vavae.cli import run
assert vavae.__file__.startswith(sys.argv[1]), vavae.__file__

def stop_when_ready(printed):
    while "http://127.0.0.1:" not in printed.getvalue():
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

for kind, text in json.load(sys.stdin):
    print(text, file=sys.stderr, flush=True)
    if kind == "python":
        exec(compile(text, "README.md", "exec"), {})
        continue
    command, *options = shlex.split(text)[1:]
    printed = io.StringIO()
    if command == "serve":
        threading.Thread(target=stop_when_ready, args=(printed,), daemon=True).start()
    with contextlib.redirect_stdout(printed):
        code = run([command, *options])
    assert code == 0, f"exit code {code}"
"""


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
        return f"{line} --port {free_port()}"  # another test may take the first free one at this moment
    return f"{line} {next((SHORTER[start] for start in SHORTER if line.startswith(start)), '')}"


@pytest.mark.timeout(1800)
def test_blocks_in_the_order_of_reading(installed: Path, tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / ("my-images/cats/tom.jpg" if number == 0 else f"my-images/{number % 2}s/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        DemoImages("test").image(number).save(path)
    variables = environment(installed)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks].count("bash") >= 4
    given: list[tuple[str, str]] = []
    for kind, block in blocks:
        if kind == "python":
            given.append((kind, block))
            continue
        for line in filter(None, block.replace("\\\n", " ").splitlines()):
            if text := command(line.partition(" #")[0].strip()):
                given.append((kind, text))
    found = subprocess.run(["vavae", "--version"], env=variables, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("vavae 0")  # the installed script
    done = subprocess.run(
        ["python", "-c", PROGRAM, installed, SUPPORT],
        cwd=tmp_path,
        env=variables,
        input=json.dumps(given),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "samples/grid.png").exists()
    assert Image.open(tmp_path / "cat.png").size == Image.open(tmp_path / "sample.png").size == (32, 32)
