"""The blocks of the README work in the order of reading, in an environment that has the wheel."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from launching import free_port

from vavae.data import DemoImages

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# Options that shorten a command.
SHORTER = {
    "vavae sample": "--steps 2 --device cpu",
    "vavae train-tokenizer": "--training.images 32 --training.device cpu",
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


def run_line(line: str, place: Path, environment: dict[str, str]) -> None:
    """Run one line of a shell block."""
    line = line.partition(" #")[0].strip()
    if ELSEWHERE in line or line.startswith(("python3 -m venv", "source ")):
        return
    if line.startswith("pip install"):
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        (extras,) = re.findall(r"'\.\[(.*)\]'", line)
        assert set(extras.split(",")) <= declared.keys(), line
    elif line.startswith("make "):
        subprocess.run(["make", "--dry-run", line.split()[1]], cwd=ROOT, check=True, capture_output=True)
    elif line.startswith("vavae serve"):
        serve = [*line.split(), "--port", str(free_port())]  # another test may take the first free one at this moment
        command = subprocess.Popen(serve, cwd=place, env=environment, stdout=subprocess.PIPE, text=True)
        assert command.stdout is not None
        try:
            assert "http://127.0.0.1:" in command.stdout.readline()
        finally:
            command.send_signal(signal.SIGINT)
            code = command.wait(60)
        assert code == 0
    else:
        more = next((SHORTER[start] for start in SHORTER if line.startswith(start)), "")
        done = subprocess.run(
            ["bash", "-ec", f"{line} {more}"], cwd=place, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line} {more}\n{done.stderr}"


@pytest.mark.timeout(1800)
def test_blocks_in_the_order_of_reading(installed: Path, tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / ("my-images/cats/tom.jpg" if number == 0 else f"my-images/{number % 2}s/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        DemoImages("test").image(number).save(path)
    variables = environment(installed)
    where = "import vavae; print(vavae.__file__)"
    found = subprocess.run(["python", "-c", where], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert found.stdout.startswith(str(installed))
    blocks = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks].count("bash") >= 4
    for kind, block in blocks:
        if kind == "python":
            subprocess.run(["python", "-c", block], cwd=tmp_path, env=variables, check=True)
            continue
        for line in filter(None, block.replace("\\\n", " ").splitlines()):
            run_line(line, tmp_path, variables)
    assert (tmp_path / "samples/grid.png").exists() and (tmp_path / "sample.png").exists()
