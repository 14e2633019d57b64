"""Compilation during inference: when it is decided, and what it says."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vavae.errors import UserError
from vavae.training import compile as compilation
from vavae.training.compile import CompileOption, InferenceCompilation

CPU = torch.device("cpu")


class Clock:
    """A clock and a network: an evaluation takes 1 s, or `compiled` s when compiled, and compiling takes 30 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, compiled: float = 0.5, fails: bool = False) -> None:
        self.now, self.compiled, self.fails, self.calls = 0.0, compiled, fails, itertools.count()
        self.first = True
        self.module = SimpleNamespace(_compiled_call_impl=None, compile=self.compile)
        self.said: list[str] = []
        monkeypatch.setattr(compilation, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def compile(self, dynamic: bool) -> None:
        assert dynamic
        self.module._compiled_call_impl = self

    def evaluate(self) -> None:
        if self.module._compiled_call_impl is None:
            self.now += 1
            return
        if self.fails:
            raise RuntimeError("no C++ compiler")
        self.now += self.compiled + (30 if self.first else 0)
        self.first = False

    def run(self, option: CompileOption, evaluations: int, count: int) -> int | None:
        """Evaluate `count` times; return before which evaluation the module was compiled."""
        parts: Any = [self.module]
        deciding = InferenceCompilation("net", parts, option, CPU, evaluations, self.said.append)
        for number in range(count):
            deciding.before(self.evaluate, 4)
            if self.module._compiled_call_impl is not None:
                return number
            self.evaluate()
        return None


def test_auto_compiles_long_work_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Clock(monkeypatch).run("auto", 290, 50) is None
    clock = Clock(monkeypatch)
    assert clock.run("auto", 310, 50) == 9
    assert clock.said == ["compile: net, 4 images: 1000 -> 500 ms; compiling took 30.0 s"]
    assert Clock(monkeypatch).run("auto", 0, 400) == 300  # the number of evaluations is unknown
    assert Clock(monkeypatch).run(True, 0, 5) == 0
    assert Clock(monkeypatch).run(False, 9999, 20) is None


def test_auto_undoes_what_brings_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, compiled=1.5)
    assert clock.run("auto", 9999, 20) is None
    assert clock.said == ["compile: net, 4 images: 1000 -> 1500 ms; compiling took 30.0 s, and is undone"]
    assert Clock(monkeypatch, compiled=1.5).run(True, 0, 5) == 0


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, fails=True)
    assert clock.run("auto", 9999, 20) is None
    assert clock.said == ["compile: net is not compiled, since torch.compile failed (no C++ compiler)"]
    with pytest.raises(UserError, match=r"compile must be false here: torch.compile failed \(no C"):
        Clock(monkeypatch, fails=True).run(True, 0, 5)
