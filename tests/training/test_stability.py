"""Detection of spikes."""

from vavae.training.stability import SpikeDetector, StabilityConfig


def test_spike_is_measured_within_its_phase() -> None:
    detector = SpikeDetector(StabilityConfig(spike=10.0, history=8))
    for value in (1.0, 1.1, 0.9, 1.05, 1.0):
        assert detector.check({"total": value, "gradient_norm/a": 2.0}, 0) is None
    assert detector.check({"total": 1.2, "gradient_norm/a": 2.0}, 0) is None
    assert "total jumped to 9" in str(detector.check({"total": 9.0, "gradient_norm/a": 2.0}, 0))
    assert detector.check({"total": 9.0, "gradient_norm/a": 2.0}, 1) is None  # another objective begins
    assert detector.history["total"] == [9.0]
    assert detector.check({"total": float("nan")}, 1) is None and detector.history["total"] == [9.0]


def test_spike_history_keeps_the_newest_intervals() -> None:
    detector = SpikeDetector(StabilityConfig(spike=20.0, history=4))
    for value in (8.0, 8.1, 7.9, 8.0, 1.0, 1.1, 0.9, 1.0):  # a loss that has fallen
        assert detector.check({"total": value}, 0) is None
    assert detector.history["total"] == [1.0, 1.1, 0.9, 1.0]
    assert "total jumped to 8, from a median of 1" in str(detector.check({"total": 8.0}, 0))
