"""The installed wheel without any extra: sampling, loading and both trainings work, other commands name an extra."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import estimates
import pytest

from vavae.extras import EXTRAS

ROOT = Path(__file__).parents[1]
SUPPORT = str(Path(estimates.__file__).parent)
TINY_TOKENIZER = (
    "small/tokenizer --output runs/t --data.limit 30 --tokenizer.base_channels 32 --teacher.cache_features false "
    "--objective.alignment.enabled false --objective.perceptual.weight 0 --training.images 32"
)
TINY_TRANSFORMER = (
    "small/transformer --latents runs/l --tokenizer runs/t/tokenizer --output runs/g --transformer.width 32 "
    "--transformer.depth 1 --transformer.heads 2 --training.images 32 --training.batch_size 16"
)
STEPS = (
    ("recipes", ""),
    ("sample --count 2 --steps 2 --output runs/s", ""),
    (f"train-tokenizer {TINY_TOKENIZER}", ""),
    ("encode --tokenizer runs/t/tokenizer --output runs/l --data.images demo --data.size 32 --data.limit 30", ""),
    (f"train-dit {TINY_TRANSFORMER}", ""),
    ("sample --generator runs/g/generator --count 2 --steps 2 --output runs/s2", ""),
    ("demo --quick", "pip install 'vavae[demo]'"),
    ("serve", "pip install 'vavae[serve]'"),
    ("frontier", "pip install 'vavae[report]'"),
    ("evaluate tokenizer runs/t/tokenizer --data.images demo --data.size 32", "pip install 'vavae[metrics]'"),
    ("encode --data.images hf:a/b --tokenizer demo", "pip install 'vavae[datasets]'"),
    (f"train-tokenizer {TINY_TOKENIZER} --training.loggers wandb --output runs/w", "pip install accelerate wandb"),
)


# One process, since each takes seconds to import torch. A module that is None cannot be imported.
PROGRAM = """
import json, sys
steps, modules, support, installed = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(modules))
sys.path.append(support)
from estimates import skip_estimates
skip_estimates()
import vavae
from vavae.cli import run
assert vavae.__file__.startswith(installed), vavae.__file__
for line, expected in steps:
    print(f"vavae {line}", file=sys.stderr, flush=True)
    code = run(line.split())
    assert code == expected, f"{line}: exit code {code}"
"""


# By setuptools itself, since pip would start three more processes.
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


def install(place: Path) -> tuple[Path, Path]:
    """Build the wheel; return it and an environment that has it and the packages of this one."""
    source = place / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD, place], cwd=source, check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    installed = place / "venv"
    venv.create(installed)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", installed / "bin/python"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True, env=environment(installed))
    (packages,) = (installed / "lib").glob("python*/site-packages")
    # A line of a .pth file adds a folder without the .pth files in it, so not this environment's editable vavae.
    (packages / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return wheel, installed


def environment(installed: Path) -> dict[str, str]:
    """Return the variables of a shell in which the environment is active."""
    # With PYTHONPATH pip would take the package for installed.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "PATH": f"{installed / 'bin'}{os.pathsep}{kept['PATH']}", "VIRTUAL_ENV": str(installed)}


@pytest.mark.slow
def test_core(tmp_path: Path) -> None:
    wheel, installed = install(tmp_path)
    variables = environment(installed)
    written = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/vavae").rglob("*") if path.is_file()}
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in written if "__pycache__" not in name} == {n for n in packed if n.startswith("vavae/")}
    found = subprocess.run(["vavae", "--version"], env=variables, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("vavae 0")  # the installed script

    modules = sorted({module for extra in EXTRAS.values() for module in extra.modules} - {"jinja2"})  # torch brings it
    steps = [(line, 2 if message else 0) for line, message in STEPS]
    command = ["python", "-c", PROGRAM, json.dumps([steps, modules, SUPPORT, str(installed)])]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = dict(re.findall(r"^vavae (.*)\n(vavae: .*)$", done.stderr, re.MULTILINE))
    assert [line for line, message in STEPS if message and message not in errors[line]] == []
