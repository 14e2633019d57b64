"""Processes that start quickly: forked from a server that has imported the slow modules.

The server of Python 3.11 has its own import path and silently skips modules that it cannot find (gh-117378). So it
preloads installed modules only, and children import the tests' modules themselves.
"""

import faulthandler
import gc
import multiprocessing
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from estimates import skip_estimates

CONTEXT = multiprocessing.get_context("forkserver")
_STAGES = ["vavae.stages.encode", "vavae.stages.train_dit", "vavae.stages.train_joint", "vavae.stages.train_tokenizer"]
# Training and `workers` import these late: together they take longer than a tiny run.
_LATE = [
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch._dynamo",
    "huggingface_hub.repocard",
    "pytest",
]
CONTEXT.set_forkserver_preload([*_STAGES, *_LATE])


def run_child(
    environment: Mapping[str, str], errors: Path, patience: float, function: Callable[..., None], *given: str
) -> None:
    """Call `function` in a child with this environment; standard error and traces of hanging threads go to a file.

    Runs do not estimate what they need.
    """
    gc.freeze()  # what the server has imported is not searched for garbage, which would copy it
    os.environ.clear()
    os.environ.update(environment)
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    faulthandler.dump_traceback_later(patience)
    skip_estimates()
    function(*given)
