"""Settings of all tests: threads per worker, Ctrl-C, and no deadline of hypothesis, which a busy machine would miss."""

import gc
import importlib.util
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from estimates import restore_estimates, skip_estimates
from hypothesis import settings
from launching import launch  # noqa: F401 a fixture of many rooms

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

# A script's background jobs ignore SIGINT, and so would the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # during the collection, which leaves little garbage
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
skip_estimates()  # for all fixtures too, whatever their scope

# Tests of extras. `make test` installs these; a GPU machine without a network may lack them and still run its tests.
_OF_EXTRAS = {
    "data/test_huggingface.py": "datasets",
    "models/test_diffusers.py": "diffusers",
    "serve/test_page.py": "gradio",
}
collect_ignore = [path for path, extra in _OF_EXTRAS.items() if importlib.util.find_spec(extra) is None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which tests are left out, at any verbosity."""
    for path in collect_ignore:
        terminalreporter.write_line(f"left out, since {_OF_EXTRAS[path]} is missing: tests/{path}")


def pytest_collection_finish() -> None:
    """Leave modules and tests out of the search for garbage: they stay, and each search would take half a second."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 20, 20)  # far fewer searches than by default: runs leave little garbage


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start processes by `launch` as slow."""
    for item in items:
        if "launch" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs estimate what they need, as they do outside tests."""
    restore_estimates(monkeypatch.setattr)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Compile modules into plain calls, and count the graphs (torch's `CompileCounterWithBackend`)."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    found, plain = CompileCounterWithBackend("eager"), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: plain(self, backend=found, **options))
    yield found
    torch._dynamo.reset()
