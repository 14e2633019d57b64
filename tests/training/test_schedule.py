"""Learning-rate schedules."""

import pytest

from vavae.errors import UserError
from vavae.training.schedule import ScheduleConfig, learning_rate_factor


def test_staged_and_linear_schedules() -> None:
    staged = ScheduleConfig("staged", boundaries=(100, 200), factors=(1.0, 0.5, 0.1))
    assert [learning_rate_factor(staged, n, 10, 300) for n in (0, 99, 100, 199, 200, 299)] == [1, 1, 0.5, 0.5, 0.1, 0.1]
    late = ScheduleConfig("linear", warmup_images=20, decay_images=100)
    assert [learning_rate_factor(late, n, 10, 300) for n in (0, 10, 150, 200, 250, 300)] == [0.5, 1, 1, 1, 0.5, 0]
    with pytest.raises(UserError, match="need 3 factors"):
        ScheduleConfig("staged", boundaries=(1, 2), factors=(1.0,))


def test_weights_of_losses_that_end_early() -> None:
    """A loss that helps early and hurts late falls to zero, or is cut off."""
    falling, cut = ScheduleConfig("linear"), ScheduleConfig("staged", boundaries=(100,), factors=(1.0, 0.0))
    assert [learning_rate_factor(falling, n, 1, 100) for n in (0, 50, 100, 200)] == [1, 0.5, 0, 0]
    assert [learning_rate_factor(cut, n, 1, 200) for n in (0, 99, 100)] == [1, 1, 0]
