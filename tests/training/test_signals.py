"""Signals at bad moments, twice, and as copies."""

import signal
from collections.abc import Callable

import pytest
import torch

from vavae.training import signals
from vavae.training.signals import signals_later, stop_on_signal
from vavae.training.throughput import count_flops, count_peak_bytes


@pytest.mark.parametrize("count", [count_flops, count_peak_bytes])
def test_signals_wait_while_operations_are_counted(count: Callable[[Callable[[], object]], object]) -> None:
    """Otherwise torch would meet the exception in C++ and abort the process."""
    done = []

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(torch.ones(2, 2) @ torch.ones(2, 2))

    with pytest.raises(KeyboardInterrupt):
        count(work)
    assert len(done) == 1


def test_held_signals_are_delivered_once() -> None:
    came: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with signals_later():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert came == []
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)


def test_signal_copied_by_torchrun_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler or Ctrl-C signals the processes of torchrun, and torchrun signals them once more."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with pytest.raises(KeyboardInterrupt, match="stopped; finished work is saved"), stop_on_signal() as stop:
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(signal_number)
        assert stop
    with pytest.raises(KeyboardInterrupt, match=r"^$"), stop_on_signal():
        signal.raise_signal(signal.SIGTERM)
        now[0] += 11
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("a signal that came later must end the block at once")


def test_second_signal_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(KeyboardInterrupt, match=r"^$"), stop_on_signal():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("a second signal must end the block at once")
