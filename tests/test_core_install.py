"""Without any extra: sampling, loading and both trainings work, the other commands name an extra."""

import json
import re
import subprocess
import sys
from pathlib import Path

import estimates
import pytest

from vavae.extras import EXTRAS

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
steps, modules, support = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(modules))
sys.path.append(support)
from estimates import skip_estimates
skip_estimates()
from vavae.cli import run
for line, expected in steps:
    print(f"vavae {line}", file=sys.stderr, flush=True)
    code = run(line.split())
    assert code == expected, f"{line}: exit code {code}"
"""


@pytest.mark.slow
def test_core(tmp_path: Path) -> None:
    modules = sorted({module for extra in EXTRAS.values() for module in extra.modules} - {"jinja2"})  # torch brings it
    steps = [(line, 2 if message else 0) for line, message in STEPS]
    command = [sys.executable, "-c", PROGRAM, json.dumps([steps, modules, SUPPORT])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = dict(re.findall(r"^vavae (.*)\n(vavae: .*)$", done.stderr, re.MULTILINE))
    assert [line for line, message in STEPS if message and message not in errors[line]] == []
