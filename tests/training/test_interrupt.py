"""Signals that come at a bad moment."""

import signal
from collections.abc import Callable

import pytest
import torch

from vavae.training.interrupt import signals_later
from vavae.training.throughput import count_flops, count_peak_bytes


@pytest.mark.parametrize("count", [count_flops, count_peak_bytes])
def test_a_stop_waits_until_operations_are_counted(count: Callable[[Callable[[], object]], object]) -> None:
    """In the middle, torch would meet the exception in C++ and abort the process."""
    done = []

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(torch.ones(2, 2) @ torch.ones(2, 2))

    with pytest.raises(KeyboardInterrupt):
        count(work)
    assert len(done) == 1


def test_signals_are_delivered_once_and_to_whom_they_were_for() -> None:
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
