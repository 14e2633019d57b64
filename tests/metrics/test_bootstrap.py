"""Bootstrap intervals of a mean, against theory, and of a Fréchet distance, against new draws."""

import pytest
import torch

from vavae.metrics import RunningMoments, bootstrap_interval, bootstrap_mean


def test_interval_of_a_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 10
    low, high = bootstrap_mean(values, 800)
    half = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=0.12 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.12 * half)
    assert bootstrap_mean(values, 50, seed=3) == bootstrap_mean(values, 50, seed=3)
    assert bootstrap_mean(values, 50, seed=3) != bootstrap_mean(values, 50, seed=4)


@pytest.mark.slow
def test_interval_of_a_distance():
    """It is as wide as the spread of independent measurements, and contains the number in spite of the bias."""
    generator = torch.Generator().manual_seed(0)

    def moments(x: torch.Tensor) -> RunningMoments:
        found = RunningMoments(4)
        found.update(x)
        return found

    reference = RunningMoments(4)
    reference.update(torch.randn(200_000, 4, generator=generator))
    drawn = [1.5 * torch.randn(150, 4, generator=generator) for _ in range(300)]
    repeated = torch.tensor([moments(x).distance(reference) for x in drawn])
    width = float(repeated.quantile(0.975) - repeated.quantile(0.025))
    widths = []
    for x in drawn[:5]:
        value = moments(x).distance(reference)
        low, high = bootstrap_interval(lambda i, x=x: moments(x[i]).distance(reference), 150, value, 200)
        assert low < value < high
        widths.append(high - low)
    assert sum(widths) / 5 == pytest.approx(width, rel=0.25)


def test_interval_is_moved_onto_the_value():
    """Images drawn with repetition are 63 % distinct, so every resampled value is far below that of all images."""
    low, high = bootstrap_interval(lambda indices: len(indices.unique()) / 200, 200, 1.0, 100)
    assert 0.9 < low < 1.0 < high < 1.1


def test_one_repetition_is_refused():
    with pytest.raises(ValueError, match="2 repetitions"):
        bootstrap_mean(torch.ones(5), 1)
