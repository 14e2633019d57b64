"""Processes that start in a moment: forked from a server that has imported what takes seconds to import.

Servers of Python 3.11 look for what they preload on a path of their own, and pass over in silence what is not there
(gh-117378): so they preload the package, and children import modules of the tests themselves.
"""

import faulthandler
import multiprocessing
import os
from collections.abc import Callable, Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vavae.stages.encode", "vavae.stages.train_dit", "vavae.stages.train_tokenizer"])


def told(
    environment: Mapping[str, str], errors: Path, patience: float, function: Callable[..., None], *given: str
) -> None:
    """What a child does: `function` with this environment, its standard error and threads that hang in a file."""
    os.environ.clear()
    os.environ.update(environment)
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    faulthandler.dump_traceback_later(patience)
    function(*given)
