"""Processes that start quickly: forked from a server that has imported the slow modules, the tests' own ones too."""

import faulthandler
import os
from collections.abc import Callable, Mapping
from multiprocessing import context, forkserver
from pathlib import Path
from unittest import mock

from estimates import skip_estimates


class Child(context.ForkServerProcess):
    """A process that the server forks."""

    def start(self) -> None:
        """Start it, and before the first one the server.

        The server of Python 3.11 does not get this process's import path and silently skips modules that it cannot
        find (gh-117378), so the path is in its environment.
        """
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(paths)):
            forkserver.ensure_running()
        super().start()


class _Context(context.ForkServerContext):
    Process = Child


CONTEXT = _Context()
CONTEXT.set_forkserver_preload(["served"])


def run_child(
    environment: Mapping[str, str], errors: Path, patience: float, function: Callable[..., None], *given: str
) -> None:
    """Call `function` in a child with this environment; standard error and traces of hanging threads go to a file.

    Runs do not estimate what they need.
    """
    os.environ.clear()
    os.environ.update(environment)
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    faulthandler.dump_traceback_later(patience)
    skip_estimates()
    function(*given)
